package volume

import (
	"crypto/rand"
	"encoding/hex"
	"strings"

	"vch/internal/fault"
	"vch/portlayer"
)

// maxName is the most bytes of a name: NAME_MAX of limits.h, for a volume is a directory.
const maxName = 255

// wellNamed reports whether a volume can be called so.
func wellNamed(n portlayer.VolumeName) bool { return checkName(n) == nil }

// checkName is nil, or Invalid with Moby's words (docker-volumes.md, "Volume names").
func checkName(n portlayer.VolumeName) error {
	switch {
	case len(n) < 2:
		return fault.New(fault.Invalid, "create %s: volume name is too short, names should be at least two alphanumeric characters", n)
	case strings.IndexFunc(string(n), outside) >= 0 || !alphanumeric(rune(n[0])):
		return fault.New(fault.Invalid, `create %s: %q includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`, n, n)
	case len(n) > maxName:
		return fault.New(fault.Invalid, "create %s: volume name is too long: it has %d bytes, names should be at most %d", n, len(n), maxName)
	}
	return nil
}

// outside reports whether c cannot be in a name.
func outside(c rune) bool { return !alphanumeric(c) && !strings.ContainsRune("_.-", c) }

func alphanumeric(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// anonymousName is 64 random hex digits, which no other volume has or will have.
func anonymousName() portlayer.VolumeName {
	var b [32]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return portlayer.VolumeName(hex.EncodeToString(b[:]))
}
