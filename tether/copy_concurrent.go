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
	"vch/internal/pause"
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
	content, err := os.OpenFile(s.content, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer content.Close()
	here := *s
	here.content = inside(content)
	return here.agree(ctx)
}

// agree is run, by an open directory: whoever else has the volume may move things about, and put links in the way.
func (s *sharedCopy) agree(ctx context.Context) error {
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
				if err = s.fill(); !errors.Is(err, errTakenOver) {
					return err
				}
				watch = watched{}
				continue
			}
			if !errors.Is(err, fs.ErrExist) {
				return squashed(err)
			}
		}
		if err := pause.For(ctx, s.poll); err != nil {
			return fault.New(fault.Unavailable, "another container fills the volume, and has not done so in time: %w", err)
		}
	}
}

// look says whether there is something in the volume, and whether somebody is filling it. What the guest has cached of the directory may be old: opening what is in staging asks the
// server, and where that says that staging is gone the directory is read anew.
func (s *sharedCopy) look() (full, busy bool, err error) {
	if f, err := openSign(s.at("alive")); err == nil {
		return false, true, f.Close()
	}
	return s.holds()
}

// holds is look by what the directory lists.
func (s *sharedCopy) holds() (full, busy bool, err error) {
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

// still says whether a sign of life has not changed for a while. While nobody heard the server nobody can have been heard.
func (w *watched) still(file string, limit time.Duration) bool {
	seen, began := "", time.Now()
	if f, err := openSign(file); err == nil {
		if fi, err := f.Stat(); err == nil {
			seen = fmt.Sprint(fi.ModTime().UnixNano(), fi.Size())
		}
		f.Close()
	}
	if seen != w.seen || w.at.IsZero() || time.Since(began) > limit/4 {
		w.seen, w.at = seen, time.Now()
	}
	return time.Since(w.at) > limit
}

// openSign opens a sign of life, which asks the server (close-to-open), and waits for nobody if it is something else.
func openSign(file string) (*os.File, error) {
	return os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
}

// errTakenOver is why one who fills a volume stops: another may have taken him to have ended.
var errTakenOver = errors.New("another has taken over")

// live says every now and then that the copy in stage goes on, until stop, which tells whether that was heard all the time.
func (s *sharedCopy) live(stage *os.File) (stop func() (heard bool), err error) {
	f, err := os.OpenFile(inside(stage)+"/alive", os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	ended, done := make(chan struct{}), make(chan struct{})
	said, heard := time.Now(), true
	say := func() {
		if _, err := f.WriteString("."); err == nil && f.Sync() == nil {
			heard = heard && time.Since(said) < s.limit/2
			said = time.Now()
		}
	}
	go func() {
		defer close(done)
		defer f.Close()
		tick := time.NewTicker(s.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				say()
			case <-ended:
				return
			}
		}
	}()
	return sync.OnceValue(func() bool { close(ended); <-done; return heard && time.Since(said) < s.limit/2 }), nil
}

// fill copies, as the one who has made staging. What it makes is in that directory, wherever somebody else may have put it.
func (s *sharedCopy) fill() error {
	stage, err := openDirectory(s.at())
	if err != nil {
		if gone(err) == nil {
			return errTakenOver
		}
		return err
	}
	defer stage.Close()
	if full, _, err := s.look(); err != nil || full { // somebody else was here first: making staging has shown it
		return errors.Join(err, s.drop(stage))
	}
	stop, err := s.live(stage)
	if errors.Is(err, fs.ErrExist) { // what was made here was taken over before it was opened, and this is another's
		return errTakenOver
	}
	if err != nil {
		return s.lost(stage, squashed(err))
	}
	defer stop()
	if err := copyTree(s.from, inside(stage)+"/content"); err != nil {
		if !stop() {
			return errTakenOver
		}
		return errors.Join(s.lost(stage, squashed(err)), s.drop(stage))
	}
	if err := flush(inside(stage)); err != nil {
		return s.lost(stage, err)
	}
	full, _, err := s.holds()
	switch heard := stop(); {
	case err != nil:
		return err
	case full: // a container that wants no copy has written there meanwhile
		return s.drop(stage)
	case !heard || !s.mine(stage):
		return errTakenOver
	}
	whole, err := os.OpenFile(inside(stage)+"/whole", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return s.lost(stage, err)
	}
	if err := whole.Close(); err != nil {
		return s.lost(stage, err)
	}
	return s.moveIn(stage)
}

// mine says whether staging is an open directory.
func (s *sharedCopy) mine(stage *os.File) bool {
	have, err := os.Lstat(s.at())
	if err != nil {
		return false
	}
	want, err := stage.Stat()
	return err == nil && os.SameFile(have, want)
}

// lost is an error in an open staging, which is errTakenOver if that is not there any more.
func (s *sharedCopy) lost(stage *os.File, err error) error {
	if gone(err) == nil && !s.mine(stage) {
		return errTakenOver
	}
	return err
}

// drop takes an open staging away.
func (s *sharedCopy) drop(stage *os.File) error {
	if !s.mine(stage) {
		return nil
	}
	return os.RemoveAll(s.at())
}

// moveIn renames what is whole in an open staging into the volume, and takes staging away. Several may do so at once, and one that ended on the way is followed by the next. What the
// volume has by then of somebody else stays as it is.
func (s *sharedCopy) moveIn(stage *os.File) error {
	content, err := openDirectory(inside(stage) + "/content")
	if err != nil {
		return gone(err)
	}
	defer content.Close()
	entries, err := os.ReadDir(inside(content))
	for _, e := range entries {
		if err == nil {
			err = s.place(inside(content)+"/"+e.Name(), s.content+"/"+e.Name())
		}
	}
	if err == nil {
		err = copyAttributes(inside(content), s.content)
	}
	if gone(err) != nil {
		return squashed(err)
	}
	have, err := os.ReadDir(s.content)
	for _, e := range have {
		if strings.HasPrefix(e.Name(), staging) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.content, e.Name())))
		}
	}
	return err
}

// place renames one thing to where nothing is.
func (s *sharedCopy) place(from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return nil
	}
	err := os.Rename(from, to)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EISDIR) {
		return nil
	}
	return gone(err)
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
	stage, err := openDirectory(s.at())
	if err == nil {
		defer stage.Close()
		if _, err := os.Lstat(inside(stage) + "/whole"); err == nil {
			if content, err := openDirectory(inside(stage) + "/content"); err == nil { // else all of it is moved, or it is none
				content.Close()
				return s.moveIn(stage)
			}
		}
	}
	mine := s.at() + "." + strconv.FormatInt(time.Now().UnixNano(), 16)
	if err := os.Rename(s.at(), mine); err != nil { // of several who try, one does
		return gone(err)
	}
	return os.RemoveAll(mine)
}
