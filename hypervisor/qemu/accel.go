package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vch/internal/atomicfile"
	"vch/internal/fault"
	"vch/internal/qmp"
	"vch/portlayer"
)

const (
	kvmDevice   = "/dev/kvm"
	verdictFile = "accel.json"
	// tryLimit bounds the try of KVM with a real boot. Where it works that takes about a second.
	tryLimit = 30 * time.Second
	// tryPoll is how often the try asks whether the guest still runs: an internal error of KVM stops it without ending QEMU.
	tryPoll = 100 * time.Millisecond
)

// verdict is the remembered answer to whether KVM works here.
type verdict struct {
	Key    string `json:"key"` // of what it holds for: the host's boot, QEMU, kernel, initramfs
	KVM    bool   `json:"kvm"`
	Detail string `json:"detail"`
}

// decideAccel gives the accelerator to use and a sentence on why. "auto" boots a real guest to find out, once per boot of the host: a /dev/kvm that opens
// may still kill a stock kernel.
func (h *Hypervisor) decideAccel(ctx context.Context, want string) (name, detail string, err error) {
	switch want {
	case "tcg":
		return "tcg", "software emulation, as asked for", nil
	case "", "auto", "kvm":
	default:
		return "", "", fault.New(fault.Invalid, "accelerator %q is none of auto, kvm, tcg", want)
	}
	v, err := h.kvmVerdict(ctx)
	if err != nil {
		return "", "", err
	}
	if v.KVM {
		return "kvm", v.Detail, nil
	}
	if want == "kvm" {
		return "", "", fault.New(fault.Unavailable, "KVM does not work here: %s; use --accel auto or tcg", v.Detail)
	}
	return "tcg", "software emulation: " + v.Detail, nil
}

// kvmVerdict is the remembered verdict, or a new one.
func (h *Hypervisor) kvmVerdict(ctx context.Context) (verdict, error) {
	f, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return verdict{Detail: "this host has no " + kvmDevice}, nil
	}
	if err != nil {
		return verdict{Detail: fmt.Sprintf("%s cannot be opened (%v); add this user to the group that owns it", kvmDevice, errors.Unwrap(err))}, nil
	}
	if err := f.Close(); err != nil {
		return verdict{}, err
	}
	boot := strings.TrimSpace(readFile("/proc/sys/kernel/random/boot_id"))
	key := strings.Join([]string{boot, h.info.Version, filepath.Base(h.boot.kernel.Name()), filepath.Base(h.boot.initrd.Name())}, " ")
	file := filepath.Join(h.cache(), verdictFile)
	var v verdict
	if text, err := os.ReadFile(file); err == nil && json.Unmarshal(text, &v) == nil && v.Key == key && boot != "" {
		return v, nil
	}
	h.o.Log.Info("trying KVM with a real boot; the answer is kept until the host boots again")
	began := time.Now()
	v = verdict{Key: key, KVM: true, Detail: "hardware virtualisation, tried with a real boot"}
	if err := h.tryKVM(ctx); ctx.Err() != nil {
		return verdict{}, ctx.Err()
	} else if err != nil {
		v.KVM, v.Detail = false, fmt.Sprintf("%s is there, but a guest does not boot with it: %v", kvmDevice, err)
	}
	h.o.Log.Info("tried KVM", "works", v.KVM, "took", time.Since(began).Round(time.Millisecond), "detail", v.Detail)
	text, err := json.Marshal(v)
	if err != nil {
		return verdict{}, err
	}
	return v, atomicfile.Write(file, text, 0o600)
}

// tryKVM boots a machine under KVM until its tether answers.
func (h *Hypervisor) tryKVM(ctx context.Context) (err error) {
	limited, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	dir, err := os.MkdirTemp(h.cache(), "try-kvm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p, q, err := h.launch(limited, dir, shape{name: "vch-try-kvm", accel: "kvm", memory: 128 * portlayer.MiB, cpus: 1, append: h.cmdline}, nil)
	if said := words(dir); err != nil && said != "" {
		return errors.New(firstSentence(said)) // the rest is a dump
	}
	if err != nil {
		return err
	}
	q.Close()
	defer func() { p.kill(); <-p.ended }()
	answered := make(chan error, 1)
	talk, hang := context.WithCancel(limited)
	go func() { answered <- p.hello(talk) }()
	defer func() {
		hang()
		if answered != nil {
			<-answered
		}
	}()
	ticks := time.NewTicker(tryPoll)
	defer ticks.Stop()
	for {
		select {
		case err := <-answered:
			answered = nil
			if limited.Err() != nil && ctx.Err() == nil {
				return fmt.Errorf("it did not answer within %v", tryLimit)
			}
			return err
		case <-p.ended:
			return fmt.Errorf("QEMU ended: %s", p.words())
		case <-ticks.C:
			if state, err := p.runState(limited); err == nil && state != "running" {
				return fmt.Errorf("QEMU reports %q (%s)", state, firstSentence(p.words()))
			}
		}
	}
}

// runState is QMP's query-status.
func (p *process) runState(ctx context.Context) (string, error) {
	conn, err := dial(ctx, p.home(), qmpSocket)
	if err != nil {
		return "", err
	}
	q, err := qmp.Connect(ctx, conn)
	if err != nil {
		return "", err
	}
	defer q.Close()
	var st struct {
		Status string `json:"status"`
	}
	err = q.Call(ctx, "query-status", nil, &st)
	return st.Status, err
}

// firstSentence is the part of QEMU's words before the dump of registers that follows an internal error.
func firstSentence(words string) string {
	first, _, _ := strings.Cut(words, "; ")
	if first == "" {
		return "it gave no reason"
	}
	return first
}
