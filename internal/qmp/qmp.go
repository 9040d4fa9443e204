// Package qmp is the client's side of QEMU's control socket (QEMU docs/interop/qmp-spec).
//
// A Client owns its connection and reads from it until it ends, whether anybody waits or not: what QEMU says is for the call with its id, or is an event, which is for
// those calls that wait for one like it and otherwise forgotten. Calls may be made at once, and each can be given up by its context; QEMU does then what it was told all
// the same. What QEMU refuses is an *Error. Nothing here knows a machine, starts a process, or sets a limit of time.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Client is a connection to QEMU's control socket.
type Client struct {
	conn  net.Conn
	ended chan struct{} // closed when the connection has ended and nobody reads from it

	sending sync.Mutex // one command after the other goes over conn

	mu      sync.Mutex // guards below
	id      uint64
	waiting map[uint64]chan reply
	wanted  map[*want]struct{}
	err     error // why the connection ended
}

type reply struct {
	Return json.RawMessage
	Error  *Error
}

// Error is QEMU's refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// Event is what QEMU tells without having been asked.
type Event struct {
	Event string          `json:"event"` // its name in the QMP reference
	Data  json.RawMessage `json:"data"`
}

// want is an event that somebody waits for.
type want struct {
	is   func(Event) bool
	came chan struct{} // closed when it has
}

// message is anything that QEMU sends.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *Error          `json:"error"`
	Event
}

// Own makes conn a client's, which closes it. Its first call has to be Negotiate.
func Own(conn net.Conn) *Client {
	c := &Client{conn: conn, waiting: map[uint64]chan reply{}, wanted: map[*want]struct{}{}, ended: make(chan struct{})}
	go c.read()
	return c
}

// Connect is Own and Negotiate. After an error conn is closed.
func Connect(ctx context.Context, conn net.Conn) (*Client, error) {
	c := Own(conn)
	if err := c.Negotiate(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("QMP: %w", err)
	}
	return c, nil
}

// Negotiate has QEMU take commands. It returns when QEMU answers, which it does once every device is made.
func (c *Client) Negotiate(ctx context.Context) error {
	return c.Call(ctx, "qmp_capabilities", nil, nil)
}

// Close ends the connection, and returns when nobody reads from it any longer. It may be called twice.
func (c *Client) Close() { c.conn.Close(); <-c.ended }

// HangUp ends the connection, and every call on it.
func (c *Client) HangUp() { c.conn.Close() }

// Ended is closed when the connection has ended, by whichever side.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// read hands replies and events on until the connection ends.
func (c *Client) read() {
	dec := json.NewDecoder(bufio.NewReader(c.conn))
	var err error
	for err == nil {
		var m message
		if err = dec.Decode(&m); err != nil {
			break
		}
		c.take(m)
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		err = errors.New("QEMU closed its control socket")
	}
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	c.conn.Close()
	close(c.ended)
}

func (c *Client) take(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case m.Event.Event != "":
		for w := range c.wanted {
			if w.is(m.Event) {
				close(w.came)
				delete(c.wanted, w)
			}
		}
	case m.ID != nil: // else the greeting
		if ch := c.waiting[*m.ID]; ch != nil {
			ch <- reply{Return: m.Return, Error: m.Error} // there is room for one
			delete(c.waiting, *m.ID)
		}
	}
}

// write sends bytes, and with the first of them a file (unix(7) SCM_RIGHTS).
func (c *Client) write(body []byte, file *os.File) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if file == nil {
		_, err := c.conn.Write(body)
		return err
	}
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return errors.New("files go over unix sockets only")
	}
	n, _, err := conn.WriteMsgUnix(body, unix.UnixRights(int(file.Fd())), nil)
	if err == nil && n < len(body) {
		_, err = conn.Write(body[n:])
	}
	return err
}

// Call runs a command; out may be nil.
func (c *Client) Call(ctx context.Context, command string, args, out any) error {
	return c.Send(ctx, command, args, out, nil)
}

// Send is Call with a file that goes with the command, if it is not nil.
func (c *Client) Send(ctx context.Context, command string, args, out any, file *os.File) error {
	ch := make(chan reply, 1)
	c.mu.Lock()
	c.id++
	id := c.id
	c.waiting[id] = ch
	c.mu.Unlock()
	msg := map[string]any{"execute": command, "id": id}
	if args != nil {
		msg["arguments"] = args
	}
	body, err := json.Marshal(msg)
	if err == nil {
		err = c.write(append(body, '\n'), file)
	}
	if err != nil {
		return err
	}
	select {
	case r := <-ch:
		if r.Error != nil {
			return fmt.Errorf("%s: %w", command, r.Error)
		}
		if out != nil {
			return json.Unmarshal(r.Return, out)
		}
		return nil
	case <-c.ended:
		return c.why()
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		return ctx.Err()
	}
}

// why is the error of a connection that has ended.
func (c *Client) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// CallUntil runs a command and waits for the first event from then on that is what is wanted. Events may come before the command's reply. is must be quick, and make no call.
func (c *Client) CallUntil(ctx context.Context, command string, args any, is func(Event) bool) error {
	w := &want{is: is, came: make(chan struct{})}
	c.mu.Lock()
	c.wanted[w] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.wanted, w)
		c.mu.Unlock()
	}()
	if err := c.Call(ctx, command, args, nil); err != nil {
		return err
	}
	select {
	case <-w.came:
		return nil
	case <-c.ended:
		return c.why()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Unplug deletes a device and waits until it is gone: the command is a request alone (QAPI device_del, DEVICE_DELETED).
func (c *Client) Unplug(ctx context.Context, device string) error {
	return c.CallUntil(ctx, "device_del", map[string]any{"id": device}, func(e Event) bool {
		var data struct {
			Device string `json:"device"`
		}
		return e.Event == "DEVICE_DELETED" && json.Unmarshal(e.Data, &data) == nil && data.Device == device
	})
}
