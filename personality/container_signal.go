package personality

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vch/internal/fault"
)

// The real-time signals as a C library numbers them (signal(7)).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// parseSignal reads a signal as Docker takes it: a number, or a name in any case with or without SIG, RTMIN+n and RTMAX-n among them.
func parseSignal(text string) (int, error) {
	bad := fault.New(fault.Invalid, "invalid signal: %s", text)
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, bad
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if n := int(unix.SignalNum("SIG" + name)); n != 0 {
		return n, nil
	}
	switch name {
	case "RTMIN":
		return sigRTMin, nil
	case "RTMAX":
		return sigRTMax, nil
	}
	if d, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		if n, err := strconv.ParseUint(d, 10, 8); err == nil && n <= 15 {
			return sigRTMin + int(n), nil
		}
	}
	if d, ok := strings.CutPrefix(name, "RTMAX-"); ok {
		if n, err := strconv.ParseUint(d, 10, 8); err == nil && n <= 14 {
			return sigRTMax - int(n), nil
		}
	}
	return 0, bad
}
