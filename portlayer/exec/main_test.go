package exec

import (
	"testing"

	"go.uber.org/goleak"
)

// Nothing of a service, nor of a machine, outlives the test that made it.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
