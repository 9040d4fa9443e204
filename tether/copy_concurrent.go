package tether

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vch/internal/fault"
)

// A copy-up into a directory that others may use, and fill, at the same time on other hosts. They agree by the directory's server alone: whoever makes the directory staging fills the
// volume, and the others wait until it is gone. In it is what is being copied, which is renamed into the volume when it is whole; a marker says that this has begun. Who fills it says
// every now and then that it still does; one that has ended is followed by another, who finishes what was begun, or takes its staging away and begins anew.
//
//	<volume>/.vch-copy-up/alive      its time and size change while somebody is at work
//	                      content/   what is copied
//	                      whole      content is whole, and on its way into the volume
const staging = ".vch-copy-up"

const (
	aliveEvery = time.Second
	// aliveLimit is how long the one who fills a volume may say nothing before it is taken to have ended: a busy host, or a server's grace period, may hold it up.
	aliveLimit = 20 * time.Second
	// sharedPoll is how often the others look.
	sharedPoll = 200 * time.Millisecond
)

// copyUpShared is copyUp for a content directory that several machines may have.
func copyUpShared(ctx context.Context, from, content string) error {
	return (&sharedCopy{from: from, content: content, every: aliveEvery, limit: aliveLimit, poll: sharedPoll}).run(ctx)
}

type sharedCopy struct {
	from, content      string
	every, limit, poll time.Duration
}

func (s *sharedCopy) at(elem ...string) string {
	return filepath.Join(append([]string{s.content, staging}, elem...)...)
}

func (s *sharedCopy) run(ctx context.Context) error {
	fi, err := os.Lstat(s.from)
	if err != nil || !fi.IsDir() {
		return nil
	}
	if fi, err := os.Stat(s.content); err != nil || !fi.IsDir() {
		return err
	}
	entries, err := os.ReadDir(s.from)
	if err != nil {
		return err
	}
	watch := watched{}
	for {
		full, busy, err := s.look()
		switch {
		case err != nil:
			return err
		case busy && watch.still(s.at("alive"), s.limit):
			if err := s.takeOver(); err != nil {
				return err
			}
			watch = watched{}
			continue
		case busy:
		case full:
			return nil
		case len(entries) == 0:
			// A server that does not let root be root keeps the directory as its administrator wants it.
			if err := likeEmpty(s.from, s.content); !errors.Is(err, fs.ErrPermission) {
				return err
			}
			return nil
		default:
			err := os.Mkdir(s.at(), 0o700)
			if err == nil {
				return s.fill()
			}
			if !errors.Is(err, fs.ErrExist) {
				return squashed(err)
			}
		}
		select {
		case <-time.After(s.poll):
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "another container fills the volume, and has not done so in time: %w", ctx.Err())
		}
	}
}

// look says whether there is something in the volume, and whether somebody is filling it. What the guest has cached of the directory may be old: opening what is in staging asks the
// server, and where that says that staging is gone the directory is read anew.
func (s *sharedCopy) look() (full, busy bool, err error) {
	if f, err := os.Open(s.at("alive")); err == nil {
		return false, true, f.Close()
	}
	have, err := os.ReadDir(s.content)
	for _, e := range have {
		busy = busy || e.Name() == staging
		full = full || !strings.HasPrefix(e.Name(), staging)
	}
	return full, busy, err
}

// squashed says more of a refusal.
func squashed(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.Denied, "the volume's server does not let the container's root write to it; export it with no_root_squash, or mount the volume with nocopy and run as the user whose it is: %w", err)
	}
	return err
}

// watched is what was last seen of a sign of life.
type watched struct {
	seen string
	at   time.Time
}

// still says whether a sign of life has not changed for a while.
func (w *watched) still(file string, limit time.Duration) bool {
	seen := ""
	if f, err := os.Open(file); err == nil { // opening it asks the server (close-to-open)
		if fi, err := f.Stat(); err == nil {
			seen = fmt.Sprint(fi.ModTime().UnixNano(), fi.Size())
		}
		f.Close()
	}
	if seen != w.seen || w.at.IsZero() {
		w.seen, w.at = seen, time.Now()
	}
	return time.Since(w.at) > limit
}

// live says every now and then that the copy goes on, until stop.
func (s *sharedCopy) live() (stop func(), err error) {
	f, err := os.OpenFile(s.at("alive"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		tick := time.NewTicker(s.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if _, err := f.WriteString("."); err == nil {
					_ = f.Sync()
				}
			case <-ended:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(ended); <-done }), nil
}

// fill copies, as the one who has made staging.
func (s *sharedCopy) fill() error {
	if full, _, err := s.look(); err != nil || full { // somebody else was here first: making staging has shown it
		return errors.Join(err, os.RemoveAll(s.at()))
	}
	stop, err := s.live()
	if err != nil {
		return squashed(err)
	}
	defer stop()
	c := copier{links: map[inode]string{}}
	if err := c.dir(s.from, s.at("content")); err != nil {
		stop()
		return errors.Join(squashed(err), os.RemoveAll(s.at()))
	}
	if err := flush(s.content); err != nil {
		return err
	}
	if err := os.WriteFile(s.at("whole"), nil, 0o600); err != nil {
		return err
	}
	return s.moveIn(stop)
}

// moveIn renames what is whole in staging into the volume, and takes staging away, before which stop is called: what is open on NFS is only renamed when it is removed. Several may do so
// at once, and one that ended on the way is followed by the next.
func (s *sharedCopy) moveIn(stop func()) error {
	entries, err := os.ReadDir(s.at("content"))
	for _, e := range entries {
		if err == nil {
			err = gone(os.Rename(s.at("content", e.Name()), filepath.Join(s.content, e.Name())))
		}
	}
	if err == nil {
		err = copyAttributes(s.at("content"), s.content)
	}
	if gone(err) != nil {
		return squashed(err)
	}
	stop()
	have, err := os.ReadDir(s.content)
	for _, e := range have {
		if strings.HasPrefix(e.Name(), staging) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.content, e.Name())))
		}
	}
	return err
}

// gone is err, but for one that says that somebody else has done it.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESTALE) {
		return nil
	}
	return err
}

// takeOver ends the copy of somebody who has ended.
func (s *sharedCopy) takeOver() error {
	if _, err := os.Lstat(s.at("whole")); err == nil {
		return s.moveIn(func() {})
	}
	mine := s.at() + "." + strconv.FormatInt(time.Now().UnixNano(), 16)
	if err := os.Rename(s.at(), mine); err != nil { // of several who try, one does
		return gone(err)
	}
	return os.RemoveAll(mine)
}
