package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vch/internal/nfsclient/nfstest"
)

const nfsUsage = "nfs start [v3|both|ro|root_squash|all_squash|privileged|grace|lease=SECONDS…] | kill | restart | stop | continue"

// scriptTB is as much of a test as a server of a script needs.
type scriptTB struct {
	testing.TB
	ts *testscript.TestScript
	s  *script
}

func (b scriptTB) Helper()                         {}
func (b scriptTB) Failed() bool                    { return false }
func (b scriptTB) Fatal(args ...any)               { b.ts.Fatalf("%s", fmt.Sprint(args...)) }
func (b scriptTB) Fatalf(text string, args ...any) { b.ts.Fatalf(text, args...) }
func (b scriptTB) Skip(args ...any)                { b.Fatal(args...) }
func (b scriptTB) Skipf(text string, args ...any)  { b.ts.Fatalf(text, args...) }
func (b scriptTB) Logf(text string, args ...any)   { b.ts.Logf(text, args...) }
func (b scriptTB) Cleanup(do func())               { b.s.last = append(b.s.last, do) }
func (b scriptTB) TempDir() string {
	dir, err := os.MkdirTemp("", "nfs")
	b.ts.Check(err)
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func nfsCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, nfsUsage)
	s := of(ts)
	if args[0] == "start" {
		var c nfstest.Config
		for _, word := range args[1:] {
			name, value, _ := strings.Cut(word, "=")
			switch name {
			case "v3":
				c.V3 = true
			case "both":
				c.V3, c.Both = true, true
			case "ro":
				c.ReadOnly = true
			case "root_squash", "all_squash":
				c.Squash = word
			case "privileged":
				c.Privileged = true
			case "grace":
				c.Grace = true
			case "lease":
				n, err := strconv.Atoi(value)
				ts.Check(err)
				c.Lease = time.Duration(n) * time.Second
			default:
				ts.Fatalf("usage: %s", nfsUsage)
			}
		}
		s.nfs = nfstest.Start(scriptTB{ts: ts, s: s}, c)
		if c.V3 { // the daemon has to be where the server is
			if s.host != s.world.shared && s.host.running() {
				ts.Fatalf("nfs start v3 comes before daemon start")
			}
			if s.host == s.world.shared {
				s.host = newHost(s.world)
				s.host.setenv(ts.Setenv)
			}
			s.host.near = s.nfs.Namespace()
			ts.Setenv("NFSNS", s.nfs.Namespace())
		}
		ts.Setenv("NFS", fmt.Sprintf("%s:%d%s", s.nfs.Host, s.nfs.Port, s.nfs.Path))
		ts.Setenv("NFSDIR", s.nfs.Dir)
		ts.Setenv("NFSPORT", strconv.Itoa(s.nfs.Port))
		ts.Setenv("MOUNTPORT", strconv.Itoa(s.nfs.MountPort))
		return
	}
	usage(ts, len(args) == 1 && s.nfs != nil, nfsUsage)
	switch args[0] {
	case "kill":
		s.nfs.Kill()
	case "restart":
		s.nfs.Restart()
	case "stop":
		s.nfs.Stop()
	case "continue":
		s.nfs.Continue()
	default:
		ts.Fatalf("usage: %s", nfsUsage)
	}
}
