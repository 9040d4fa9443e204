package tether

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vch/guest"
)

// framed is a frame with its length before it.
func framed(f []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...) }

// pumped is the host's end of a connection that the card's frames come and go by.
func pumped(t *testing.T, p *tap) (host net.Conn, done chan error) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	must(t, err)
	defer l.Close()
	there, err := net.Dial("unix", l.Addr().String())
	must(t, err)
	host, err = l.Accept()
	must(t, err)
	done = make(chan error, 1)
	p.use(there) // at once, so that nothing that is sent from now on is lost
	go func() { done <- p.pump(there) }()
	must(t, host.SetDeadline(time.Now().Add(time.Minute)))
	return host, done
}

func nextFrame(t *testing.T, r io.Reader) []byte {
	t.Helper()
	var size [4]byte
	_, err := io.ReadFull(r, size[:])
	must(t, err)
	f := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err = io.ReadFull(r, f)
	must(t, err)
	return f
}

const testType = 0x88b5 // IEEE 802: for local experiments

// wire is a raw socket on the card, as its stack is: it sends what comes to the host, and gets what that sends.
func wire(t *testing.T, c *card) (send func([]byte), receive func() []byte) {
	t.Helper()
	ns := make(chan int, 1)
	link, err := c.there.LinkByIndex(c.index)
	must(t, err)
	must(t, within(c.ns, c.self, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, testType>>8|testType&0xff<<8)
		if err != nil {
			return err
		}
		ns <- fd
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: testType>>8 | testType&0xff<<8, Ifindex: link.Attrs().Index})
	}))
	fd := <-ns
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 60}))
	t.Cleanup(func() { unix.Close(fd) })
	return func(f []byte) {
			t.Helper()
			_, err := unix.Write(fd, f)
			must(t, err)
		}, func() []byte {
			t.Helper()
			buf := make([]byte, longestTagged)
			n, err := unix.Read(fd, buf)
			must(t, err)
			return buf[:n]
		}
}

// testFrame is a frame to everybody.
func testFrame(text string) []byte {
	f := append(bytes.Repeat([]byte{0xff}, 6), 2, 0, 0, 0, 0, 1)
	f = binary.BigEndian.AppendUint16(f, testType)
	return append(f, text...)
}

func TestTap(t *testing.T) {
	if !apart(t) {
		return
	}
	c, p, err := tapCard()
	must(t, err)
	if links, err := netlink.LinkList(); err != nil || len(links) != 1 {
		t.Errorf("the card is seen: %v, %v", links, err)
	}
	send, receive := wire(t, c)

	send(testFrame("lost: nobody is there"))
	host, done := pumped(t, p)
	r := bufio.NewReader(host)
	send(testFrame("one"))
	if f := nextFrame(t, r); !bytes.Equal(f, testFrame("one")) && !bytes.Equal(f, testFrame("lost: nobody is there")) {
		t.Errorf("%q", f)
	}
	// Many come whole and in order; what is no frame is lost.
	var out bytes.Buffer
	out.Write(framed([]byte("short")))
	out.Write(framed(nil))
	for range 100 {
		out.Write(framed(testFrame("in")))
	}
	out.Write(framed(testFrame("last")))
	if _, err := host.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		f := receive()
		if bytes.Equal(f, testFrame("last")) {
			if n != 100 {
				t.Errorf("%d of 100 frames came", n)
			}
			break
		}
		if !bytes.Equal(f, testFrame("in")) {
			t.Fatalf("%q came", f)
		}
	}

	// A long one, of the storage link.
	link, err := c.there.LinkByIndex(c.index)
	must(t, err)
	must(t, c.there.LinkSetMTU(link, 60000))
	long := testFrame(strings.Repeat("x", 60000))
	send(long)
	for {
		if f := nextFrame(t, r); bytes.Equal(f, long) {
			break
		}
	}
	_, err = host.Write(framed(long))
	must(t, err)
	if f := receive(); !bytes.Equal(f, long) {
		t.Errorf("%d bytes came", len(f))
	}

	// A new connection takes the place of the old one.
	second, secondDone := pumped(t, p)
	if err := <-done; err == nil {
		t.Error("the one before ended without a reason")
	}
	if _, err := io.Copy(io.Discard, r); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the one before: %v", err)
	}
	_, err = second.Write(framed(testFrame("two")))
	must(t, err)
	if f := receive(); !bytes.Equal(f, testFrame("two")) {
		t.Errorf("%q", f)
	}
	// Nonsense ends it.
	_, err = second.Write([]byte{0xff, 0xff, 0xff, 0xff})
	must(t, err)
	if err := <-secondDone; err == nil || !strings.Contains(err.Error(), "not a stream of frames") {
		t.Errorf("nonsense: %v", err)
	}
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after nonsense: %v", err)
	}
	third, thirdDone := pumped(t, p)
	_, err = third.Write(framed(testFrame("three")))
	must(t, err)
	if f := receive(); !bytes.Equal(f, testFrame("three")) {
		t.Errorf("%q", f)
	}
	must(t, p.close())
	if err := <-thirdDone; err == nil {
		t.Error("it goes on without its device")
	}
}

// What no host takes fills nothing but the device's queue, and the container's processes go on.
func TestTapWithoutReader(t *testing.T) {
	if !apart(t) {
		return
	}
	c, p, err := tapCard()
	must(t, err)
	send, _ := wire(t, c)
	_, done := pumped(t, p)
	for range 20000 {
		send(testFrame(strings.Repeat("x", 1400)))
	}
	must(t, p.close())
	if err := <-done; err == nil {
		t.Error("it goes on without its device")
	}
	if err := c.set(guest.Network{}, nil); err != nil {
		t.Error(err)
	}
}
