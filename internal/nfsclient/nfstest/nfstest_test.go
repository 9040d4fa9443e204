package nfstest

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Servers side by side, of every kind, that stop, die and come back at the same ports, and leave no process.
func TestServers(t *testing.T) {
	for name, config := range map[string]Config{
		"v4": {}, "v4 again": {ReadOnly: true, Squash: "Root_Squash"}, "v3": {V3: true}, "v3 again": {V3: true, Privileged: true}, "both": {V3: true, Both: true, Lease: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own, err := os.Readlink("/proc/thread-self/ns/net")
			if err != nil {
				t.Fatal(err)
			}
			s := Start(t, config)
			pids := []int{s.server.Process.Pid}
			if s.holder != nil {
				pids = append(pids, s.holder.Process.Pid)
			}
			t.Cleanup(func() { // runs first, while they are there: ends them, and looks
				s.Kill()
				if alive(pids[0]) {
					t.Error("Ganesha outlives Kill")
				}
			})
			port := s.Port
			s.Stop()
			s.Continue()
			s.Kill()
			s.Kill()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if c, err := s.Dial(ctx, "tcp", net.JoinHostPort(s.Host, strconv.Itoa(port))); err == nil {
				c.Close()
				t.Error("a dead server answers")
			}
			s.Restart()
			pids[0] = s.server.Process.Pid
			c, err := s.Dial(ctx, "tcp", net.JoinHostPort(s.Host, strconv.Itoa(port)))
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			if now, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || now != own {
				t.Errorf("this process is in %s, not %s: %v", now, own, err)
			}
		})
	}
}

// alive reports whether a process runs; a zombie does not.
func alive(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	_, state, _ := strings.Cut(string(text), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}
