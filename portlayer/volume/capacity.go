package volume

import (
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-units"

	"vch/internal/fault"
	"vch/portlayer"
)

// ParseCapacity reads a volume's size: a whole number, alone (then megabytes, as in VIC) or with a unit: B, or K, M, G, T, P, each also as KB or KiB, in any
// case. All units are binary: 1K is 1024 bytes. Anything else, and what is not more than zero, is Invalid.
func ParseCapacity(text string) (portlayer.Bytes, error) {
	const grammar = "write a whole number with a unit, such as 512M or 10G (binary units: 1K is 1024 bytes), or a number of megabytes alone"
	trimmed := strings.TrimSpace(text)
	digits := len(trimmed) - len(strings.TrimLeft(trimmed, "0123456789"))
	unit, ok := unitOf(strings.TrimSpace(trimmed[digits:]))
	if digits == 0 || !ok {
		return 0, fault.New(fault.Invalid, "%q is not a capacity: %s", text, grammar)
	}
	n, err := strconv.ParseInt(trimmed[:digits], 10, 64)
	if err != nil || n > math.MaxInt64/int64(unit) {
		return 0, fault.New(fault.Invalid, "capacity %q is more than a disk can have: %s", text, grammar)
	}
	if n == 0 {
		return 0, fault.New(fault.Invalid, "capacity %q is nothing: leave it out for the default, or %s", text, grammar)
	}
	return portlayer.Bytes(n) * unit, nil
}

// unitOf is how many bytes a unit is; none is VIC's megabyte.
func unitOf(text string) (portlayer.Bytes, bool) {
	text = strings.ToUpper(text)
	switch text {
	case "":
		return portlayer.MiB, true
	case "B":
		return 1, true
	}
	prefix, rest := text[:1], text[1:]
	if rest != "" && rest != "B" && rest != "IB" {
		return 0, false
	}
	power := strings.Index("KMGTP", prefix)
	if power < 0 {
		return 0, false
	}
	return portlayer.KiB << (10 * power), true
}

// size is a size as messages show it.
func size(b portlayer.Bytes) string { return units.BytesSize(float64(b)) }
