package personality

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"vch/guest"
	"vch/internal/fault"
)

func (w *world) exec(ref, body string) string {
	w.t.Helper()
	var made container.ExecCreateResponse
	w.ask(&made, "POST", "/containers/"+ref+"/exec", body)
	return made.ID
}

func (w *world) execInspect(id string) container.ExecInspectResponse {
	w.t.Helper()
	var x container.ExecInspectResponse
	w.ask(&x, "GET", "/exec/"+id+"/json", "")
	return x
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("web", `"User":"app"`, "sleep", "1000")

	id := w.exec("web", `{"AttachStdout":true,"AttachStderr":true,"Cmd":["sh","-c","echo out; echo err >&2; exit 5"]}`)
	if x := w.execInspect(id); x.Running || x.ExitCode != nil || x.ContainerID != w.inspect("web").ID || x.ProcessConfig.Entrypoint != "sh" || len(x.ProcessConfig.Arguments) != 2 || !x.OpenStdout || x.OpenStdin || x.ProcessConfig.User != "app" {
		t.Errorf("before: %+v %+v", x, x.ProcessConfig)
	}
	h := w.hijack("/exec/"+id+"/start", `{"Detach":false,"Tty":false}`, true)
	if h.response.StatusCode != http.StatusSwitchingProtocols || h.response.Header.Get("Content-Type") != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("%s %v", h.response.Status, h.response.Header)
	}
	if out, errs := h.split(t); out != "out\n" || errs != "err\n" {
		t.Errorf("%q, %q", out, errs)
	}
	if x := w.execInspect(id); x.Running || x.ExitCode == nil || *x.ExitCode != 5 {
		t.Errorf("after: %+v", x)
	}
	w.refused(http.StatusConflict, "has already run", "POST", "/exec/"+id+"/start", `{}`)

	t.Run("input", func(t *testing.T) {
		id := w.exec("web", `{"AttachStdin":true,"AttachStdout":true,"Cmd":["cat"]}`)
		h := w.hijack("/exec/"+id+"/start", `{}`, true)
		h.send(t, "through\n")
		if err := h.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if out, _ := h.split(t); out != "through\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("a terminal, and leaving it", func(t *testing.T) {
		id := w.exec("web", `{"AttachStdin":true,"AttachStdout":true,"Tty":true,"DetachKeys":"ctrl-x","ConsoleSize":[10,20],"Cmd":["cat"]}`)
		h := w.hijack("/exec/"+id+"/start", `{"Tty":true,"ConsoleSize":[30,40]}`, true)
		if ct := h.response.Header.Get("Content-Type"); ct != "application/vnd.docker.raw-stream" {
			t.Errorf("content type %s", ct)
		}
		h.send(t, "typed\n")
		if line, err := h.r.ReadString('\n'); line != "typed\n" || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
		h.send(t, "\x18")
		if rest := h.all(t); rest != "" {
			t.Errorf("after detaching: %q", rest)
		}
	})
	t.Run("detached", func(t *testing.T) {
		id := w.exec("web", `{"Cmd":["sleep","1000"]}`)
		w.ask(nil, "POST", "/exec/"+id+"/start", `{"Detach":true}`)
		if x := w.execInspect(id); !x.Running || x.Pid == 0 || x.ExitCode != nil {
			t.Errorf("%+v", x)
		}
		if c := w.inspect("web"); !slices.Contains(c.ExecIDs, id) {
			t.Errorf("%s is not among %v", id, c.ExecIDs)
		}
	})
	t.Run("what is not there", func(t *testing.T) {
		id := w.exec("web", `{"AttachStdout":true,"AttachStderr":true,"Cmd":["nosuch"]}`)
		if _, errs := w.hijack("/exec/"+id+"/start", `{}`, true).split(t); !strings.Contains(errs, "executable file not found") {
			t.Errorf("said %q", errs)
		}
		if x := w.execInspect(id); x.ExitCode == nil || *x.ExitCode != 127 {
			t.Errorf("%+v", x)
		}
		id = w.exec("web", `{"Cmd":["nosuch"]}`)
		w.refused(http.StatusBadRequest, "executable file not found", "POST", "/exec/"+id+"/start", `{"Detach":true}`)
	})
	w.create("idle", "", "true")
	w.refused(http.StatusConflict, "is not running", "POST", "/containers/idle/exec", `{"Cmd":["true"]}`)
	w.refused(http.StatusNotFound, "No such container: gone", "POST", "/containers/gone/exec", `{"Cmd":["true"]}`)
	w.refused(http.StatusBadRequest, "No exec command specified", "POST", "/containers/web/exec", `{"Cmd":[]}`)
	w.refused(http.StatusBadRequest, "Invalid detach keys", "POST", "/containers/web/exec", `{"Cmd":["true"],"DetachKeys":"?!"}`)
	w.refused(http.StatusNotFound, "No such exec instance: gone", "POST", "/exec/gone/start", `{}`)
	w.refused(http.StatusNotFound, "No such exec instance: gone", "GET", "/exec/gone/json", "")
}

func TestExecResize(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("web", "", "sleep", "1000")
	id := w.exec("web", `{"Tty":true,"Cmd":["sleep","1000"]}`)
	w.ask(nil, "POST", "/exec/"+id+"/start", `{"Detach":true}`)
	w.ask(nil, "POST", "/exec/"+id+"/resize?h=30&w=100", "")
	w.refused(http.StatusBadRequest, "h must be", "POST", "/exec/"+id+"/resize?h=-1&w=100", "")
	w.refused(http.StatusNotFound, "No such exec instance: gone", "POST", "/exec/gone/resize?h=3&w=1", "")
}

// What an exec does not say is as the container's own process has it.
func TestExecProcess(t *testing.T) {
	main := guest.Process{Args: []string{"sleep"}, Env: []string{"A=1", "B=2", "C=3"}, Cwd: "/srv", User: "app", Groups: []string{"audio"}, Capabilities: []string{"CAP_KILL"}, NoNewPrivs: true, OOMScoreAdj: 3, TTY: true, Stdin: true}
	p, err := execProcess(container.ExecCreateRequest{Cmd: []string{"ls"}}, main)
	if err != nil || p.Cwd != "/srv" || p.User != "app" || !slices.Equal(p.Env, main.Env) || !slices.Equal(p.Capabilities, main.Capabilities) || !p.NoNewPrivs || p.OOMScoreAdj != 3 || !slices.Equal(p.Groups, main.Groups) || p.TTY || p.Stdin || !slices.Equal(p.Args, []string{"ls"}) {
		t.Errorf("%+v, %v", p, err)
	}
	p, err = execProcess(container.ExecCreateRequest{Cmd: []string{"ls"}, Env: []string{"B=two", "D=4", "C"}, WorkingDir: "/", User: "0", Privileged: true, Tty: true, AttachStdin: true, ConsoleSize: &[2]uint{30, 100}}, main)
	if err != nil || p.Cwd != "/" || p.User != "0" || !slices.Equal(p.Env, []string{"A=1", "B=two", "D=4"}) || len(p.Capabilities) != len(allCapabilities) || !p.TTY || !p.Stdin || p.Rows != 30 || p.Cols != 100 {
		t.Errorf("%+v, %v", p, err)
	}
	for _, req := range []container.ExecCreateRequest{{Cmd: []string{"ls"}, WorkingDir: "rel"}, {Cmd: []string{"ls"}, Env: []string{"=x"}}} {
		if _, err := execProcess(req, main); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", req, err)
		}
	}
}
