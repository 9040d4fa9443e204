package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"vch/portlayer"
)

// What has come of a layer is kept, as it came, until it is whole: a transfer that breaks, or whose daemon does, goes on where it was.

const (
	// leastKept is the least size of a layer that is kept so, in bytes: less is quicker fetched again.
	leastKept = 1 << 20
	// partialLife is how long what nobody has gone on with is kept.
	partialLife = 7 * 24 * time.Hour
)

func (s *Service) partialDir() string { return filepath.Join(s.dir, "partial") }

// fetch gives a blob from an offset on.
type fetch func(ctx context.Context, offset int64) (io.ReadCloser, error)

// resumed is a layer's source that goes on where the last try broke. Only one reads it at a time.
func (s *Service) resumed(src layerSource, from fetch) layerSource {
	if src.size < leastKept || !validDigest(src.digest) {
		src.open = func(ctx context.Context) (io.ReadCloser, error) { return from(ctx, 0) }
		return src
	}
	path := filepath.Join(s.partialDir(), diffID(src.digest).hex())
	src.open = func(ctx context.Context) (io.ReadCloser, error) {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, s.storage(err)
		}
		p := &unfinishedBlob{ctx: ctx, file: f, from: from, size: src.size}
		if p.has, err = f.Seek(0, io.SeekEnd); err == nil && p.has > src.size {
			p.has, err = 0, f.Truncate(0)
		}
		if err != nil {
			return nil, errors.Join(s.storage(err), f.Close())
		}
		return p, nil
	}
	src.settled = func() { _ = os.Remove(path) } // the next start, or its age, takes it otherwise
	return src
}

// unfinishedBlob reads what has come, then the rest, which it keeps.
type unfinishedBlob struct {
	ctx  context.Context // of the one transfer that this is
	file *os.File        // nil once there was no room to keep more
	from fetch
	size int64
	has  int64 // bytes in file
	at   int64 // bytes read
	rest io.ReadCloser
}

// Read is io.Reader's.
func (p *unfinishedBlob) Read(b []byte) (int, error) {
	if p.at < p.has && p.rest == nil {
		n, err := p.file.ReadAt(b[:min(int64(len(b)), p.has-p.at)], p.at)
		p.at += int64(n)
		if err == io.EOF && n > 0 {
			err = nil
		}
		return n, err
	}
	if p.rest == nil {
		if p.at == p.size {
			return 0, io.EOF
		}
		var err error
		if p.rest, err = p.from(p.ctx, p.at); err != nil {
			return 0, err
		}
	}
	n, err := p.rest.Read(b)
	if n > 0 && p.file != nil {
		if _, werr := p.file.WriteAt(b[:n], p.at); werr != nil { // no room: what comes goes on without being kept
			_ = p.file.Truncate(p.at)
			_ = p.file.Close()
			p.file = nil
		}
	}
	p.at += int64(n)
	return n, err
}

// Close is io.Closer's.
func (p *unfinishedBlob) Close() error {
	var err error
	if p.rest != nil {
		err = p.rest.Close()
	}
	if p.file != nil {
		err = errors.Join(err, p.file.Close())
	}
	return err
}

// dropPartials removes what was kept of layers before a moment, and gives its size.
func (s *Service) dropPartials(before time.Time) (portlayer.Bytes, error) {
	all, err := os.ReadDir(s.partialDir())
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, s.storage(err)
	}
	var freed portlayer.Bytes
	for _, e := range all {
		fi, err := e.Info()
		if err != nil || !fi.ModTime().Before(before) {
			continue
		}
		if err := os.Remove(filepath.Join(s.partialDir(), e.Name())); err != nil {
			return freed, s.storage(err)
		}
		freed += portlayer.Bytes(fi.Size())
	}
	return freed, nil
}
