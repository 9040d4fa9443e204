package qemu

import "encoding/binary"

// rehearsalProgram is a static x86-64 ELF program that does what most programs do when they begin and end: it asks the kernel for memory, for randomness, about itself
// and its terminal, reads a file, writes one, runs a child, says "ok\n", and exits with 0. It is as long as a small program, and looks at all of itself, so that it is
// read from its disk as one is. (ELF-64 Object File Format, figures 2 and 6; System V ABI, AMD64, A.2.1.)
func rehearsalProgram() []byte {
	const (
		base   = 0x400000
		header = 64 + 56
		length = 384 << 10
		page   = 4096
		texts  = base + 2048 // the strings, beyond the code
		room   = base + length + page
	)
	var text []byte // at texts
	str := func(s string) uint32 {
		at := texts + uint32(len(text))
		text = append(append(text, s...), 0)
		return at
	}
	var code []byte
	emit := func(b ...byte) { code = append(code, b...) }
	// call is a system call with numbers for arguments (syscall(2)).
	call := func(number uint32, args ...uint32) {
		// mov edi, esi, edx, r10d, r8d, r9d with what follows
		for i, a := range args {
			emit([][]byte{{0xbf}, {0xbe}, {0xba}, {0x41, 0xba}, {0x41, 0xb8}, {0x41, 0xb9}}[i]...)
			code = binary.LittleEndian.AppendUint32(code, a)
		}
		emit(0xb8) // mov eax, number
		code = binary.LittleEndian.AppendUint32(code, number)
		emit(0x0f, 0x05) // syscall
	}
	const (
		sysRead, sysWrite, sysOpen, sysClose, sysFstat, sysMmap, sysMprotect, sysMunmap = 0, 1, 2, 3, 5, 9, 10, 11
		sysBrk, sysSigaction, sysIoctl, sysGetpid, sysFork, sysExit, sysWait4           = 12, 13, 16, 39, 57, 60, 61
		sysReadlink, sysGetuid, sysPrctl, sysArchPrctl, sysGetrandom, sysUnlink         = 89, 102, 157, 158, 318, 87
	)
	call(sysBrk, 0)
	emit(0x48, 0x8d, 0xb8, 0, 0, 2, 0)                          // lea rdi, [rax+0x20000]
	emit(0xb8, sysBrk, 0, 0, 0, 0x0f, 0x05)                     // brk(rdi)
	call(sysArchPrctl, 0x1002, room)                            // ARCH_SET_FS
	call(sysMmap, room+16*page, 2*page, 3, 0x32, 0xffffffff, 0) // PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS
	emit(0xc6, 0x04, 0x25)                                      // mov byte [room+16*page], 1
	code = binary.LittleEndian.AppendUint32(code, room+16*page)
	emit(1)
	call(sysMprotect, room+16*page, page, 1)
	call(sysMunmap, room+16*page, 2*page)
	call(sysGetrandom, room, 16, 0)
	call(sysReadlink, str("/proc/self/exe"), room, 256)
	call(sysGetuid)
	call(sysGetpid)
	call(sysIoctl, 1, 0x5401, room) // TCGETS
	call(sysPrctl, 15, str("rehearsal"))
	call(sysSigaction, 2, 0, room, 8)
	call(sysOpen, str("/etc/passwd"), 0, 0)
	call(sysFstat, 3, room)
	call(sysRead, 3, room, 256)
	call(sysClose, 3)
	for _, file := range []string{"/data/rehearsal", "/etc/rehearsal"} {
		call(sysOpen, str(file), 0x241, 0o600) // O_WRONLY|O_CREAT|O_TRUNC
		call(sysWrite, 3, texts, 64)
		call(sysClose, 3)
		call(sysUnlink, str(file))
	}
	// Look at every page: mov al, [base+n*page]
	for at := uint32(base + page); at < base+length; at += 8 * page {
		emit(0x8a, 0x04, 0x25)
		code = binary.LittleEndian.AppendUint32(code, at)
	}
	call(sysFork)
	emit(0x85, 0xc0)  // test eax, eax
	emit(0x75, 5+2+2) // jnz over the child's end
	emit(0x31, 0xff)  // xor edi, edi
	emit(0xb8, sysExit, 0, 0, 0, 0x0f, 0x05)
	call(sysWait4, 0xffffffff, 0, 0, 0)
	call(sysWrite, 1, str("ok\n"), 3)
	call(sysExit, 0)

	le16, le32, le64 := binary.LittleEndian.AppendUint16, binary.LittleEndian.AppendUint32, binary.LittleEndian.AppendUint64
	file := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	file = le64(le32(le16(le16(file, 2), 62), 1), base+header) // an executable for x86-64, and where it begins
	file = le64(le64(file, 64), 0)
	file = le16(le16(le16(le32(file, 0), 64), 56), 1) // one segment
	file = le16(le16(le16(file, 0), 0), 0)
	file = le64(le64(le64(le32(le32(file, 1), 7), 0), base), base) // all of the file, to read, write and run
	file = le64(le64(le64(file, length), length+page*2), page)     // and room beyond it
	file = append(file, code...)
	if len(file) > texts-base {
		panic("the rehearsal's program is too long")
	}
	file = append(file, make([]byte, texts-base-len(file))...)
	file = append(file, text...)
	return append(file, make([]byte, length-len(file))...)
}
