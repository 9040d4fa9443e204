package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// debianCmd makes an image on the spot: a root with Debian's packages, set up by their own maintainer scripts, which for a database make its first
// cluster. It is of this machine's release, from where this machine has its packages.
func debianCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2, "debian IMAGE PACKAGE…")
	// Downloading and unpacking is no single event: it may take longer than one.
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	suite, err := exec.CommandContext(ctx, "sh", "-c", `. /etc/os-release && echo "$VERSION_CODENAME"`).Output()
	ts.Check(err)
	tar := ts.MkAbs("debian.tar")
	words := []string{"--quiet", "--variant=essential", "--include=" + strings.Join(args[1:], ","), `--aptopt=APT::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`}
	for _, path := range notNeeded {
		words = append(words, "--dpkgopt=path-exclude="+path)
	}
	words = append(words, strings.TrimSpace(string(suite)), tar)
	for _, sources := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources"} {
		if st, err := os.Stat(sources); err == nil && st.Size() > 0 {
			words = append(words, sources)
		}
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", words...)
	cmd.Env = append(os.Environ(), "TMPDIR="+ts.MkAbs("."), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it unmounts and deletes what it made
	out, err := cmd.CombinedOutput()
	if err != nil {
		ts.Fatalf("mmdebstrap (make setup installs it): %v\n%s", err, out)
	}
	id, err := of(ts).host.docker("import", tar, args[0])
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), id)
	ts.Check(os.Remove(tar))
}

// notNeeded is what a database runs without and what makes an image large: texts for people, and PostgreSQL's compiler of queries.
var notNeeded = []string{
	"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/i18n/*",
	"/usr/lib/*/libLLVM*", "/usr/lib/*/libz3*", "/usr/lib/postgresql/*/lib/bitcode/*", "/usr/lib/postgresql/*/lib/llvmjit*",
}

// buildkitCmd has scripts/buildkit make Buildx and BuildKit, unless they are there.
func buildkitCmd(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 0, "buildkit")
	programs, err := filepath.Abs("../../bin/buildkit")
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 5*limit) // downloads and compiles a thousand packages, the first time
	defer cancel()
	if out, err := exec.CommandContext(ctx, "../../scripts/buildkit", programs).CombinedOutput(); err != nil {
		ts.Fatalf("scripts/buildkit: %v\n%s", err, out)
	}
	ts.Check(os.Symlink(filepath.Join(programs, "docker-buildx"), filepath.Join(ts.Getenv("DOCKER_CONFIG"), "cli-plugins", "docker-buildx")))
	ts.Setenv("BUILDKIT", programs)
}
