package image

import (
	"encoding/binary"
	"encoding/hex"
	"os"

	"vch/internal/fault"
)

const lostAndFound = "lost+found"

// Offsets of the ext4 disk layout (Documentation/filesystems/ext4: super.rst, group_descr.rst, inodes.rst), for what tar2ext4 writes: blocks of 4096
// bytes, descriptors of 32 bytes from block 1 on, inodes of 256 bytes, no checksums.
const (
	ext4Block     = 4096
	superAt       = 1024
	sbBlocks      = 0x04
	sbFreeBlocks  = 0x0c
	sbFreeInodes  = 0x10
	sbBlocksGroup = 0x20
	sbInodesGroup = 0x28
	sbMagic       = 0x38
	sbUUID        = 0x68
	sbLpfInode    = 0x268
	descSize      = 32
	bgBlockBitmap = 0x00
	bgInodeBitmap = 0x04
	bgInodeTable  = 0x08
	bgFreeBlocks  = 0x0c
	bgFreeInodes  = 0x0e
	bgUsedDirs    = 0x10
	inodeSize     = 256
	inLinks       = 0x1a
	inFirstExtent = 0x28 + 12 + 8 // i_block, past the extent header, ee_start_lo of the first leaf
	rootInode     = 2
	lostInode     = 11
)

// ext4File reads and writes numbers in the file; the first error stays.
type ext4File struct {
	f   *os.File
	err error
}

func (e *ext4File) bytes(at int64, n int) []byte {
	b := make([]byte, n)
	if e.err == nil {
		_, e.err = e.f.ReadAt(b, at)
	}
	return b
}

func (e *ext4File) put(at int64, b []byte) {
	if e.err == nil {
		_, e.err = e.f.WriteAt(b, at)
	}
}

func (e *ext4File) u16(at int64) uint16 { return binary.LittleEndian.Uint16(e.bytes(at, 2)) }
func (e *ext4File) u32(at int64) uint32 { return binary.LittleEndian.Uint32(e.bytes(at, 4)) }

func (e *ext4File) add16(at int64, by int) {
	e.put(at, binary.LittleEndian.AppendUint16(nil, uint16(int(e.u16(at))+by)))
}

func (e *ext4File) add32(at int64, by int) {
	e.put(at, binary.LittleEndian.AppendUint32(nil, uint32(int(e.u32(at))+by)))
}

func (e *ext4File) clearBit(bitmap uint32, bit uint32) {
	at := int64(bitmap)*ext4Block + int64(bit/8)
	e.put(at, []byte{e.bytes(at, 1)[0] &^ (1 << (bit % 8))})
}

func desc(group uint32) int64 { return ext4Block + int64(group)*descSize }

// finishExt4 mends what tar2ext4 leaves undone, so that e2fsck finds nothing to say: the unused end of each inode bitmap is marked, the file system gets
// a UUID (the first half of name), and lost+found, which no image asked for, goes away unless keepLost.
func finishExt4(f *os.File, name string, keepLost bool) error {
	e := &ext4File{f: f}
	if e.u16(superAt+sbMagic) != 0xef53 && e.err == nil {
		return fault.New(fault.Internal, "tar2ext4 wrote no ext4 file system")
	}
	uuid, err := hex.DecodeString(name[:32])
	if err != nil {
		return err
	}
	e.put(superAt+sbUUID, uuid)
	blocks, perGroup, inodes := e.u32(superAt+sbBlocks), e.u32(superAt+sbBlocksGroup), e.u32(superAt+sbInodesGroup)
	if e.err != nil {
		return e.err
	}
	for g := uint32(0); g < (blocks+perGroup-1)/perGroup; g++ {
		at := int64(e.u32(desc(g)+bgInodeBitmap)) * ext4Block
		bitmap := e.bytes(at, ext4Block)
		for bit := inodes; bit < ext4Block*8; bit++ {
			bitmap[bit/8] |= 1 << (bit % 8)
		}
		e.put(at, bitmap)
	}
	if !keepLost {
		e.dropLostAndFound(perGroup)
	}
	return e.err
}

// dropLostAndFound takes the empty directory lost+found, inode 11 and the first name in the root, out of the file system.
func (e *ext4File) dropLostAndFound(perGroup uint32) {
	inode := func(n int64) int64 {
		return int64(e.u32(desc(0)+bgInodeTable))*ext4Block + (n-1)*inodeSize
	}
	// Its entry is the third of the root's first block: the second one's record swallows it (directory.rst, "linear").
	dir := int64(e.u32(inode(rootInode)+inFirstExtent)) * ext4Block
	second := dir + int64(e.u16(dir+4))
	third := second + int64(e.u16(second+4))
	if e.err == nil && (e.u32(third) != lostInode || string(e.bytes(third+8, len(lostAndFound))) != lostAndFound) {
		e.err = fault.New(fault.Internal, "tar2ext4 did not put lost+found where it used to")
	}
	if e.err != nil {
		return
	}
	e.add16(second+4, int(e.u16(third+4)))
	e.put(third, make([]byte, 8+len(lostAndFound)))
	e.add16(inode(rootInode)+inLinks, -1)

	block := e.u32(inode(lostInode) + inFirstExtent)
	group := block / perGroup
	e.clearBit(e.u32(desc(group)+bgBlockBitmap), block%perGroup)
	e.add16(desc(group)+bgFreeBlocks, 1)
	e.add32(superAt+sbFreeBlocks, 1)

	e.put(inode(lostInode), make([]byte, inodeSize))
	e.clearBit(e.u32(desc(0)+bgInodeBitmap), lostInode-1)
	e.add16(desc(0)+bgFreeInodes, 1)
	e.add32(superAt+sbFreeInodes, 1)
	e.add16(desc(0)+bgUsedDirs, -1)
	e.put(superAt+sbLpfInode, make([]byte, 4))
}
