package portlayer

import "time"

// Healthcheck is how a running container is asked whether it is well. Fields that are 0 have the defaults of Docker.
type Healthcheck struct {
	Args          []string      // run in the container, as its own process is; well if it exits with 0
	Interval      time.Duration // between two probes; 30 s
	Timeout       time.Duration // of a probe, which is ended then; 30 s
	StartPeriod   time.Duration // after a start, in which failures do not count until a probe has gone well
	StartInterval time.Duration // between two probes in that time; 5 s
	Retries       int           // failures in a row that make it unhealthy; 3
}

// Wellness is what a container's probes have said.
type Wellness string

// What the probes say. One that does not run any more is Unhealthy, as in Docker.
const (
	Starting  Wellness = "starting"
	Healthy   Wellness = "healthy"
	Unhealthy Wellness = "unhealthy"
)

// Health is how the probes of a container went.
type Health struct {
	Is     Wellness
	Streak int     // failures in a row
	Log    []Probe // the last five, oldest first
}

// Probe is one probe of a Healthcheck.
type Probe struct {
	Start, End time.Time
	ExitCode   int    // -1: it did not end, or could not be run
	Output     string // what it wrote, 4 KiB at most, or why it did not run
}
