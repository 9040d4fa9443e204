package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// What is decoded encodes to the same bytes, and nothing is read beyond them.
func FuzzReadMessage(f *testing.F) {
	var whole bytes.Buffer
	_ = writeMessage(&whole, msgFrame, encodeFrame(Frame{Number: 3, Stream: Stderr, Data: []byte("data")}))
	f.Add(whole.Bytes())
	f.Add(whole.Bytes()[:7])
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 'f'})
	f.Add([]byte{0, 0x80, 0, 1, 'q', '{'})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		kind, body, err := readMessage(r)
		if err != nil {
			if len(data) >= 5 && int64(binary.BigEndian.Uint32(data)) <= int64(len(data)-5) && len(data)-5 <= maxMessage {
				t.Fatalf("a whole message is refused: %v", err)
			}
			return
		}
		var again bytes.Buffer
		if err := writeMessage(&again, kind, body); err != nil {
			t.Fatal(err)
		}
		if used := data[:len(data)-r.Len()]; !bytes.Equal(used, again.Bytes()) {
			t.Fatalf("read %x, wrote %x", used, again.Bytes())
		}
	})
}

func FuzzDecodeFrame(f *testing.F) {
	f.Add(encodeFrame(Frame{Number: 1, Stream: Stdout, Data: []byte("x")}))
	f.Add(encodeFrame(Frame{Number: 1<<64 - 1, Stream: Stderr}))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := decodeFrame(data)
		if err != nil {
			return
		}
		if !bytes.Equal(encodeFrame(frame), data) {
			t.Fatalf("%x became %+v", data, frame)
		}
	})
}

// Whatever was in the pipe, as long as no hello is cut off in it, the one that follows is found, and nothing after it is taken.
func FuzzScanHello(f *testing.F) {
	f.Add([]byte{}, []byte("after"))
	f.Add([]byte("\xf5vch\xfahi"), []byte{0})
	f.Add(hello(Version, "stale"), []byte{})
	f.Fuzz(func(t *testing.T, stale, after []byte) {
		mine := hello(Version, "mine")
		if bytes.Contains(stale, mine) {
			return
		}
		r := bytes.NewReader(append(append(append([]byte{}, stale...), mine...), after...))
		err := scanHello(r, func(v byte, nonce []byte) bool { return v == Version && bytes.Equal(nonce, mine[9:]) })
		if err != nil {
			t.Fatal(err)
		}
		if rest, _ := io.ReadAll(r); !bytes.Equal(rest, after) {
			t.Fatalf("left %x, want %x", rest, after)
		}
	})
}

// A guest outlives whatever a host sends, in the hello, in the session and in the calls.
func FuzzServe(f *testing.F) {
	f.Add([]byte("no hello"))
	f.Add(hello(Version, "only"))
	frame := func(kind, flags byte, stream uint32, body []byte) []byte { // yamux
		b := []byte{0, kind, 0, flags}
		b = binary.BigEndian.AppendUint32(b, stream)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(body))), body...)
	}
	call := func(body string) []byte {
		var m bytes.Buffer
		_ = writeMessage(&m, msgRequest, []byte(body))
		return append(hello(Version, "h"), frame(0, 1, 1, m.Bytes())...)
	}
	f.Add(call(`{"op":"status"}`))
	f.Add(call(`{"op":"output","body":-1}`))
	f.Add(call(`{"op":"configure","body":{"id":1}}`))
	f.Add(call(`{"op":"mount","body":{"source":"label://x","target":"/data"}}`))
	f.Add(call(`{"op":"unmount","body":{"target":7}}`))
	f.Add(call(`{"op":"freeze","body":{"source":"label://x","limit":-1}}`))
	f.Add(call(`{"op":"grow","body":{"size":"x"}}`))
	f.Add(append(call(`{"op":"exec","body":{"process":{"args":["run"]}}}`), frame(0, 0, 1, []byte{0, 0, 0, 1, msgFrame, 0})...))
	f.Add(append(call(`{"op":"stdin"}`), frame(0, 0, 1, []byte{0xff, 0xff, 0xff, 0xff, msgData})...))
	f.Add(call(`{"op":"stat","body":{"path":"gone","apart":["x"]}}`))
	f.Add(call(`{"op":"archive","body":{"path":"9","name":"n","skip":["/"]}}`))
	f.Add(append(call(`{"op":"extract","body":{"path":"p"}}`), frame(0, 0, 1, []byte{0, 0, 0, 1, msgData, 'x', 0, 0, 0, 0, msgEOF})...))
	f.Add(append(call(`{"op":"extract","body":{"owner":{"uid":-1}}}`), frame(0, 0, 1, []byte{0, 0, 0, 1, msgAck, 'x'})...))
	f.Add(append(call(`{"op":"output","body":0}`), frame(0, 0, 1, []byte{0, 0, 0, 2, msgAck, 0, 0})...))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		served := make(chan struct{})
		h := newHandler()
		h.wrote(Stdout, []byte("x"), true)
		go func() { defer close(served); _ = Serve(context.Background(), theirs, quiet{h}); theirs.Close() }()
		_ = ours.SetDeadline(time.Now().Add(5 * time.Second))
		go func() { _, _ = io.Copy(io.Discard, ours) }()
		_, _ = ours.Write(data)
		ours.Close()
		select {
		case <-served:
		case <-time.After(10 * time.Second):
			t.Fatal("the guest hangs on a host that is gone")
		}
	})
}

// quiet is a handler that takes a stdin as often as it is asked, and an exec without arguments.
type quiet struct{ *handler }

func (quiet) Stdin() (io.WriteCloser, error) { return nopCloser{io.Discard}, nil }

func (quiet) Exec(_ context.Context, _ string, _ Process, stdin io.Reader, started func(int), _ func(Stream, []byte) error) (Exit, error) {
	started(1)
	_, err := io.Copy(io.Discard, stdin)
	return Exit{}, err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// A host outlives whatever a guest answers.
func FuzzReadAnswer(f *testing.F) {
	f.Add(msgAnswer, []byte(`{}`))
	f.Add(msgAnswer, []byte(`{"fault":{"kind":"in use","text":"t"}}`))
	f.Add(msgAnswer, []byte(`{"fault":{"kind":"no such kind"}}`))
	f.Add(msgAnswer, []byte(`{"body":{"phase":3}}`))
	f.Add(msgStatus, []byte(`null`))
	f.Fuzz(func(t *testing.T, kind byte, body []byte) {
		var st Status
		if err := readAnswer(kind, body, &st); err == nil && kind != msgAnswer {
			t.Fatalf("message %q was taken for an answer", kind)
		}
	})
}

// A length alone costs no memory: neither one that is refused nor one that is allowed and then not delivered.
func TestLengthAllocatesNothing(t *testing.T) {
	for _, n := range []uint32{maxMessage, maxMessage + 1, 1<<32 - 1} {
		head := append(binary.BigEndian.AppendUint32(nil, n), msgFrame, 'x')
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := readMessage(bytes.NewReader(head))
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("length %d: no error", n)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 64<<10 {
			t.Errorf("length %d: %d bytes were allocated", n, took)
		}
	}
}
