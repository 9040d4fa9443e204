package personality

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
)

// patience bounds every wait for what must come.
const patience = 30 * time.Second

// hijacked is a connection that a request turned into a stream.
type hijacked struct {
	*net.UnixConn
	r        *bufio.Reader
	response *http.Response
}

// hijack sends a request by hand and reads the answer's head; upgrade asks for 101.
func (w *world) hijack(path, body string, upgrade bool) hijacked {
	w.t.Helper()
	conn, err := net.Dial("unix", w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		w.t.Fatal(err)
	}
	r, err := http.NewRequest("POST", "http://docker"+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if upgrade {
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", "tcp")
	}
	if err := r.Write(conn); err != nil {
		w.t.Fatal(err)
	}
	h := hijacked{UnixConn: conn.(*net.UnixConn), r: bufio.NewReader(conn)}
	if h.response, err = http.ReadResponse(h.r, r); err != nil {
		w.t.Fatal(err)
	}
	return h
}

// split reads to the end of a stream without a TTY.
func (h hijacked) split(t *testing.T) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, h.r); err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String()
}

func (h hijacked) all(t *testing.T) string {
	t.Helper()
	data, err := io.ReadAll(h.r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (h hijacked) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(h, text); err != nil {
		t.Fatal(err)
	}
}

func TestContainerAttach(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")

	t.Run("before the start, both outputs", func(t *testing.T) {
		w.create("both", "", "sh", "-c", "echo out; echo err >&2; exit 3")
		h := w.hijack("/v1.50/containers/both/attach?stream=1&stdout=1&stderr=1", "", true)
		if h.response.StatusCode != http.StatusSwitchingProtocols || h.response.Header.Get("Content-Type") != "application/vnd.docker.multiplexed-stream" || h.response.Header.Get("Upgrade") != "tcp" || h.response.Header.Get("Api-Version") != "1.50" {
			t.Errorf("%s %v", h.response.Status, h.response.Header)
		}
		w.ask(nil, "POST", "/containers/both/start", "")
		if out, errs := h.split(t); out != "out\n" || errs != "err\n" {
			t.Errorf("%q, %q", out, errs)
		}
		// What was, without what comes.
		if out, errs := w.hijack("/containers/both/attach?logs=1&stdout=1&stderr=1", "", true).split(t); out != "out\n" || errs != "err\n" {
			t.Errorf("replay: %q, %q", out, errs)
		}
		if out, errs := w.hijack("/containers/both/attach?logs=1&stderr=1", "", true).split(t); out != "" || errs != "err\n" {
			t.Errorf("replay of stderr: %q, %q", out, errs)
		}
	})
	t.Run("an old client, without an upgrade", func(t *testing.T) {
		w.create("old", "", "echo", "hi")
		h := w.hijack("/v1.41/containers/old/attach?stream=1&stdout=1", "", false)
		if h.response.StatusCode != http.StatusOK || h.response.Header.Get("Content-Type") != "application/vnd.docker.raw-stream" {
			t.Errorf("%s %v", h.response.Status, h.response.Header)
		}
		w.ask(nil, "POST", "/containers/old/start", "")
		if out, _ := h.split(t); out != "hi\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("the end of the input ends the process", func(t *testing.T) {
		w.create("cat", `"OpenStdin":true,"StdinOnce":true`, "cat")
		h := w.hijack("/containers/cat/attach?stream=1&stdin=1&stdout=1&stderr=1", "", true)
		w.ask(nil, "POST", "/containers/cat/start", "")
		text := strings.Repeat("all that goes in comes out\n", 20_000)
		go func() { // ends with the write or with the connection
			if _, err := io.WriteString(h, text); err == nil {
				err = h.CloseWrite()
				if err != nil {
					t.Error(err)
				}
			}
		}()
		if out, _ := h.split(t); out != text {
			t.Errorf("%d bytes of %d came back", len(out), len(text))
		}
		if code := w.exit("cat"); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("the detach keys leave the container running", func(t *testing.T) {
		w.run("term", `"Tty":true,"OpenStdin":true`, "cat")
		for keys, typed := range map[string]string{"": "\x10\x11", "ctrl-x,z": "\x18z"} {
			h := w.hijack("/containers/term/attach?stream=1&stdin=1&stdout=1&stderr=1&detachKeys="+keys, "", true)
			if ct := h.response.Header.Get("Content-Type"); ct != "application/vnd.docker.raw-stream" {
				t.Errorf("content type %s", ct)
			}
			h.send(t, "hello\n")
			line, err := h.r.ReadString('\n')
			if err != nil || line != "hello\n" {
				t.Fatalf("%q, %v", line, err)
			}
			h.send(t, typed)
			if rest := h.all(t); rest != "" {
				t.Errorf("after detaching: %q", rest)
			}
			if !w.inspect("term").State.Running {
				t.Fatal("the container has ended")
			}
		}
	})
	t.Run("a client that leaves does not end the container", func(t *testing.T) {
		w.run("stays", `"OpenStdin":true`, "cat")
		first := w.hijack("/containers/stays/attach?stream=1&stdin=1&stdout=1", "", true)
		first.send(t, "one\n")
		if err := first.UnixConn.Close(); err != nil {
			t.Fatal(err)
		}
		second := w.hijack("/containers/stays/attach?stream=1&stdin=1&stdout=1", "", true)
		second.send(t, "two\n")
		header := make([]byte, streamHeader)
		for said := ""; !strings.HasSuffix(said, "two\n"); {
			if _, err := io.ReadFull(second.r, header); err != nil {
				t.Fatal(err)
			}
			piece := make([]byte, header[7])
			if _, err := io.ReadFull(second.r, piece); err != nil {
				t.Fatal(err)
			}
			said += string(piece)
		}
	})
	w.refused(http.StatusNotFound, "No such container: gone", "POST", "/containers/gone/attach?stream=1", "")
	w.refused(http.StatusBadRequest, "Invalid detach keys (no)", "POST", "/containers/both/attach?stream=1&detachKeys=no", "")
}

func TestContainerWait(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.refused(http.StatusBadRequest, `invalid condition: "soon"`, "POST", "/containers/x/wait?condition=soon", "")
	w.refused(http.StatusNotFound, "No such container: gone", "POST", "/containers/gone/wait", "")
	for _, c := range []struct{ name, condition, more string }{
		{"next", "next-exit", ""},
		{"removed", "removed", `"HostConfig":{"AutoRemove":true}`},
	} {
		w.create(c.name, c.more, "exit", "7")
		// The head of the answer comes at once: the CLI starts the container upon it.
		h := w.hijack("/containers/"+c.name+"/wait?condition="+c.condition, "", false)
		if h.response.StatusCode != http.StatusOK {
			t.Fatal(h.response.Status)
		}
		w.ask(nil, "POST", "/containers/"+c.name+"/start", "")
		var end container.WaitResponse
		if err := json.NewDecoder(h.response.Body).Decode(&end); err != nil || end.StatusCode != 7 || end.Error != nil {
			t.Errorf("%s: %+v, %v", c.condition, end, err)
		}
	}
	if code := w.exit("next"); code != 7 {
		t.Errorf("not-running, of one that has ended: %d", code)
	}
	w.refused(http.StatusNotFound, "No such container", "GET", "/containers/removed/json", "")
}

func TestContainerLogs(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("job", "", "sh", "-c", "echo one; echo two >&2; echo three")
	w.exit("job")
	logs := func(query string) (stdout, stderr string) {
		t.Helper()
		return w.hijackGet("/containers/job/logs?" + query).split(t)
	}
	for query, want := range map[string][2]string{
		"stdout=1&stderr=1":                       {"one\nthree\n", "two\n"},
		"stdout=1":                                {"one\nthree\n", ""},
		"stderr=1":                                {"", "two\n"},
		"stdout=1&tail=1":                         {"three\n", ""}, // two streams have no order between them
		"stdout=1&stderr=1&tail=all":              {"one\nthree\n", "two\n"},
		"stdout=1&stderr=1&tail=0":                {"", ""},
		"stdout=1&stderr=1&follow=1":              {"one\nthree\n", "two\n"},
		"stdout=1&details=1":                      {" one\n three\n", ""},
		"stdout=1&since=4000000000.5":             {"", ""},
		"stdout=1&until=1000000000":               {"", ""},
		"stdout=1&since=0&until=4000000000.000":   {"one\nthree\n", ""},
		"stdout=1&since=1000000000.123456789&x=y": {"one\nthree\n", ""},
	} {
		if out, errs := logs(query); out != want[0] || errs != want[1] {
			t.Errorf("%s: %q, %q; want %q", query, out, errs, want)
		}
	}
	out, _ := logs("stdout=1&timestamps=1")
	for _, line := range strings.Split(strings.TrimSuffix(out, "\n"), "\n") {
		at, text, _ := strings.Cut(line, " ")
		if _, err := time.Parse(logTime, at); err != nil || len(at) != len("2026-11-24T20:00:00.000000000Z") || text != "one" && text != "three" {
			t.Errorf("%q: %v", line, err)
		}
	}
	h := w.hijackGet("/v1.41/containers/job/logs?stdout=1")
	if ct := h.response.Header.Get("Content-Type"); ct != "application/vnd.docker.raw-stream" {
		t.Errorf("1.41: content type %s", ct)
	}
	w.refused(http.StatusBadRequest, "you must choose at least one stream", "GET", "/containers/job/logs", "")
	w.refused(http.StatusBadRequest, "since", "GET", "/containers/job/logs?stdout=1&since=soon", "")
	w.refused(http.StatusNotFound, "No such container: gone", "GET", "/containers/gone/logs?stdout=1", "")

	// A follower sees what comes, and the end. A terminal's output is as it was.
	w.run("term", `"Tty":true,"OpenStdin":true`, "cat")
	follow := w.hijackGet("/containers/term/logs?stdout=1&follow=1")
	keyboard := w.hijack("/containers/term/attach?stream=1&stdin=1", "", true)
	keyboard.send(t, "typed\n")
	if line, err := follow.body.ReadString('\n'); line != "typed\n" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	w.ask(nil, "POST", "/containers/term/kill", "")
	if rest, err := io.ReadAll(follow.body); err != nil || len(rest) > 0 {
		t.Errorf("the rest: %q, %v", rest, err)
	}
}

// answered is a GET whose body is read as it comes.
type answered struct {
	response *http.Response
	body     *bufio.Reader
}

func (w *world) hijackGet(path string) answered {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), "GET", "http://docker"+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	response, err := w.http.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { response.Body.Close() })
	if response.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: %s", path, response.Status)
	}
	return answered{response, bufio.NewReader(response.Body)}
}

func (a answered) split(t *testing.T) (stdout, stderr string) {
	t.Helper()
	return hijacked{r: a.body}.split(t)
}
