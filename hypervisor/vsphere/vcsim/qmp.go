package vcsim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// qmp is a connection to QEMU's control socket (QEMU docs/interop/qmp-spec).
type qmp struct {
	conn net.Conn

	mu      sync.Mutex // guards below
	id      int
	waiting map[int]chan qmpAnswer
	deleted map[string]chan struct{} // closed when the device is gone
	ended   chan struct{}
}

type qmpAnswer struct {
	ID     *int            `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Device string `json:"device"`
	} `json:"data"`
}

// newQMP owns conn from now on; read has to be run.
func newQMP(conn net.Conn) *qmp {
	return &qmp{conn: conn, waiting: map[int]chan qmpAnswer{}, deleted: map[string]chan struct{}{}, ended: make(chan struct{})}
}

// read hands answers and events on until the connection ends.
func (q *qmp) read() {
	defer close(q.ended)
	for dec := json.NewDecoder(q.conn); ; {
		var a qmpAnswer
		if dec.Decode(&a) != nil {
			return
		}
		q.mu.Lock()
		if a.Event == "DEVICE_DELETED" && q.deleted[a.Data.Device] != nil {
			close(q.deleted[a.Data.Device])
			delete(q.deleted, a.Data.Device)
		}
		if a.ID != nil && q.waiting[*a.ID] != nil {
			q.waiting[*a.ID] <- a // there is room for one
			delete(q.waiting, *a.ID)
		}
		q.mu.Unlock()
	}
}

var errGone = errors.New("the machine has ended")

// call runs a command; out is nil or where its answer goes.
func (q *qmp) call(ctx context.Context, command string, args map[string]any, out any) error {
	ch := make(chan qmpAnswer, 1)
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
		return fmt.Errorf("%s: %w", command, errGone)
	}
	select {
	case a := <-ch:
		if a.Error != nil {
			return fmt.Errorf("%s: %s", command, a.Error.Desc)
		}
		if out != nil {
			return json.Unmarshal(a.Return, out)
		}
		return nil
	case <-q.ended:
		return fmt.Errorf("%s: %w", command, errGone)
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, ctx.Err())
	}
}

// unplug deletes a device and waits until it is gone.
func (q *qmp) unplug(ctx context.Context, device string) error {
	gone := make(chan struct{})
	q.mu.Lock()
	q.deleted[device] = gone
	q.mu.Unlock()
	if err := q.call(ctx, "device_del", map[string]any{"id": device}, nil); err != nil {
		return err
	}
	select {
	case <-gone:
		return nil
	case <-q.ended:
		return errGone
	case <-ctx.Done():
		return ctx.Err()
	}
}
