package volume

import (
	"math"
	"strings"
	"testing"

	"vch/internal/fault"
	"vch/portlayer"
)

func TestParseCapacity(t *testing.T) {
	const kib, mib, gib = portlayer.KiB, portlayer.MiB, portlayer.GiB
	good := map[string]portlayer.Bytes{
		"1": mib, "512": 512 * mib, "010": 10 * mib, " 7 ": 7 * mib, // megabytes, as in VIC
		"512b": 512, "4194304B": 4 * mib,
		"1k": kib, "1K": kib, "1KB": kib, "1KiB": kib, "1kib": kib, "3kB": 3 * kib,
		"64M": 64 * mib, "64mb": 64 * mib, "64MiB": 64 * mib, "64 MB": 64 * mib,
		"10G": 10 * gib, "10gib": 10 * gib, "2T": 2048 * gib, "2TB": 2048 * gib, "1P": gib * 1024 * 1024,
		"8796093022207": 8796093022207 * mib, "9223372036854775807B": math.MaxInt64,
	}
	for text, want := range good {
		if got, err := ParseCapacity(text); got != want || err != nil {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	bad := map[string]string{
		"": "is not a capacity", " ": "is not a capacity", "G": "is not a capacity", "ten": "is not a capacity", "1.5G": "whole number",
		"-1": "is not a capacity", "-1G": "is not a capacity", "+1G": "is not a capacity", "1X": "is not a capacity", "1GG": "is not a capacity",
		"1GiBB": "is not a capacity", "1 G B": "is not a capacity", "0x10": "is not a capacity", "1e3": "is not a capacity", "1i": "is not a capacity",
		"1BB": "is not a capacity", "١G": "is not a capacity", "1E": "is not a capacity", "1\x00": "is not a capacity",
		"0": "is nothing", "0G": "is nothing", "00": "is nothing",
		"8796093022208": "more than a disk", "9223372036854775808B": "more than a disk", "99999999999999999999": "more than a disk", "8192P": "more than a disk",
	}
	for text, words := range bad {
		_, err := ParseCapacity(text)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v; want Invalid, %q", text, err, words)
		}
		if err != nil && !strings.Contains(err.Error(), "512M") {
			t.Errorf("%q: %v does not say what to write", text, err)
		}
	}
}

// Whatever comes in, a capacity is more than zero, or the fault is Invalid; and a capacity in bytes reads back as itself.
func FuzzParseCapacity(f *testing.F) {
	for _, seed := range []string{"", "1", "10G", "0", "-1", "1.5G", "9223372036854775807B", "1KiB", " 4 mb ", "1é"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseCapacity(text)
		if err != nil {
			if !fault.Is(err, fault.Invalid) || got != 0 {
				t.Fatalf("%q: %d, %v", text, got, err)
			}
			return
		}
		if got <= 0 {
			t.Fatalf("%q: %d", text, got)
		}
		if again, err := ParseCapacity(strings.ToLower(text)); err != nil || again != got {
			t.Fatalf("%q in lower case: %d, %v; want %d", text, again, err, got)
		}
	})
}
