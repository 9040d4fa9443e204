// Package compression undoes the compressions that archives come in.
//
// It tells a format by its first bytes, never by a name or what somebody said of it: gzip, bzip2, zstd, or none. It bounds the
// memory that a stream can ask for. It compresses nothing.
package compression

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"vch/internal/fault"
)

// maxWindow bounds the memory that a zstd stream can ask for, in bytes; zstd --long=27, the most that its CLI reads unasked.
const maxWindow = 128 << 20

// Plain gives what r holds, uncompressed. The format is told by its first bytes, never by what somebody said of it.
func Plain(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 128<<10)
	head, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}): // RFC 1952, 2.3.1
		return gzip.NewReader(b)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}): // RFC 8878, 3.1.1
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}): // .xz file format, 2.1.1.1
		return nil, fault.New(fault.Unsupported, "xz compression is not supported; recompress with gzip or zstd (xz -dc FILE | zstd)")
	}
	return io.NopCloser(b), nil
}
