// Package failpoint names the steps at which a test can make vch fail or die.
//
// Production never sets VCH_FAILPOINTS, and then a point costs one map look-up in a nil map. A test sets
// "name=error" to make Hit return an error there, or "name=exit" to end the process at once, as kill -9
// would, with ExitCode.
package failpoint

import (
	"fmt"
	"os"
	"strings"
)

// Env is the environment variable that arms points: "name=error,other=exit".
const Env = "VCH_FAILPOINTS"

// ExitCode is how a process ends at a point armed with "exit".
const ExitCode = 86

// Set is the points armed in one process. The zero value has none armed.
type Set struct{ armed map[string]string }

// FromEnv reads Env.
func FromEnv() (Set, error) { return Parse(os.Getenv(Env)) }

// Parse reads "name=error,other=exit"; empty text arms nothing.
func Parse(text string) (Set, error) {
	if text == "" {
		return Set{}, nil
	}
	s := Set{armed: map[string]string{}}
	for _, item := range strings.Split(text, ",") {
		name, action, _ := strings.Cut(item, "=")
		if name == "" || action != "error" && action != "exit" {
			return Set{}, fmt.Errorf("%s: %q is not name=error or name=exit", Env, item)
		}
		s.armed[name] = action
	}
	return s, nil
}

// Hit returns an error, or ends the process, if the point name is armed.
func (s Set) Hit(name string) error {
	switch s.armed[name] {
	case "error":
		return fmt.Errorf("fail point %s", name)
	case "exit":
		os.Exit(ExitCode)
	}
	return nil
}
