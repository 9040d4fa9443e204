package qemu

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

// qmp is a connection to QEMU's control socket (QEMU docs/interop/qmp-spec). Calls may be made at once.
type qmp struct {
	conn net.Conn

	mu      sync.Mutex // guards below
	id      uint64
	waiting map[uint64]chan qmpReply
	err     error // why the connection ended
	ended   chan struct{}
	events  chan qmpEvent // what nobody fetches in time is dropped
}

type qmpReply struct {
	Return json.RawMessage
	Error  *qmpError
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

type qmpEvent struct {
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// qmpMessage is anything that QEMU sends.
type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	qmpEvent
}

// newQMP negotiates on conn and owns it from now on.
func newQMP(ctx context.Context, conn net.Conn) (*qmp, error) {
	q := &qmp{conn: conn, waiting: map[uint64]chan qmpReply{}, ended: make(chan struct{}), events: make(chan qmpEvent, 64)}
	go q.read()
	if err := q.call(ctx, "qmp_capabilities", nil, nil); err != nil {
		conn.Close()
		return nil, fmt.Errorf("QMP: %w", err)
	}
	return q, nil
}

func (q *qmp) close() { q.conn.Close(); <-q.ended }

// hangUp ends the connection, and every call on it.
func (q *qmp) hangUp() { q.conn.Close() }

// read hands replies and events on until the connection ends.
func (q *qmp) read() {
	dec := json.NewDecoder(bufio.NewReader(q.conn))
	var err error
	for err == nil {
		var m qmpMessage
		if err = dec.Decode(&m); err != nil {
			break
		}
		q.take(m)
	}
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		err = errors.New("QEMU closed its control socket")
	}
	q.mu.Lock()
	q.err = err
	q.mu.Unlock()
	q.conn.Close()
	close(q.ended)
}

func (q *qmp) take(m qmpMessage) {
	if m.Event != "" {
		select {
		case q.events <- m.qmpEvent:
		default:
		}
		return
	}
	if m.ID == nil {
		return // the greeting
	}
	q.mu.Lock()
	ch := q.waiting[*m.ID]
	delete(q.waiting, *m.ID)
	q.mu.Unlock()
	if ch != nil {
		ch <- qmpReply{Return: m.Return, Error: m.Error}
	}
}

// write sends bytes, and with the first of them a file (unix(7) SCM_RIGHTS).
func (q *qmp) write(body []byte, file *os.File) error {
	if file == nil {
		_, err := q.conn.Write(body)
		return err
	}
	conn, ok := q.conn.(*net.UnixConn)
	if !ok {
		return errors.New("files go over unix sockets only")
	}
	n, _, err := conn.WriteMsgUnix(body, unix.UnixRights(int(file.Fd())), nil)
	if err == nil && n < len(body) {
		_, err = conn.Write(body[n:])
	}
	return err
}

// await waits for an event that came or comes after the connection was made.
func (q *qmp) await(ctx context.Context, ok func(qmpEvent) bool) error {
	for {
		select {
		case e := <-q.events:
			if ok(e) {
				return nil
			}
		case <-q.ended:
			q.mu.Lock()
			defer q.mu.Unlock()
			return q.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// call runs a command; out may be nil.
func (q *qmp) call(ctx context.Context, command string, args, out any) error {
	return q.send(ctx, command, args, out, nil)
}

// send is call with a file that goes with the command, if it is not nil.
func (q *qmp) send(ctx context.Context, command string, args, out any, file *os.File) error {
	ch := make(chan qmpReply, 1)
	q.mu.Lock()
	q.id++
	id := q.id
	q.waiting[id] = ch
	msg := map[string]any{"execute": command, "id": id}
	if args != nil {
		msg["arguments"] = args
	}
	body, err := json.Marshal(msg)
	if err == nil {
		err = q.write(append(body, '\n'), file)
	}
	q.mu.Unlock()
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
	case <-q.ended:
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.err
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
		return ctx.Err()
	}
}
