package ext4

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"sync"

	"vch/internal/sparsefile"
)

// A new file system is the same as the last one of its size, but for its name and its secrets. So mkfs makes the first; its few blocks are kept in memory, and the next ones
// are these blocks with another superblock. That takes a millisecond, and mkfs with debugfs ten.

// Shape of a file system: what decides its blocks.
type Shape struct {
	Size int64  // bytes
	Dir  string // the directory in its root; "" : none, and it never grows
	// Journal is how large its journal is, in bytes; 0: as mke2fs has it for the size.
	Journal int64
	// Most is up to how many bytes it can grow without its kernel having to put group descriptors elsewhere; 0: 64 times its size (inPlace).
	Most int64
}

// golden is the data of a new file system of one shape.
type golden struct{ pieces []fsPiece }

// fsPiece is data between two holes.
type fsPiece struct {
	at   int64
	data []byte
}

// goldens are those that were made, by shape. The zero value has none.
type goldens struct {
	mu    sync.Mutex // guards below
	known map[Shape]golden
	held  int64 // bytes
}

// mostGolden bounds the memory that goldens take, in bytes: a file system of 1 GiB has 0.3 MB, one of 1 TiB 1.5 MB. When it is full, they are all made anew.
const mostGolden = 16 << 20

func (g *goldens) get(s Shape) (golden, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	found, ok := g.known[s]
	return found, ok
}

func (g *goldens) put(s Shape, made golden) {
	var n int64
	for _, p := range made.pieces {
		n += int64(len(p.data))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.known[s]; ok || n > mostGolden {
		return
	}
	if g.held+n > mostGolden || g.known == nil {
		g.known, g.held = map[Shape]golden{}, 0
	}
	g.known[s] = made
	g.held += n
}

// learn reads the data of a file system that mkfs has just made. On a host file system without holes there is too much of it, and nothing is kept.
func learn(f *os.File, size int64) (golden, error) {
	var g golden
	total := int64(0)
	err := sparsefile.Data(f, size, func(begin, end int64) error {
		if total += end - begin; total > mostGolden {
			g.pieces = nil
			return nil
		}
		data := make([]byte, end-begin)
		if _, err := f.ReadAt(data, begin); err != nil {
			return err
		}
		g.pieces = append(g.pieces, fsPiece{begin, data})
		return nil
	})
	return g, err
}

// named is the file system under another name, with secrets of its own.
func (g golden) named(size int64, label string, uuid [16]byte) golden {
	var seed [16]byte
	rand.Read(seed[:]) // never fails (crypto/rand)
	supers := supersOf(size)
	var named golden
	for _, p := range g.pieces {
		data := p.data
		for _, at := range supers {
			if at < p.at || at+superSize > p.at+int64(len(p.data)) || binary.LittleEndian.Uint16(p.data[at-p.at+superMagicAt:]) != superMagic {
				continue
			}
			if &data[0] == &p.data[0] {
				data = append([]byte(nil), p.data...)
			}
			christen(data[at-p.at:][:superSize], label, uuid, seed)
		}
		named.pieces = append(named.pieces, fsPiece{p.at, data})
	}
	return named
}

// write writes the file system into an empty file.
func (g golden) write(f io.WriterAt) error {
	for _, p := range g.pieces {
		if _, err := f.WriteAt(p.data, p.at); err != nil {
			return err
		}
	}
	return nil
}

// split is what lies before an offset, and the rest.
func (g golden) split(at int64) (head, rest golden) {
	for _, p := range g.pieces {
		n := min(max(at-p.at, 0), int64(len(p.data)))
		if n > 0 {
			head.pieces = append(head.pieces, fsPiece{p.at, p.data[:n]})
		}
		if n < int64(len(p.data)) {
			rest.pieces = append(rest.pieces, fsPiece{p.at + n, p.data[n:]})
		}
	}
	return head, rest
}

// Rename gives a file system that was poured and never mounted another name, and other secrets.
func Rename(f *os.File, size int64, label, uuid string) error {
	id, err := uuidBytes(uuid)
	if err != nil {
		return err
	}
	var seed [16]byte
	rand.Read(seed[:]) // never fails (crypto/rand)
	super := make([]byte, superSize)
	for _, at := range supersOf(size) {
		if at+superSize > size {
			continue
		}
		if _, err := f.ReadAt(super, at); err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(super[superMagicAt:]) != superMagic {
			continue
		}
		christen(super, label, id, seed)
		if _, err := f.WriteAt(super, at); err != nil {
			return err
		}
	}
	return nil
}

// ext4's superblock (kernel Documentation/filesystems/ext4, "The Super Block"), in a file system with blocks of 4 KiB, sparse_super and metadata_csum_seed.
const (
	superSize     = 1024
	superFirst    = 1024      // the one that counts
	superGroup    = 128 << 20 // bytes of a block group; copies are at the beginning of some
	superMagicAt  = 0x38
	superMagic    = 0xEF53
	superUUID     = 0x68
	superName     = 0x78
	superHashSeed = 0xEC
	superChecksum = 0x3FC
	superNameSize = 16
)

// supersOf is where a file system of size bytes may have its superblock and the copies of it: in the groups 1 and the powers of 3, 5 and 7.
func supersOf(size int64) []int64 {
	at := []int64{superFirst}
	if superGroup < size {
		at = append(at, superGroup)
	}
	for _, base := range []int64{3, 5, 7} {
		for group := base; group < size/superGroup+1; group *= base {
			at = append(at, group*superGroup)
		}
	}
	return at
}

// castagnoli is the polynomial of ext4's checksums.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// christen gives a superblock a name. Other checksums of the file system begin with a seed that it keeps (metadata_csum_seed), and stay true.
func christen(super []byte, label string, uuid, seed [16]byte) {
	copy(super[superUUID:], uuid[:])
	name := make([]byte, superNameSize)
	copy(name, label)
	copy(super[superName:], name)
	copy(super[superHashSeed:], seed[:])
	// ext4 begins with all ones and does not turn the result round, as crc32.Checksum does at both ends.
	binary.LittleEndian.PutUint32(super[superChecksum:], ^crc32.Checksum(super[:superChecksum], castagnoli))
}

// uuidBytes reads a UUID as mkfs.ext4 -U takes it; "" is a random one.
func uuidBytes(text string) (uuid [16]byte, err error) {
	if text == "" {
		rand.Read(uuid[:])                                      // never fails (crypto/rand)
		uuid[6], uuid[8] = uuid[6]&0x0f|0x40, uuid[8]&0x3f|0x80 // RFC 9562, version 4
		return uuid, nil
	}
	_, err = hex.Decode(uuid[:], []byte(strings.ReplaceAll(text, "-", "")))
	return uuid, err
}
