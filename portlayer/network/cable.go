package network

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"

	"vch/internal/ether"
	"vch/portlayer"
)

// A machine has one card for all its networks: each frame carries the tag of its network (IEEE 802.1Q), so that a container comes to a network, and leaves it, by an interface that
// its guest makes, and no device is plugged. A frame with a tag that is not the machine's is dropped: what a guest may reach is decided here.

const (
	tagType = 0x8100
	tagSize = 4
	// storageTag is the tag of a machine's link to what it must reach; those of networks are counted from 1.
	storageTag = 4094
	// longFrame is the longest frame of a network, and longestFrame of the link, in bytes, with its tag. What is longer is no frame, and the stream is broken.
	longFrame    = 1500 + ether.Head + tagSize
	longestFrame = 60000 + ether.Head + tagSize
	// waiting is how many frames may wait for a machine that does not take them; then they are dropped, as by a switch.
	waiting = 512
)

// cable joins a machine's card to its networks. Frames come and go as on QEMU's stream netdev: four bytes of length, most significant first, then the frame.
type cable struct {
	mu    sync.Mutex // guards below
	cards map[uint16]portlayer.Card
	conn  net.Conn // nil: the machine is not there
	out   chan []byte
}

func newCable() *cable { return &cable{cards: map[uint16]portlayer.Card{}} }

// plug gives frames with tag to what attach makes a card of.
func (c *cable) plug(tag uint16, attach func(deliver func([]byte)) (portlayer.Card, error)) error {
	card, err := attach(func(frame []byte) { c.deliver(tag, frame) })
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cards[tag] = card
	return nil
}

func (c *cable) unplug(tag uint16) {
	c.mu.Lock()
	card := c.cards[tag]
	delete(c.cards, tag)
	c.mu.Unlock()
	if card != nil {
		card.Close()
	}
}

// longest is the longest frame with a tag.
func longest(tag uint16) int {
	if tag == storageTag {
		return longestFrame
	}
	return longFrame
}

// deliver sends the machine a frame, if it is there and takes it.
func (c *cable) deliver(tag uint16, frame []byte) {
	if len(frame) < ether.Head || len(frame)+tagSize > longest(tag) {
		return
	}
	b := make([]byte, 4+len(frame)+tagSize)
	binary.BigEndian.PutUint32(b, uint32(len(frame)+tagSize))
	copy(b[4:], frame[:12])
	binary.BigEndian.PutUint16(b[16:], tagType)
	binary.BigEndian.PutUint16(b[18:], tag)
	copy(b[20:], frame[12:])
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil {
		return
	}
	select {
	case c.out <- b:
	default:
	}
}

// connect has the machine's frames come and go on conn from now on. It owns conn.
func (c *cable) connect(conn net.Conn) {
	out := make(chan []byte, waiting)
	c.mu.Lock()
	if c.conn != nil {
		c.conn.Close()
		close(c.out)
	}
	c.conn, c.out = conn, out
	c.mu.Unlock()
	go writeFrames(conn, out)
	go func() {
		c.read(conn)
		c.disconnect(conn)
	}()
}

// disconnect lets go of conn if it is still the machine's; nil: of whatever is.
func (c *cable) disconnect(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil || conn != nil && c.conn != conn {
		return
	}
	c.conn.Close()
	close(c.out)
	c.conn, c.out = nil, nil
}

// close takes everything off.
func (c *cable) close() {
	c.disconnect(nil)
	c.mu.Lock()
	cards := c.cards
	c.cards = map[uint16]portlayer.Card{}
	c.mu.Unlock()
	for _, card := range cards {
		card.Close()
	}
}

// writeFrames writes what comes on out, as much at once as there is.
func writeFrames(conn net.Conn, out <-chan []byte) {
	for b := range out {
		batch := net.Buffers{b}
	more:
		for len(batch) < 64 {
			select {
			case b, open := <-out:
				if !open {
					break more
				}
				batch = append(batch, b)
			default:
				break more
			}
		}
		if _, err := batch.WriteTo(conn); err != nil {
			conn.Close() // its reader tells the cable
			for range out {
			}
			return
		}
	}
}

// read gives what the machine sends to its networks, until the stream ends.
func (c *cable) read(conn net.Conn) {
	r := bufio.NewReaderSize(conn, 64<<10)
	frame := make([]byte, longestFrame)
	for {
		tag, f, err := readFrame(r, frame)
		if err != nil {
			return
		}
		if f == nil {
			continue
		}
		c.mu.Lock()
		card := c.cards[tag]
		c.mu.Unlock()
		if card != nil {
			card.Send(f)
		}
	}
}

var errFrame = errors.New("not a stream of frames")

// readFrame reads one frame into buf and takes its tag off; nil for one without.
func readFrame(r io.Reader, buf []byte) (tag uint16, frame []byte, err error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > uint32(len(buf)) {
		return 0, nil, errFrame
	}
	b := buf[:n]
	if _, err := io.ReadFull(r, b); err != nil {
		return 0, nil, err
	}
	if n < ether.Head+tagSize || binary.BigEndian.Uint16(b[12:]) != tagType {
		return 0, nil, nil
	}
	tag = binary.BigEndian.Uint16(b[14:]) & 0x0fff // the rest is its priority
	if int(n) > longest(tag) {
		return 0, nil, nil
	}
	copy(b[tagSize:], b[:12])
	return tag, b[tagSize:], nil
}
