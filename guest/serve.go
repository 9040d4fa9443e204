package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"vch/internal/fault"
)

func serve(ctx context.Context, conn net.Conn, h Handler) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	session, err := greet(conn)
	if err == io.EOF {
		return nil
	}
	if err != nil {
		return err
	}
	mux, err := yamux.Server(session, yamuxConfig())
	if err != nil {
		return err
	}
	host := &freezing{Handler: h, held: map[Source]bool{}}
	defer host.end()
	h.Host(&asker{mux})
	defer h.Host(nil)
	ctx, cancel := context.WithCancel(ctx)
	// Calls are cancelled but not waited for: one that hangs in a process that takes no input must not keep the next host out.
	defer cancel()
	defer mux.Close()
	for {
		st, err := mux.AcceptStream()
		if err != nil {
			return nil // the host is gone
		}
		go func() {
			cctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(cctx, func() { reset(st) })()
			defer reset(st)
			answerCall(cctx, cancel, st, host)
		}()
	}
}

// greet answers hellos until a session begins. One hello is not enough: it may be what a host that is gone left in the pipe, and a host repeats its own.
func greet(conn net.Conn) (net.Conn, error) {
	var hello [helloLen]byte
	copy(hello[:], helloMagic[:])
	hello[8] = Version
	var next []byte // read already
	for {
		if err := scanHello(io.MultiReader(bytes.NewReader(next), conn), func(_ byte, nonce []byte) bool { copy(hello[9:], nonce); return true }); err != nil {
			return nil, err
		}
		// Another version is told by the echo, which carries this end's.
		if _, err := conn.Write(hello[:]); err != nil {
			return nil, err
		}
		next = make([]byte, 1)
		if _, err := io.ReadFull(conn, next); err != nil {
			return nil, err
		}
		if next[0] == sessionStart {
			return &prefixed{Conn: conn, prefix: next}, nil
		}
	}
}

// prefixed is a connection from which prefix was read already.
type prefixed struct {
	net.Conn
	prefix []byte
}

func (c *prefixed) Read(p []byte) (int, error) {
	if len(c.prefix) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.prefix)
	c.prefix = c.prefix[n:]
	return n, nil
}

// answerCall reads a stream's request, does it, and answers. cancel ends the call when the host leaves the stream.
func answerCall(ctx context.Context, cancel context.CancelFunc, st *yamux.Stream, h Handler) {
	kind, body, err := readMessage(st)
	if err != nil || kind != msgRequest {
		return
	}
	var req request
	if err := json.Unmarshal(body, &req); err != nil {
		_ = writeJSON(st, msgAnswer, answer{Fault: toFault(fault.New(fault.Invalid, "guest channel: %w", err))})
		return
	}
	result, err := dispatch(ctx, cancel, st, h, req)
	a := answer{Fault: toFault(err)}
	if result != nil {
		if a.Body, err = json.Marshal(result); err != nil {
			a.Fault = toFault(err)
		}
	}
	if err := writeJSON(st, msgAnswer, a); err != nil {
		return
	}
	// Let the host close first: closing a stream here could overtake the answer's last bytes in the reset.
	switch req.Op {
	case "watch", "output", "exec", "archive", "changes", "extract": // something reads the stream already, and cancels when the host leaves
		<-ctx.Done()
	default:
		_, _, _ = readMessage(st)
	}
}

func decodeBody[T any](req request) (v T, err error) {
	if len(req.Body) == 0 {
		return v, nil
	}
	if err := json.Unmarshal(req.Body, &v); err != nil {
		return v, fault.New(fault.Invalid, "guest channel: %s: %w", req.Op, err)
	}
	return v, nil
}

func dispatch(ctx context.Context, cancel context.CancelFunc, st *yamux.Stream, h Handler, req request) (any, error) {
	switch req.Op {
	case "configure":
		cfg, err := decodeBody[ExecutorConfig](req)
		if err != nil {
			return nil, err
		}
		// Once begun it goes to its end, whether the host stays or not.
		err = h.Configure(context.WithoutCancel(ctx), cfg)
		return h.Status(), err
	case "reset":
		return nil, h.Reset(ctx)
	case "status":
		return h.Status(), nil
	case "signal":
		r, err := decodeBody[signalRequest](req)
		if err != nil {
			return nil, err
		}
		return nil, h.Signal(ctx, r.Exec, r.Signal)
	case "resize":
		r, err := decodeBody[resizeRequest](req)
		if err != nil {
			return nil, err
		}
		return nil, h.Resize(ctx, r.Exec, r.Rows, r.Cols)
	case "top":
		return h.Top(ctx)
	case "shutdown":
		return nil, h.Shutdown(context.WithoutCancel(ctx))
	case "freeze", "thaw", "grow":
		return nil, serveVolume(ctx, h, req)
	case "rooms":
		return h.Rooms(ctx)
	case "clock":
		now, err := decodeBody[time.Time](req)
		if err != nil {
			return nil, err
		}
		return nil, h.SetClock(ctx, now)
	case "network":
		n, err := decodeBody[Network](req)
		if err != nil {
			return nil, err
		}
		return nil, h.SetNetwork(ctx, n)
	case "stats":
		return h.Stats(ctx)
	case "limits":
		l, err := decodeBody[Limits](req)
		if err != nil {
			return nil, err
		}
		return nil, h.SetLimits(ctx, l)
	case "still":
		still, err := decodeBody[bool](req)
		if err != nil {
			return nil, err
		}
		return nil, h.SetStill(ctx, still)
	case "mount", "unmount":
		return nil, serveMount(ctx, h, req)
	case "watch":
		return nil, serveWatch(ctx, cancel, st, h)
	case "output":
		after, err := decodeBody[uint64](req)
		if err != nil {
			return nil, err
		}
		return nil, serveOutput(ctx, cancel, st, h, after)
	case "stdin":
		return nil, serveStdin(st, h)
	case "stat":
		return serveStat(ctx, h, req)
	case "archive":
		return serveArchive(ctx, cancel, st, h, req)
	case "changes":
		return nil, serveChanges(ctx, cancel, st, h)
	case "extract":
		return nil, serveExtract(ctx, cancel, st, h, req)
	case "exec":
		r, err := decodeBody[execRequest](req)
		if err != nil {
			return nil, err
		}
		return serveExec(ctx, cancel, st, h, r)
	}
	return nil, fault.New(fault.Unsupported, "guest channel: unknown call %q", req.Op)
}

// asker is the host at the other end of a session.
type asker struct{ mux *yamux.Session }

// Resolve is Asker.Resolve.
func (a *asker) Resolve(ctx context.Context, query []byte) ([]byte, error) {
	st, err := a.mux.OpenStream()
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { reset(st) })()
	defer reset(st)
	if err := writeMessage(st, msgData, query); err != nil {
		return nil, err
	}
	kind, body, err := readMessage(st)
	if err == nil && kind != msgData {
		err = errUnanswered
	}
	return body, err
}

var errUnanswered = fault.New(fault.Unavailable, "the host has no answer")

// drain reads until the host leaves the stream, then cancels.
func drain(cancel context.CancelFunc, st *yamux.Stream) {
	_, _ = io.Copy(io.Discard, st)
	cancel()
}

func serveWatch(ctx context.Context, cancel context.CancelFunc, st *yamux.Stream, h Handler) error {
	go drain(cancel, st)
	for {
		changed := h.Changed()
		if err := writeJSON(st, msgStatus, h.Status()); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

var errLeft = fault.New(fault.Unavailable, "the host left")

// serveOutput sends frames up to a window ahead of the acknowledgements. Output(after) lets the tether forget only what was acknowledged, so the frames
// in flight are read ahead by number and forgotten by the last call's argument.
func serveOutput(ctx context.Context, cancel context.CancelFunc, st *yamux.Stream, h Handler, after uint64) error {
	var (
		mu     sync.Mutex // guards below
		acked  = after
		moved  = sync.NewCond(&mu)
		gone   bool
		flight []int // sizes of the frames after acked
		bytes  int
	)
	go func() {
		defer cancel()
		for {
			kind, msg, err := readMessage(st)
			n := uint64(0)
			if err == nil && kind == msgAck {
				n, err = decodeNumber(msg)
			}
			mu.Lock()
			if err != nil || kind != msgAck || n <= acked || n > acked+uint64(len(flight)) {
				gone = true
			} else {
				for ; acked < n; acked++ {
					bytes -= flight[0]
					flight = flight[1:]
				}
			}
			stop := gone
			moved.Broadcast()
			mu.Unlock()
			if stop {
				return
			}
		}
	}()
	for next := after + 1; ; next++ {
		mu.Lock()
		for bytes >= window && !gone {
			moved.Wait()
		}
		keep := acked
		left := gone
		mu.Unlock()
		if left {
			return errLeft
		}
		f, err := h.Output(ctx, keep, next)
		if err == io.EOF {
			mu.Lock()
			for acked < next-1 && !gone {
				moved.Wait()
			}
			taken := acked == next-1
			mu.Unlock()
			if !taken {
				return errLeft // what it did not acknowledge stays for the next host
			}
			h.Forget(next - 1)
			return writeJSON(st, msgEOF, h.Status())
		}
		if err != nil {
			return err
		}
		mu.Lock()
		flight, bytes = append(flight, len(f.Data)), bytes+len(f.Data)
		mu.Unlock()
		if err := writeMessage(st, msgFrame, encodeFrame(f)); err != nil {
			return err
		}
	}
}

func serveStdin(st *yamux.Stream, h Handler) error {
	w, err := h.Stdin()
	if err != nil {
		return err
	}
	if err := writeJSON(st, msgAnswer, answer{}); err != nil {
		return err
	}
	for {
		kind, msg, err := readMessage(st)
		if err != nil {
			return err // the host left without an end-of-file: the process goes on waiting
		}
		switch kind {
		case msgData:
			if _, err := w.Write(msg); err != nil {
				return fault.New(fault.Conflict, "the process takes no input: %w", err)
			}
		case msgEOF:
			return w.Close()
		default:
			return fault.New(fault.Invalid, "guest channel: message %q among input", kind)
		}
	}
}

func serveExec(ctx context.Context, cancel context.CancelFunc, st *yamux.Stream, h Handler, r execRequest) (any, error) {
	in, typed := io.Pipe()
	defer in.Close()
	go func() {
		defer typed.Close()
		for {
			kind, msg, err := readMessage(st)
			if err != nil {
				cancel() // the host left
				return
			}
			switch kind {
			case msgData:
				if _, err := typed.Write(msg); err != nil {
					continue // the process reads no more; go on, to notice the host's leaving
				}
			case msgEOF:
				typed.Close()
			}
		}
	}()
	exit, err := h.Exec(ctx, r.ID, r.Process, in,
		func(pid int) { _ = writeMessage(st, msgStarted, number(uint64(pid))) },
		func(s Stream, b []byte) error {
			return writeMessage(st, msgFrame, encodeFrame(Frame{Stream: s, Data: b}))
		})
	return exit, err
}
