package exec

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"vch/guest"
	"vch/portlayer"
)

// A container's log is a file of JSON lines in the shape of Docker's json-file driver, so that what reads those reads these, with two more
// fields: "raw" holds bytes that are no UTF-8, and "n" stands on the last line of each frame with the frame's number.
// A line without "n" after the last one with it is of a frame that was not kept whole: resume cuts it off, and the guest sends that frame again.
type logLine struct {
	Log    string    `json:"log"`
	Stream string    `json:"stream"`
	Time   time.Time `json:"time"`
	Raw    []byte    `json:"raw,omitempty"`
	N      *uint64   `json:"n,omitempty"`
}

const (
	logMode = 0o640
	// maxLine bounds how long a line grows before it is handed on in pieces, in bytes.
	maxLine = 64 << 10
)

var streamName = map[guest.Stream]string{guest.Stdout: "stdout", guest.Stderr: "stderr"}

// hub is where a run's output goes: the log, then every attached client.
type hub struct {
	mu    sync.Mutex // guards below and keeps a log write and the list of sinks one step: a page-cache write, no waiting
	file  *os.File   // open while a run is
	size  int64
	limit portlayer.LogLimit
	grown chan struct{} // closed at the next write; nil until somebody waits
	sinks map[*sink]struct{}
}

// sink is one attached client.
type sink struct {
	frames chan guest.Frame // closed when the run's output is complete
	left   chan struct{}    // closed by the client when it goes
}

// beginLog opens the log for a new run. Owner only.
func (u *unit) beginLog() error {
	dir := u.s.containerDir(u.c.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(u.s.logPath(u.c.ID), os.O_CREATE|os.O_APPEND|os.O_WRONLY, logMode)
	if err != nil {
		return fmt.Errorf("cannot open the container's log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	u.hub.mu.Lock()
	defer u.hub.mu.Unlock()
	if u.hub.file != nil {
		u.hub.file.Close() // of a start that failed
	}
	u.hub.use(f, fi.Size(), u.c.Spec.LogMax)
	// Frame numbers begin anew with each run: a marker without text says so to resume.
	zero := uint64(0)
	return u.hub.write([]logLine{{Time: time.Now().UTC(), Stream: "stdout", N: &zero}})
}

// resumeLog opens the log of a run that another process began and returns the last frame that it holds whole. Owner only.
func (u *unit) resumeLog() (uint64, error) {
	path := u.s.logPath(u.c.ID)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, logMode)
	if err != nil {
		return 0, err
	}
	last, found, end, err := lastFrame(f)
	if err == nil && !found { // rotated a moment before
		var old *os.File
		if old, err = os.Open(path + ".1"); err == nil {
			last, _, _, err = lastFrame(old)
			old.Close()
		} else if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = f.Truncate(end)
	}
	if err != nil {
		return 0, errors.Join(err, f.Close())
	}
	u.hub.mu.Lock()
	defer u.hub.mu.Unlock()
	u.hub.use(f, end, u.c.Spec.LogMax)
	return last, nil
}

// use has the hub write to f, which has size bytes. Of a log that is not kept there are the numbers of its frames, of which the last one counts. The caller holds mu.
func (h *hub) use(f *os.File, size int64, limit portlayer.LogLimit) {
	if limit.None {
		limit.Size, limit.Files = unkept, 2
	}
	h.file, h.size, h.limit = f, size, limit
}

// unkept bounds the file of a log that is not kept.
const unkept = 64 * portlayer.KiB

// lastFrame finds the last line with a frame number and where it ends.
func lastFrame(r io.Reader) (last uint64, found bool, end int64, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	var at int64
	for {
		line, err := br.ReadBytes('\n')
		at += int64(len(line))
		if err == io.EOF {
			return last, found, end, nil
		}
		if err != nil {
			return 0, false, 0, err
		}
		var l logLine
		if json.Unmarshal(line, &l) == nil && l.N != nil {
			last, found, end = *l.N, true, at
		}
	}
}

// endLog closes the log after a run's last frame.
func (u *unit) endLog() {
	u.hub.mu.Lock()
	defer u.hub.mu.Unlock()
	if u.hub.file != nil {
		u.hub.file.Close()
		u.hub.file = nil
	}
}

// keep writes a frame to the log and hands it to every attached client. A client that does not read holds the container's output up, as in
// Docker: nothing is dropped.
func (u *unit) keep(f guest.Frame) error {
	now := time.Now().UTC()
	var lines []logLine
	data := f.Data
	if u.snapshot().container.Spec.LogMax.None {
		data = nil
	}
	for len(data) > 0 {
		n := bytes.IndexByte(data, '\n') + 1
		if n == 0 {
			n = len(data)
		}
		l := logLine{Log: string(data[:n]), Stream: streamName[f.Stream], Time: now}
		if !utf8.Valid(data[:n]) {
			l.Raw = data[:n]
		}
		lines, data = append(lines, l), data[n:]
	}
	if len(lines) == 0 {
		lines = []logLine{{Stream: streamName[f.Stream], Time: now}}
	}
	lines[len(lines)-1].N = &f.Number
	u.hub.mu.Lock()
	err := u.hub.write(lines)
	sinks := make([]*sink, 0, len(u.hub.sinks))
	for k := range u.hub.sinks {
		sinks = append(sinks, k)
	}
	u.hub.mu.Unlock()
	if err != nil {
		// A full disk must not stop the container: its log has a hole, and the daemon's own log says so.
		u.s.o.Log.Error("output is not logged", "container", u.snapshot().container.Spec.Name, "err", err)
	}
	for _, k := range sinks {
		select {
		case k.frames <- f:
		case <-k.left:
		}
	}
	return nil
}

// write appends lines in one write(2), rotating first where the limit says so. The caller holds mu.
func (h *hub) write(lines []logLine) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return err
		}
	}
	if h.file == nil {
		return errors.New("the log is closed")
	}
	if h.limit.Size > 0 && h.size > 0 && h.size+int64(buf.Len()) > int64(h.limit.Size) {
		if err := h.rotate(); err != nil {
			return err
		}
	}
	n, err := h.file.Write(buf.Bytes())
	if err != nil && n > 0 { // a full disk: no half lines
		err = errors.Join(err, h.file.Truncate(h.size))
		n = 0
	}
	h.size += int64(n)
	if h.grown != nil {
		close(h.grown)
		h.grown = nil
	}
	return err
}

// rotate moves LOG to LOG.1 and so on, keeping limit.Files files. The caller holds mu.
func (h *hub) rotate() error {
	path := h.file.Name()
	files := max(h.limit.Files, 1)
	if files == 1 {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	for i := files - 1; i >= 1; i-- {
		from := path
		if i > 1 {
			from = rotated(path, i-1)
		}
		if err := os.Rename(from, rotated(path, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, logMode)
	if err != nil {
		return err
	}
	h.file.Close()
	h.file, h.size = f, 0
	return nil
}

func rotated(path string, i int) string { return fmt.Sprintf("%s.%d", path, i) }

// join adds a client; from the returned log size on, it misses nothing.
func (h *hub) join() (*sink, int64) {
	k := &sink{frames: make(chan guest.Frame, 16), left: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sinks == nil {
		h.sinks = map[*sink]struct{}{}
	}
	h.sinks[k] = struct{}{}
	return k, h.size
}

// leave takes a client away; keep no longer waits for it.
func (h *hub) leave(k *sink) {
	h.mu.Lock()
	delete(h.sinks, k)
	h.mu.Unlock()
	close(k.left)
}

// finish tells every client that the run's output is complete. Only after the last keep of a run.
func (h *hub) finish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.sinks {
		close(k.frames)
	}
	h.sinks = nil
	if h.grown != nil {
		close(h.grown)
		h.grown = nil
	}
}

// end is finish for a container that is gone.
func (h *hub) end() { h.finish() }

// more returns a channel that is closed at the next write.
func (h *hub) more() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.grown == nil {
		h.grown = make(chan struct{})
	}
	return h.grown
}

// Logs is portlayer.Containers.Logs.
func (s *Service) Logs(ctx context.Context, ref string, o portlayer.LogOptions, emit func(portlayer.LogEntry) error) error {
	u, err := s.find(ref)
	if err != nil {
		return err
	}
	if u.snapshot().container.Spec.LogMax.None {
		return portlayer.ErrNoLog
	}
	want := map[guest.Stream]bool{guest.Stdout: o.Stdout, guest.Stderr: o.Stderr}
	pick := func(e portlayer.LogEntry) bool {
		return want[e.Stream] && (o.Since.IsZero() || !e.Time.Before(o.Since)) && (o.Until.IsZero() || !e.Time.After(o.Until))
	}
	send := func(e portlayer.LogEntry) error {
		if pick(e) {
			return emit(e)
		}
		return nil
	}
	// What is there now; with a tail, only its last lines are kept on the way.
	var tail []portlayer.LogEntry
	first := send
	if o.Tail >= 0 {
		first = func(e portlayer.LogEntry) error {
			if pick(e) && o.Tail > 0 {
				if len(tail) == o.Tail {
					copy(tail, tail[1:])
					tail = tail[:o.Tail-1]
				}
				tail = append(tail, e)
			}
			return nil
		}
	}
	r := &logReader{path: s.logPath(u.snapshot().container.ID)}
	defer r.close()
	running := u.snapshot().run != nil
	if err := r.read(ctx, first); err != nil {
		return err
	}
	if !running || !o.Follow { // nobody will finish a line that is open now
		if err := r.flush(first); err != nil {
			return err
		}
	}
	for _, e := range tail {
		if err := emit(e); err != nil {
			return err
		}
	}
	if !o.Follow || !running {
		return nil
	}
	if !o.Until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, o.Until)
		defer cancel()
	}
	for {
		more, snap := u.hub.more(), u.snapshot()
		if err := r.read(ctx, send); err != nil {
			return err
		}
		if snap.run == nil || snap.gone {
			return r.flush(send)
		}
		select {
		case <-more:
		case <-snap.changed:
		case <-ctx.Done():
			if !o.Until.IsZero() && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return r.flush(send)
			}
			return ctx.Err()
		case <-s.ctx.Done():
			return nil
		}
	}
}

// logReader reads a log through its rotations, putting pieces of a line together again.
type logReader struct {
	path string
	file *os.File
	br   *bufio.Reader
	half []byte // of a JSON line that is still being written
	open map[guest.Stream]*portlayer.LogEntry
}

func (r *logReader) close() {
	if r.file != nil {
		r.file.Close()
	}
}

// read hands on every whole line up to the present end of the log.
func (r *logReader) read(ctx context.Context, emit func(portlayer.LogEntry) error) error {
	if r.file == nil {
		// Oldest first: the rotated files that are there, then the log itself.
		oldest := 0
		for {
			if _, err := os.Stat(rotated(r.path, oldest+1)); err != nil {
				break
			}
			oldest++
		}
		for i := oldest; i >= 1; i-- {
			if f, err := os.Open(rotated(r.path, i)); err == nil {
				r.use(f)
				if err := r.lines(ctx, emit); err != nil {
					return err
				}
			}
		}
		f, err := os.Open(r.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // never started
		}
		if err != nil {
			return err
		}
		r.use(f)
	}
	for {
		if err := r.lines(ctx, emit); err != nil {
			return err
		}
		next, err := os.Open(r.path)
		if err != nil {
			return nil // removed meanwhile
		}
		a, err1 := r.file.Stat()
		b, err2 := next.Stat()
		if err := errors.Join(err1, err2); err != nil {
			next.Close()
			return err
		}
		if os.SameFile(a, b) {
			next.Close()
			return nil
		}
		// Rotated: what was written between the last read and the rotation, then the new file.
		if err := r.lines(ctx, emit); err != nil {
			next.Close()
			return err
		}
		r.use(next)
	}
}

func (r *logReader) use(f *os.File) {
	r.close()
	r.file, r.br, r.half = f, bufio.NewReaderSize(f, 64<<10), nil
}

func (r *logReader) lines(ctx context.Context, emit func(portlayer.LogEntry) error) error {
	for {
		data, err := r.br.ReadBytes('\n')
		r.half = append(r.half, data...)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		var l logLine
		bad := json.Unmarshal(r.half, &l)
		r.half = r.half[:0]
		if bad != nil {
			continue // a torn line of a power cut
		}
		if err := r.add(l, emit); err != nil {
			return err
		}
	}
}

// add puts l to the open line of its stream and emits that when it is whole, or long.
func (r *logReader) add(l logLine, emit func(portlayer.LogEntry) error) error {
	data := l.Raw
	if data == nil {
		data = []byte(l.Log)
	}
	if len(data) == 0 {
		return nil
	}
	stream := guest.Stdout
	if l.Stream == streamName[guest.Stderr] {
		stream = guest.Stderr
	}
	if r.open == nil {
		r.open = map[guest.Stream]*portlayer.LogEntry{}
	}
	e := r.open[stream]
	if e == nil {
		e = &portlayer.LogEntry{Time: l.Time, Stream: stream}
		r.open[stream] = e
	}
	e.Data = append(e.Data, data...)
	if data[len(data)-1] != '\n' && len(e.Data) < maxLine {
		return nil
	}
	delete(r.open, stream)
	return emit(*e)
}

// flush emits the lines that never got their end.
func (r *logReader) flush(emit func(portlayer.LogEntry) error) error {
	for _, stream := range []guest.Stream{guest.Stdout, guest.Stderr} {
		if e := r.open[stream]; e != nil {
			delete(r.open, stream)
			if err := emit(*e); err != nil {
				return err
			}
		}
	}
	return nil
}
