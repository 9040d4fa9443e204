// Command init is PID 1 of a machine that booted: it says so and ends it.
package main

import (
	"os"
	"syscall"
)

func main() {
	os.MkdirAll("/proc", 0o755)
	syscall.Mount("proc", "/proc", "proc", 0, "")
	line, _ := os.ReadFile("/proc/cmdline")
	os.Stdout.WriteString("init is here: " + string(line))
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}
