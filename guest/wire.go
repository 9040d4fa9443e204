package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"vch/internal/fault"
)

// Every message is a length (4 bytes, big endian), a type (1 byte) and a body. maxMessage bounds the body: an executor config with a
// large environment fits easily, and nonsense allocates no more than this.
const maxMessage = 8 << 20

// The message types.
const (
	msgRequest byte = 'q' // JSON request; the first on every stream
	msgAnswer  byte = 'a' // JSON answer; the last of a plain call
	msgStatus  byte = 's' // JSON Status
	msgFrame   byte = 'f' // 8 bytes number, 1 byte stream, data
	msgAck     byte = 'k' // 8 bytes number
	msgData    byte = 'd' // raw input
	msgEOF     byte = 'e' // end of input, or of output
	msgStarted byte = 'p' // 8 bytes pid
)

// window is how many bytes of frames the guest sends ahead of the host's acknowledgement.
const window = 512 << 10

type request struct {
	Op   string          `json:"op"`
	Body json.RawMessage `json:"body,omitempty"`
}

type answer struct {
	Fault *Fault          `json:"fault,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// writeMessage sends one message in one write.
func writeMessage(w io.Writer, kind byte, body []byte) error {
	if len(body) > maxMessage {
		return fault.New(fault.Invalid, "a message of %d bytes is longer than the guest channel takes (%d)", len(body), maxMessage)
	}
	buf := make([]byte, 5, 5+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	buf[4] = kind
	_, err := w.Write(append(buf, body...))
	return err
}

// readMessage reads one message. io.EOF means that the stream ended between messages.
func readMessage(r io.Reader) (kind byte, body []byte, err error) { return readShort(r, maxMessage) }

// readShort is readMessage of one whose body has no more bytes than most.
func readShort(r io.Reader, most uint32) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > most {
		return 0, nil, fmt.Errorf("guest channel: message of %d bytes, more than %d", n, most)
	}
	// Grow with what really comes: a length alone allocates nothing.
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, r, int64(n)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return head[4], buf.Bytes(), nil
}

func writeJSON(w io.Writer, kind byte, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeMessage(w, kind, body)
}

func encodeFrame(f Frame) []byte {
	b := make([]byte, 9, 9+len(f.Data))
	binary.BigEndian.PutUint64(b, f.Number)
	b[8] = byte(f.Stream)
	return append(b, f.Data...)
}

func decodeFrame(b []byte) (Frame, error) {
	if len(b) < 9 || b[8] != byte(Stdout) && b[8] != byte(Stderr) {
		return Frame{}, errors.New("guest channel: malformed frame")
	}
	return Frame{Number: binary.BigEndian.Uint64(b), Stream: Stream(b[8]), Data: b[9:]}, nil
}

func number(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func decodeNumber(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, errors.New("guest channel: malformed number")
	}
	return binary.BigEndian.Uint64(b), nil
}

func toFault(err error) *Fault {
	if err == nil {
		return nil
	}
	return &Fault{Kind: fault.KindOf(err).String(), Text: err.Error()}
}

func (f *Fault) error() error {
	if f == nil {
		return nil
	}
	return fault.New(fault.ParseKind(f.Kind), "%s", f.Text)
}

// The hello: magic, version, nonce. The guest echoes it; both scan for it, so that what an earlier connection left in the pipe is skipped.
const (
	helloLen = 8 + 1 + nonceLen
	nonceLen = 16
)

var helloMagic = [8]byte{0xf5, 'v', 'c', 'h', 0xfa, 'h', 'i', 0xfe}

// scanHello reads from r until a whole hello that match accepts has passed, byte by byte so that nothing after it is taken.
func scanHello(r io.Reader, match func(version byte, nonce []byte) bool) error {
	var have []byte
	var one [1]byte
	for {
		if _, err := io.ReadFull(r, one[:]); err != nil {
			return err
		}
		have = append(have, one[0])
		if len(have) > helloLen {
			have = have[1:]
		}
		if len(have) == helloLen && bytes.HasPrefix(have, helloMagic[:]) && match(have[8], have[9:]) {
			return nil
		}
	}
}

// sessionStart is the first byte of every yamux frame (its spec's protocol version), and so of what follows the hellos.
const sessionStart = 0

// helloAgain is how often a host repeats its hello until it is answered: the first one may go to the session of an earlier host that the guest has not seen leave.
const helloAgain = time.Second

// sayHello says hello every so often until match accepts an answer. When it returns, no hello is half written.
func sayHello(conn net.Conn, hello []byte, every time.Duration, match func(version byte, nonce []byte) bool) error {
	var talking sync.WaitGroup
	answered := make(chan struct{})
	var werr error
	talking.Go(func() {
		again := time.NewTicker(every)
		defer again.Stop()
		for {
			if _, werr = conn.Write(hello); werr != nil {
				conn.Close() // ends the wait for an answer
				return
			}
			select {
			case <-again.C:
			case <-answered:
				return
			}
		}
	})
	err := scanHello(conn, match)
	close(answered)
	if err != nil {
		conn.Close()
	}
	talking.Wait()
	if werr != nil {
		return werr
	}
	return err
}

// echoes is a connection whose first bytes may be more answers to a hello that was repeated.
type echoes struct {
	net.Conn
	echo  []byte
	begun bool
}

func (c *echoes) Read(p []byte) (int, error) {
	for !c.begun && len(p) > 0 {
		if _, err := io.ReadFull(c.Conn, p[:1]); err != nil {
			return 0, err
		}
		if p[0] == sessionStart {
			c.begun = true
			return 1, nil
		}
		rest := make([]byte, helloLen-1)
		if _, err := io.ReadFull(c.Conn, rest); err != nil {
			return 0, err
		}
		if p[0] != c.echo[0] || !bytes.Equal(rest, c.echo[1:]) {
			return 0, errors.New("guest channel: nonsense after the hello")
		}
	}
	return c.Conn.Read(p)
}

func yamuxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false // a stopped machine or a busy emulator is not a broken one; the hypervisor tells when it ends
	c.ConnectionWriteTimeout = 10 * time.Minute
	c.StreamCloseTimeout = 10 * time.Minute
	c.StreamOpenTimeout = 0
	c.MaxStreamWindowSize = 1 << 20
	c.LogOutput = io.Discard
	return c
}

// session is the host's end of a connection.
type session struct{ mux *yamux.Session }

func connect(ctx context.Context, conn net.Conn, every time.Duration) (_ *Client, err error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			conn.Close()
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			err = fault.As(fault.Unavailable, fmt.Errorf("no hello from the guest: %w", err))
		}
	}()
	hello := append(append(make([]byte, 0, helloLen), helloMagic[:]...), Version)
	var nonce [nonceLen]byte
	rand.Read(nonce[:])
	hello = append(hello, nonce[:]...)
	echo := make([]byte, helloLen)
	copy(echo, hello)
	if err := sayHello(conn, hello, every, func(v byte, n []byte) bool { echo[8] = v; return bytes.Equal(n, nonce[:]) }); err != nil {
		return nil, err
	}
	if other := echo[8]; other != Version {
		return nil, fmt.Errorf("it speaks version %d of the protocol, this vch speaks %d", other, Version)
	}
	conn = &echoes{Conn: conn, echo: echo}
	mux, err := yamux.Client(conn, yamuxConfig())
	if err != nil {
		return nil, err
	}
	return &Client{session{mux}}, nil
}

func (s *session) close() error          { return s.mux.Close() }
func (s *session) done() <-chan struct{} { return s.mux.CloseChan() }

// open starts a call on a stream of its own. The stream closes when ctx ends.
func (s *session) open(ctx context.Context, op string, body any) (*yamux.Stream, func(), error) {
	st, err := s.mux.OpenStream()
	if err != nil {
		return nil, nil, broken(err)
	}
	stop := context.AfterFunc(ctx, func() { reset(st) })
	release := func() { stop(); reset(st) }
	raw, err := json.Marshal(body)
	if err == nil {
		err = writeJSON(st, msgRequest, request{Op: op, Body: raw})
	}
	if err != nil {
		release()
		return nil, nil, broken(err)
	}
	return st, release, nil
}

// reset ends a stream in both directions at once: readers and writers of this end return.
func reset(st *yamux.Stream) {
	_ = st.SetDeadline(time.Unix(1, 0))
	_ = st.Close()
}

// broken is the error of a connection that ended in the middle of a call; a fault stays what it is.
func broken(err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	return fault.New(fault.Unavailable, "the connection to the machine broke: %w", err)
}

func readAnswer(kind byte, body []byte, out any) error {
	if kind != msgAnswer {
		return fault.New(fault.Internal, "guest channel: message %q where an answer was due", kind)
	}
	var a answer
	if err := json.Unmarshal(body, &a); err != nil {
		return fault.New(fault.Internal, "guest channel: %w", err)
	}
	var err error
	if out != nil && a.Body != nil {
		err = json.Unmarshal(a.Body, out)
	}
	if a.Fault != nil {
		return a.Fault.error() // a result may come with it
	}
	return err
}

func (s *session) call(ctx context.Context, op string, body, out any) error {
	st, release, err := s.open(ctx, op, body)
	if err != nil {
		return err
	}
	defer release()
	kind, msg, err := readMessage(st)
	if err != nil {
		return ended(ctx, err)
	}
	return readAnswer(kind, msg, out)
}

// asking bounds how many questions of a guest are answered at once: it waits with more.
const asking = 64

// answer gives a the guest's questions, each a stream with one message, and sends one back. What has no answer gets an empty message of another kind.
func (s *session) answer(a Asker) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	busy := make(chan struct{}, asking)
	for {
		st, err := s.mux.AcceptStream()
		if err != nil {
			return // the guest is gone
		}
		busy <- struct{}{}
		go func() {
			defer func() { <-busy }()
			defer reset(st)
			_ = st.SetDeadline(time.Now().Add(askLimit))
			kind, query, err := readMessage(st)
			if err != nil || kind != msgData || len(query) > maxQuery {
				return
			}
			reply, err := a.Resolve(ctx, query)
			kind = msgData
			if err != nil {
				kind, reply = msgEOF, nil
			}
			if writeMessage(st, kind, reply) == nil {
				_, _, _ = readMessage(st) // the guest closes first
			}
		}()
	}
}

const (
	askLimit = time.Minute
	maxQuery = 65535 // bytes of a DNS message (RFC 1035 section 4.2.2)
)

// ended prefers the reason of ctx to the broken stream that it caused.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return broken(err)
}

func (s *session) shutdown(ctx context.Context) error {
	err := s.call(ctx, "shutdown", nil, nil)
	if err != nil && ctx.Err() == nil && fault.Is(err, fault.Unavailable) {
		return nil // the machine went off before it could answer
	}
	return err
}

// follow calls take for each message of a stream of op, until take says that it is done, or fails. A message that take does not know is the call's answer.
func (s *session) follow(ctx context.Context, op string, body any, take func(st io.Writer, kind byte, msg []byte) (done bool, err error)) error {
	st, release, err := s.open(ctx, op, body)
	if err != nil {
		return err
	}
	defer release()
	for {
		kind, msg, err := readMessage(st)
		if err != nil {
			return ended(ctx, err)
		}
		if done, err := take(st, kind, msg); done || err != nil {
			return err
		}
	}
}

func (s *session) watch(ctx context.Context, fn func(Status) bool) error {
	return s.follow(ctx, "watch", nil, func(_ io.Writer, kind byte, msg []byte) (bool, error) {
		if kind != msgStatus {
			return true, readAnswer(kind, msg, nil)
		}
		var status Status
		if err := json.Unmarshal(msg, &status); err != nil {
			return true, fault.New(fault.Internal, "guest channel: %w", err)
		}
		return !fn(status), nil
	})
}

func (s *session) output(ctx context.Context, after uint64, fn func(Frame) error) (last Status, err error) {
	err = s.follow(ctx, "output", after, func(st io.Writer, kind byte, msg []byte) (bool, error) {
		switch kind {
		case msgEOF:
			if len(msg) == 0 { // a guest of an earlier vch tells its status apart
				return true, s.watch(ctx, func(st Status) bool { last = st; return st.Phase != Exited && st.Phase != Failed })
			}
			if err := json.Unmarshal(msg, &last); err != nil {
				return true, fault.New(fault.Internal, "guest channel: %w", err)
			}
			return true, nil
		case msgFrame:
			f, err := decodeFrame(msg)
			if err != nil {
				return true, broken(err)
			}
			if f.Number != after+1 {
				return true, fault.New(fault.Internal, "guest channel: frame %d where %d was due", f.Number, after+1)
			}
			if err := fn(f); err != nil {
				return true, err
			}
			after = f.Number
			if err := writeMessage(st, msgAck, number(after)); err != nil {
				return true, ended(ctx, err)
			}
			return false, nil
		}
		return true, readAnswer(kind, msg, nil)
	})
	return last, err
}

// input is the host's writer of a process's stdin.
type input struct {
	st      *yamux.Stream
	release func()
	once    sync.Once
}

func (s *session) stdin(ctx context.Context) (io.WriteCloser, error) {
	st, release, err := s.open(ctx, "stdin", nil)
	if err != nil {
		return nil, err
	}
	kind, msg, err := readMessage(st)
	if err == nil {
		err = readAnswer(kind, msg, nil)
	}
	if err != nil {
		release()
		return nil, ended(ctx, err)
	}
	return &input{st: st, release: release}, nil
}

func (in *input) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		k := min(len(p), MaxFrame)
		if err := writeMessage(in.st, msgData, p[:k]); err != nil {
			return n, broken(err)
		}
		n, p = n+k, p[k:]
	}
	return n, nil
}

func (in *input) Close() error {
	err := error(nil)
	in.once.Do(func() {
		if err = writeMessage(in.st, msgEOF, nil); err == nil {
			_, _, err = readMessage(in.st) // the guest's word that the process got it
		}
		in.release()
		if err != nil {
			err = broken(err)
		}
	})
	return err
}

type execRequest struct {
	ID      string  `json:"id"`
	Process Process `json:"process"`
}

func (s *session) exec(ctx context.Context, id string, p Process, stdin io.Reader, started func(pid int), out func(Stream, []byte) error) (Exit, error) {
	st, release, err := s.open(ctx, "exec", execRequest{ID: id, Process: p})
	if err != nil {
		return Exit{}, err
	}
	defer release()
	go func() { // ends when stdin does, or with the stream
		if stdin != nil {
			buf := make([]byte, MaxFrame)
			for {
				n, err := stdin.Read(buf)
				if n > 0 && writeMessage(st, msgData, buf[:n]) != nil {
					return
				}
				if err != nil {
					break
				}
			}
		}
		_ = writeMessage(st, msgEOF, nil)
	}()
	for {
		kind, msg, err := readMessage(st)
		if err != nil {
			return Exit{}, ended(ctx, err)
		}
		switch kind {
		case msgStarted:
			pid, err := decodeNumber(msg)
			if err != nil {
				return Exit{}, broken(err)
			}
			if started != nil {
				started(int(pid))
			}
		case msgFrame:
			f, err := decodeFrame(msg)
			if err != nil {
				return Exit{}, broken(err)
			}
			if out != nil {
				if err := out(f.Stream, f.Data); err != nil {
					return Exit{}, err
				}
			}
		default:
			var exit Exit
			return exit, readAnswer(kind, msg, &exit)
		}
	}
}
