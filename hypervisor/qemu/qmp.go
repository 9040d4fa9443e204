package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
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

// call runs a command; out may be nil.
func (q *qmp) call(ctx context.Context, command string, args, out any) error {
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
		_, err = q.conn.Write(append(body, '\n'))
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
