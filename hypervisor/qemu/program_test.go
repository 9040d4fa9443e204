package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The program is an ordinary one: it runs here, too.
func TestRehearsalProgram(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, rehearsalProgram(), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(file).Output()
	if err != nil || string(out) != "ok\n" {
		t.Errorf("it says %q, and ends with %v", out, err)
	}
}
