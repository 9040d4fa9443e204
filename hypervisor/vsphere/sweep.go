package vsphere

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"vch/internal/pause"
)

// random makes a name that nobody has.
func random(prefix string) string {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return prefix + hex.EncodeToString(b[:])
}

// makers gives what the names begin with of all that a VCH makes, and of what this process of it makes.
func makers(vch string) (owner, maker string) {
	sum := sha256.Sum256([]byte(vch))
	owner = unfinishedPrefix + hex.EncodeToString(sum[:4]) + "-"
	return owner, random(owner) + "-"
}

// unfinished makes the name of what is being made.
func (d *Disks) unfinished(suffix string) string { return random(d.maker) + suffix }

const (
	abandonedFor = 24 * time.Hour   // how long nothing may have changed in what another VCH is making before it is taken for left
	sweepAgain   = 10 * time.Minute // how long a sweep that has left something is not done again: it may never succeed
)

// sweep removes what earlier processes of this VCH, and long ago others, left in a directory of what they were making, and what anybody has removed. Once in a while is enough.
func (d *Disks) sweep(ctx context.Context, dir datastorePath) {
	now := time.Now()
	d.mu.Lock()
	due := !now.Before(d.sweeps[dir])
	if due {
		d.sweeps[dir] = now.Add(abandonedFor)
	}
	d.mu.Unlock()
	if !due {
		return
	}
	if d.sweepNow(ctx, dir) != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.sweeps[dir] = now.Add(sweepAgain)
	}
}

func (d *Disks) sweepNow(ctx context.Context, dir datastorePath) error {
	found, err := d.search(ctx, dir, unfinishedPrefix+"*", tombPrefix+"*")
	if err != nil || len(found) == 0 {
		return err
	}
	// Times are the hosts' that write. One clock that is wrong, the server's or this host's, makes nothing old.
	now := time.Now()
	err = d.s.read(ctx, func(ctx context.Context, c *vim25.Client) error {
		server, err := methods.GetCurrentTime(ctx, c)
		if err == nil && server.Before(now) {
			now = *server
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, f := range found {
		if info := f.GetFileInfo(); d.isLeft(info, now) {
			err = errors.Join(err, d.remove(ctx, dir.join(info.Path)))
		}
	}
	return err
}

// isLeft says whether nobody wants a file any more that is not finished, or was removed.
func (d *Disks) isLeft(f *types.FileInfo, now time.Time) bool {
	switch {
	case strings.HasPrefix(f.Path, d.maker):
		return false
	case strings.HasPrefix(f.Path, tombPrefix), strings.HasPrefix(f.Path, d.owner):
		return true
	}
	return f.Modification != nil && now.Sub(*f.Modification) > abandonedFor
}

// bury removes a tomb. What cannot be removed is left for a sweep.
func (d *Disks) bury(tomb datastorePath) {
	ctx, cancel := context.WithTimeout(d.closing, clearFor)
	defer cancel()
	for wait := backoff; d.remove(ctx, tomb) != nil; wait = min(2*wait, maxBackoff) {
		if pause.For(ctx, wait) != nil {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.sweeps[tomb.dir()] = time.Now().Add(sweepAgain)
			return
		}
	}
}
