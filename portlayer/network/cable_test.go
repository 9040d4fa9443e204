package network

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"vch/internal/ether"
	"vch/portlayer"
)

// tagged is a frame as a machine's card has it, with its length before it.
func tagged(tag uint16, payload string) []byte {
	frame := append(bytes.Repeat([]byte{2}, 12), 0x81, 0, byte(tag>>8), byte(tag), 0x08, 0)
	frame = append(frame, payload...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
}

// theirsOf connects a cable to a new stream, and gives the machine's end.
func theirsOf(c *cable) net.Conn {
	ours, theirs := net.Pipe()
	c.connect(ours)
	return theirs
}

type sink chan []byte

func (s sink) Send(frame []byte) { s <- bytes.Clone(frame) }
func (s sink) Close()            {}

// A frame comes to the network of its tag, without it, and to no other; what a network delivers gets it. The stream can be exchanged.
func TestCable(t *testing.T) {
	c := newCable()
	got := map[uint16]sink{7: make(sink, 10), 4094: make(sink, 10)}
	deliver := map[uint16]func([]byte){}
	for tag, s := range got {
		if err := c.plug(tag, func(d func([]byte)) (portlayer.Card, error) { deliver[tag] = d; return s, nil }); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		ours, theirs := net.Pipe()
		c.connect(ours)
		for _, b := range [][]byte{tagged(7, "seven"), tagged(8, "nobody's"), append(binary.BigEndian.AppendUint32(nil, 20), make([]byte, 20)...), tagged(4094|0x6000, "last")} {
			if _, err := theirs.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		if f := <-got[7]; string(f[14:]) != "seven" || f[12] != 8 {
			t.Errorf("% x", f)
		}
		if f := <-got[4094]; string(f[14:]) != "last" {
			t.Errorf("% x", f)
		}
		deliver[7](append(append(bytes.Repeat([]byte{2}, 12), 8, 0), "back"...))
		want := tagged(7, "back")
		b := make([]byte, len(want))
		if _, err := io.ReadFull(theirs, b); err != nil || !bytes.Equal(b, want) {
			t.Errorf("% x, %v", b, err)
		}
	}
	// Only the storage link has long frames.
	long := strings.Repeat("l", 8000)
	end := theirsOf(c)
	for _, tag := range []uint16{7, 4094} {
		if _, err := end.Write(tagged(tag, long)); err != nil {
			t.Fatal(err)
		}
	}
	if f := <-got[4094]; len(f) != 14+8000 || len(got[7]) != 0 {
		t.Errorf("%d bytes, and %d frames", len(f), len(got[7]))
	}
	c.unplug(7)
	ours, theirs := net.Pipe()
	c.connect(ours)
	theirs.Write(tagged(7, "late"))
	theirs.Write(tagged(4094, "still"))
	if f := <-got[4094]; string(f[14:]) != "still" || len(got[7]) != 0 {
		t.Errorf("% x, and %d", f, len(got[7]))
	}
	c.close()
	theirs.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after its end: %v", err)
	}
	deliver[4094](make([]byte, 60)) // to nobody
}

// A machine that takes nothing loses frames, and holds up nobody.
func TestCableDrops(t *testing.T) {
	c := newCable()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c.connect(ours)
	for range 10 * waiting {
		c.deliver(1, make([]byte, 60))
	}
	c.close()
}

func FuzzReadFrame(f *testing.F) {
	f.Add(tagged(7, "seven"))
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			tag, frame, err := readFrame(r, make([]byte, longestFrame))
			if err != nil {
				return
			}
			if tag > 4095 || frame != nil && (len(frame) < ether.Head || len(frame) > longest(tag)-tagSize) {
				t.Fatalf("tag %d, %d bytes", tag, len(frame))
			}
		}
	})
}
