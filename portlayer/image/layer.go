package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"vch/internal/atomicfile"
	"vch/internal/compression"
	"vch/internal/fault"
	"vch/portlayer"
)

// layerSource is where a layer can be had, compressed or not.
type layerSource struct {
	digest string // of what open gives; "" if nobody said
	size   int64  // of what open gives; 0 if nobody said
	broken fault.Kind
	open   func(ctx context.Context) (io.ReadCloser, error)
	// settled is called when the layer is in the store, or what open gave was whole and wrong: nothing of it is worth keeping. nil: nobody wants to know.
	settled func()
}

func (src layerSource) settle() {
	if src.settled != nil {
		src.settled()
	}
}

// The steps of a layer, in Docker's words.
const (
	stepPending     = "Pulling fs layer"
	stepWaiting     = "Waiting"
	stepDownloading = "Downloading"
	stepVerifying   = "Verifying Checksum"
	stepDownloaded  = "Download complete"
	stepExtracting  = "Extracting"
	stepComplete    = "Pull complete"
	stepExists      = "Already exists"
	stepLoading     = "Loading layer"
)

// layerSize is the size of a layer that is here, and whether it is.
func (s *Service) layerSize(d diffID) (portlayer.Bytes, bool, error) {
	fi, err := os.Stat(s.layerPath(d))
	if errors.Is(err, os.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, s.storage(err)
	}
	return portlayer.Bytes(fi.Size()), true, nil
}

// place reads a layer from src and puts it in the store, whole and verified, or not at all.
func (s *Service) place(ctx context.Context, d diffID, src layerSource, report func(step string, current, total int64)) error {
	return s.storage(atomicfile.WriteFrom(s.layerPath(d), 0o600, func(w io.Writer) error {
		in, err := src.open(ctx)
		if err != nil {
			return err
		}
		defer in.Close()
		raw := &meter{ctx: ctx, r: in, hash: sha256.New(), moved: func(n int64) { report(stepDownloading, n, src.size) }}
		diff := sha256.New()
		copied := unpack(w, diff, raw)
		report(stepVerifying, 0, 0)
		if raw.err == nil || raw.err == io.EOF { // the rest, so that a broken layer is told from a broken transfer
			_, _ = io.Copy(io.Discard, raw)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if got := "sha256:" + hex.EncodeToString(raw.hash.Sum(nil)); src.digest != "" && got != src.digest {
			if raw.err != nil && raw.err != io.EOF && raw.n < src.size {
				return fault.As(fault.Unavailable, &brokenTransfer{digest: src.digest, got: raw.n, size: src.size, err: raw.err})
			}
			src.settle()
			return fault.New(src.broken, "filesystem layer verification failed for digest %s: what came has the digest %s; it was refused", src.digest, got)
		}
		if raw.err != nil && raw.err != io.EOF {
			return raw.err
		}
		if copied != nil {
			var f *fault.Error
			if errors.As(copied, &f) {
				return copied
			}
			var path *os.PathError
			if errors.As(copied, &path) {
				return copied
			}
			src.settle()
			return fault.New(src.broken, "layer %s cannot be unpacked: %w", orElse(src.digest, string(d)), copied)
		}
		if got := "sha256:" + hex.EncodeToString(diff.Sum(nil)); got != string(d) {
			src.settle()
			return fault.New(src.broken, "filesystem layer verification failed for layer %s: the image says that it unpacks to %s, but it unpacks to %s; it was refused", orElse(src.digest, string(d)), d, got)
		}
		return nil
	}))
}

// brokenTransfer is a layer that ended too early: worth another try.
type brokenTransfer struct {
	digest    string
	got, size int64
	err       error
}

func (b *brokenTransfer) Error() string {
	return fmt.Sprintf("the transfer of layer %s broke after %d of %d bytes; try again: %v", b.digest, b.got, b.size, b.err)
}

func (b *brokenTransfer) Unwrap() error { return b.err }

// unpack writes what raw holds, uncompressed, to w and to sum.
func unpack(w, sum io.Writer, raw io.Reader) error {
	p, err := compression.Plain(raw)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(io.MultiWriter(w, sum), onlyReader{p}, make([]byte, 256<<10))
	return errors.Join(err, p.Close())
}

// onlyReader hides WriteTo, so that io.CopyBuffer uses its buffer.
type onlyReader struct{ io.Reader }

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// meter reads r until ctx ends, and hashes and counts what passes. It remembers the error that ended it.
type meter struct {
	ctx   context.Context // of the one transfer that this reader is a part of
	r     io.Reader
	hash  hash.Hash // nil: none
	moved func(int64)
	n     int64
	err   error
}

func (m *meter) Read(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	if m.err = m.ctx.Err(); m.err != nil {
		return 0, m.err
	}
	n, err := m.r.Read(p)
	m.n += int64(n)
	m.err = err
	if m.hash != nil {
		m.hash.Write(p[:n])
	}
	if m.moved != nil && n > 0 {
		m.moved(m.n)
	}
	return n, err
}

// requireLayers says which layer of an image is missing, if one is.
func (s *Service) requireLayers(layers []diffID) ([]portlayer.Bytes, error) {
	sizes := make([]portlayer.Bytes, len(layers))
	for i, l := range layers {
		size, ok, err := s.layerSize(l)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fault.New(fault.Conflict, "layer %s is missing from %s; pull or load the image again", l, s.layerDir())
		}
		sizes[i] = size
	}
	return sizes, nil
}

// ensureLayer has a layer placed from src if it is not here, once however many ask at the same time. The caller holds it.
func (s *Service) ensureLayer(ctx context.Context, d diffID, src layerSource, progress func(step string, current, total int64)) error {
	return s.flights.join(ctx, "layer "+string(d), func(ctx context.Context, report func(step string, current, total int64)) error {
		if _, ok, err := s.layerSize(d); ok || err != nil {
			return err
		}
		select {
		case s.downloads <- struct{}{}:
			defer func() { <-s.downloads }()
		case <-ctx.Done():
			return ctx.Err()
		}
		var err error
		for range transferTries {
			err = s.place(ctx, d, src, report)
			if broken := (*brokenTransfer)(nil); !errors.As(err, &broken) || ctx.Err() != nil {
				break
			}
			report(stepWaiting, 0, 0)
		}
		if err != nil {
			return err
		}
		src.settle()
		report(stepDownloaded, 0, 0)
		return nil
	}, progress)
}

// transferTries is how often a layer is asked for when the transfer breaks; dockerd's --max-download-attempts is 5.
const transferTries = 3
