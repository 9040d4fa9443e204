// Command tether is the guest's PID 1, and, called as "stage", the process that becomes a process of the container.
//
// It is built static, without cgo, and put into the guest's initramfs as /init by hypervisor/qemu. It takes no other argument and
// reads no file of the host; what it does is package tether.
package main

import (
	"os"

	"vch/tether"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "stage" {
		os.Exit(tether.Stage())
	}
	if os.Getpid() != 1 {
		os.Stderr.WriteString("tether runs as PID 1 of a container VM; on a host, use vch\n")
		os.Exit(2)
	}
	tether.Boot()
}
