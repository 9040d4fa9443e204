package personality

import (
	"cmp"
	"time"

	"github.com/moby/moby/api/types/container"

	"vch/internal/fault"
	"vch/portlayer"
)

// mergeHealth gives a container's health check, nil or not, what it does not say itself from its image's, as Moby does.
func mergeHealth(own, image *container.HealthConfig) *container.HealthConfig {
	if own == nil {
		return image
	}
	merged := *own
	if len(merged.Test) == 0 {
		merged.Test = image.Test
	}
	merged.Interval = cmp.Or(own.Interval, image.Interval)
	merged.Timeout = cmp.Or(own.Timeout, image.Timeout)
	merged.StartPeriod = cmp.Or(own.StartPeriod, image.StartPeriod)
	merged.StartInterval = cmp.Or(own.StartInterval, image.StartInterval)
	merged.Retries = cmp.Or(own.Retries, image.Retries)
	return &merged
}

// healthOf is a health check as the port layer has it; nil: none.
func healthOf(h *container.HealthConfig, shell []string) (*portlayer.Healthcheck, error) {
	if h == nil {
		return nil, nil
	}
	for _, d := range []struct {
		name string
		is   time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.is != 0 && d.is < container.MinimumDuration {
			return nil, fault.New(fault.Invalid, "%s in Healthcheck cannot be less than %s", d.name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return nil, fault.New(fault.Invalid, "Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) == 0 || h.Test[0] == "NONE" {
		return nil, nil
	}
	check := &portlayer.Healthcheck{Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	switch kind, args := h.Test[0], h.Test[1:]; {
	case kind != "CMD" && kind != "CMD-SHELL":
		return nil, fault.New(fault.Invalid, "unknown type of health check %q: it is NONE, CMD or CMD-SHELL", kind)
	case len(args) == 0:
		return nil, fault.New(fault.Invalid, "the health check %s says no command", kind)
	case kind == "CMD":
		check.Args = args
	default:
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		check.Args = append(append([]string{}, shell...), args...)
	}
	return check, nil
}

// healthShown is a container's health in Docker's words; nil where nobody asks.
func healthShown(h *portlayer.Health) *container.Health {
	if h == nil {
		return nil
	}
	shown := &container.Health{Status: container.HealthStatus(h.Is), FailingStreak: h.Streak, Log: []*container.HealthcheckResult{}}
	for _, p := range h.Log {
		shown.Log = append(shown.Log, &container.HealthcheckResult{Start: p.Start, End: p.End, ExitCode: p.ExitCode, Output: p.Output})
	}
	return shown
}

// healthSummary is the same in a list.
func healthSummary(h *portlayer.Health) *container.HealthSummary {
	if h == nil {
		return &container.HealthSummary{Status: container.NoHealthcheck}
	}
	return &container.HealthSummary{Status: container.HealthStatus(h.Is), FailingStreak: h.Streak}
}

// healthText is what docker ps says of it.
func healthText(h *portlayer.Health) string {
	switch {
	case h == nil:
		return ""
	case h.Is == portlayer.Starting:
		return " (health: starting)"
	}
	return " (" + string(h.Is) + ")"
}
