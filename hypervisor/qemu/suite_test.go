package qemu

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"vch/hypervisor/hypertest"
	"vch/portlayer"
)

// TestMain is what main is to a machine's shares, too.
func TestMain(m *testing.M) {
	if IsShareStage(os.Args) {
		fmt.Fprintln(os.Stderr, ShareStage())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Real machines under TCG, which every host has, in each way in which they come: by a boot, as a fork, as one of the pool. A boot takes 2 to 3 s on a quiet host.
func TestSuite(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines")
	}
	tether, cache := hypertest.Tether(t), t.TempDir()
	for _, way := range []struct {
		name  string
		o     Options
		comes string // what the command line of such a machine has
	}{
		{"cold", Options{}, "-kernel"},
		{"forked", Options{Template: true}, "-incoming"},
		{"pooled", Options{Template: true, Warm: 2}, "vch-fork-"},
	} {
		t.Run(way.name, func(t *testing.T) {
			hypertest.Run(t, hypertest.Options{
				New: func(t *testing.T, dir string) portlayer.Hypervisor {
					t.Helper()
					o := way.o
					o.StateDir, o.Tether, o.Accel, o.Cache = dir, tether, "tcg", cache
					h, err := New(t.Context(), o)
					if err != nil {
						t.Fatal(err)
					}
					return sure{h, t, way.comes}
				},
				Image: hypertest.Busybox,
				Commands: hypertest.Commands{
					Write: func(path, text string) string { return "echo -n " + text + " > " + path },
					Read:  func(path string) string { return "cat " + path },
				},
				Limit:  5 * time.Minute,
				Memory: suiteMemory,
				Shares: true,
			})
		})
	}
}

const suiteMemory = 192 * portlayer.MiB

// sure is a Hypervisor whose machines come in one way only: it waits until they can, and looks whether they did.
type sure struct {
	*Hypervisor
	t     *testing.T
	comes string
}

func (h sure) Define(ctx context.Context, spec portlayer.MachineSpec) (portlayer.Machine, error) {
	m, err := h.Hypervisor.Define(ctx, spec)
	if err != nil {
		return nil, err
	}
	return sureMachine{m.(*machine), h}, nil
}

func (h sure) Machine(ctx context.Context, id portlayer.ContainerID) (portlayer.Machine, error) {
	m, err := h.Hypervisor.Machine(ctx, id)
	if err != nil {
		return nil, err
	}
	return sureMachine{m.(*machine), h}, nil
}

type sureMachine struct {
	*machine
	h sure
}

func (m sureMachine) PowerOn(ctx context.Context) error {
	def, err := m.definition()
	was := m.process()
	if err == nil && len(def.Shares) > 0 {
		return m.machine.PowerOn(ctx) // that has one way to come
	}
	if err == nil && was == nil {
		m.h.awaitWay(ctx, m.machine.h.shape(def))
	}
	err = m.machine.PowerOn(ctx)
	if p := m.process(); err == nil && was == nil && p != nil {
		line := strings.ReplaceAll(readFile(fmt.Sprintf("/proc/%d/cmdline", p.pid)), "\x00", " ")
		if line != "" && !strings.Contains(line, m.h.comes) {
			m.h.t.Errorf("the machine did not come by %s: %s", m.h.comes, line)
		}
	}
	return err
}

// awaitWay waits until there is a template for machines of the shape s, and one of them in the pool, where the way wants that.
func (h sure) awaitWay(ctx context.Context, s shape) {
	h.t.Helper()
	if h.shelf == nil {
		return
	}
	for range recentShapes { // whatever the pool held before, it is to hold these
		h.Expect(portlayer.MachineSpec{Memory: s.memory, CPUs: s.cpus})
	}
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if t := h.shelf.find(ctx, s); t != nil {
			h.shelf.release(t)
			h.pool.mu.Lock()
			ready := 0
			for _, w := range h.pool.ready {
				if w.key == s.key {
					ready++
				}
			}
			h.pool.mu.Unlock()
			if ready >= h.o.Warm {
				return
			}
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			h.t.Fatalf("no template, or no pool, after %v (%v)", 5*time.Minute, ctx.Err())
		}
	}
}
