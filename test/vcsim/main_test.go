package main

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// It says where it is, is there, and ends when it is told to.
func TestServes(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "vcsim")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(program, "--dir", filepath.Join(dir, "data"), "--datastore", "one,two", "--machines", "null")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	var said map[string]string
	if err == nil {
		err = json.Unmarshal(line, &said)
	}
	if err != nil {
		t.Errorf("it says %q: %v", line, err)
	}
	if u, err := url.Parse(said["url"]); err != nil || u.Path != "/sdk" {
		t.Errorf("url %q", said["url"])
	} else if conn, err := tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true}); err != nil {
		t.Error(err)
	} else {
		sum := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw)
		if got := strings.ToLower(strings.ReplaceAll(said["thumbprint"], ":", "")); got != hex.EncodeToString(sum[:]) {
			t.Errorf("thumbprint %s", said["thumbprint"])
		}
		conn.Close()
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "two")); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
