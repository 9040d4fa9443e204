package crash

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// vch runs the command vch against the host's daemon.
func (h *host) vch(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(built.dir, "vch"), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.dir+"/s")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A daemon killed at any step of an attach or a detach leaves the container as it was, or, once that is on record, as it was to be: by inspect and by what the
// container itself sees. The next attach and detach work, and nothing that was written is lost.
func TestAttachAndDetachKilledAtEveryStep(t *testing.T) {
	h := newHost(t)
	h.docker("run", "-d", "--name", "con", "box", "sh", "-c", "busybox sleep 100000")
	h.docker("volume", "create", "data")
	want := "" // what was written so far
	is := func(attached bool) {
		h.t.Helper()
		inspected := strings.TrimSpace(h.docker("container", "inspect", "--format", "{{range .Mounts}}{{.Destination}}{{end}}", "con"))
		if (inspected == "/d") != attached {
			h.t.Errorf("inspect shows mounts %q", inspected)
		}
	}
	do := func(args ...string) {
		h.t.Helper()
		if out, err := h.vch(append([]string{"volume"}, args...)...); err != nil {
			h.t.Errorf("vch volume %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	for _, c := range []struct {
		point              string
		attach, afterwards bool
	}{
		{"change.journal", true, false}, {"change.plug", true, false}, {"change.mount", true, false}, {"change.record", true, false}, {"change.recorded", true, true},
		{"change.journal", false, true}, {"change.unplug", false, true}, {"change.record", false, true}, {"change.recorded", false, false},
	} {
		name := "detach "
		if c.attach {
			name = "attach "
		}
		t.Run(name+c.point, func(t *testing.T) {
			h.t = t
			if !c.attach {
				do("attach", "con", "data:/d")
			}
			h.kill()
			h.up(c.point + "=exit")
			cut := []string{"volume", "detach", "con", "/d"}
			if c.attach {
				cut = []string{"volume", "attach", "con", "data:/d"}
			}
			if out, err := h.vch(cut...); err == nil {
				t.Fatalf("vch answered: %s", out)
			}
			h.died()
			h.up("")
			is(c.afterwards)
			// What is on record is true once the next change was asked for: it comes after what was cut off.
			do("attach", "con", "other:/o")
			do("detach", "con", "/o")
			mounted := strings.Contains(h.docker("exec", "con", "busybox", "cat", "/proc/mounts"), " /d ext4 rw")
			if mounted != c.afterwards {
				t.Errorf("mounted in the guest: %v", mounted)
			}
			if !c.afterwards {
				do("attach", "con", "data:/d")
			}
			h.docker("exec", "con", "busybox", "sh", "-c", "busybox echo "+t.Name()+" >>/d/f")
			want += t.Name() + "\n"
			do("detach", "con", "/d")
			is(false)
			if got := h.docker("run", "--rm", "-v", "data:/d:ro", "box", "busybox", "cat", "/d/f"); got != want {
				t.Errorf("the volume holds %q, not %q", got, want)
			}
		})
	}
	h.t = t
	h.docker("rm", "-f", "con")
	h.docker("volume", "rm", "data", "other")
	if got, want := h.left(), "containers[] volumes[] machines[] store[] processes[]"; got != want {
		t.Errorf("left %s", got)
	}
}
