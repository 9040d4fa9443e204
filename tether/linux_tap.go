package tether

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vch/internal/ether"
)

// tap is what is behind the card of a machine whose containers' frames come and go by a connection (Documentation/networking/tuntap.rst).
type tap struct {
	file *os.File
	raw  syscall.RawConn // of file
	name string
	work sync.WaitGroup // what sends

	mu   sync.Mutex // guards below
	conn net.Conn   // nil: frames are lost
}

const (
	// longestTagged is the longest frame in bytes: of the storage link, with its tag (portlayer/network, longestFrame).
	longestTagged = 60000 + ether.Head + 4
	// frameBuffer is how many bytes of frames are read, or sent, at once.
	frameBuffer = 256 << 10
	lengthSize  = 4 // bytes before each frame, most significant first (portlayer.Machine, Frames)
)

// tapCard makes the machine's card, where it has none for the containers' networks, and what is behind it.
func tapCard() (*card, *tap, error) {
	var t *tap
	c, err := newCard(func(c *card) (link netlink.Link, err error) {
		// A device is in the namespace of who opened this (drivers/net/tun.c, tun_chr_open).
		if err := within(c.ns, c.self, func() (err error) {
			t, err = openTap()
			return err
		}); err != nil {
			return nil, err
		}
		return c.there.LinkByName(t.name)
	})
	if err != nil {
		if t != nil {
			err = errors.Join(err, t.close())
		}
		return nil, nil, fmt.Errorf("cannot make the card of the containers' networks: %w", err)
	}
	return c, t, nil
}

func openTap() (*tap, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq("tap%d") // a name that is free
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("/dev/net/tun: %w", err), unix.Close(fd))
	}
	// Not before it is a device: until then there is nothing to wait for.
	t := &tap{file: os.NewFile(uintptr(fd), request.Name()), name: request.Name()}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, t.file.Close())
	}
	t.work.Go(t.send)
	return t, nil
}

// close takes the device away, and ends the connection.
func (t *tap) close() error {
	err := t.file.Close()
	t.use(nil)
	t.work.Wait()
	return err
}

// use has frames go to conn, and no others. nil: they are lost.
func (t *tap) use(conn net.Conn) {
	t.mu.Lock()
	old := t.conn
	t.conn = conn
	t.mu.Unlock()
	if old != nil && old != conn {
		old.Close()
	}
}

// leave ends conn, and has frames be lost if they went to it.
func (t *tap) leave(conn net.Conn) {
	t.mu.Lock()
	if t.conn == conn {
		t.conn = nil
	}
	t.mu.Unlock()
	conn.Close()
}

// pump has frames come and go by conn, instead of by the one before, until conn ends, or is replaced, and returns why. It owns conn.
func (t *tap) pump(conn net.Conn) error {
	t.use(conn)
	defer t.leave(conn)
	r := bufio.NewReaderSize(conn, frameBuffer)
	for {
		head, err := r.Peek(lengthSize)
		if err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(head)
		if n > longestTagged {
			return fmt.Errorf("not a stream of frames: one of %d bytes", n)
		}
		b, err := r.Peek(lengthSize + int(n))
		if err != nil {
			return err
		}
		// What the device does not take, a card would have lost: one that is too short, or too many.
		if _, err := t.file.Write(b[lengthSize:]); errors.Is(err, os.ErrClosed) {
			return err
		}
		if _, err := r.Discard(len(b)); err != nil {
			return err
		}
	}
}

// send sends what the device has, until it is closed: as many frames in one write as there are.
func (t *tap) send() {
	buf := make([]byte, frameBuffer)
	for {
		n, err := t.read(buf)
		if err != nil {
			return
		}
		t.mu.Lock()
		conn := t.conn
		t.mu.Unlock()
		if conn == nil {
			continue
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			t.leave(conn) // which its reader is told by
		}
	}
}

// read waits for frames, and gives as many as there are and find room, each after its length.
func (t *tap) read(buf []byte) (n int, err error) {
	werr := t.raw.Read(func(fd uintptr) bool {
		for len(buf)-n >= lengthSize+longestTagged {
			k, rerr := unix.Read(int(fd), buf[n+lengthSize:][:longestTagged])
			if errors.Is(rerr, unix.EINTR) {
				continue
			}
			if errors.Is(rerr, unix.EAGAIN) {
				return n > 0
			}
			if rerr != nil { // EBADFD: the device was taken away
				if n == 0 {
					err = rerr
				}
				return true
			}
			binary.BigEndian.PutUint32(buf[n:], uint32(k))
			n += lengthSize + k
		}
		return true
	})
	return n, errors.Join(err, werr)
}
