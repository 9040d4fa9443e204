package measure

import (
	"errors"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Quantile of figures, between two of them in proportion; NaN of none.
func Quantile(figures []float64, q float64) float64 {
	if len(figures) == 0 {
		return math.NaN()
	}
	all := slices.Sorted(slices.Values(figures))
	at := q * float64(len(all)-1)
	low := int(at)
	high := min(low+1, len(all)-1)
	return all[low] + (at-float64(low))*(all[high]-all[low])
}

// Ratios divides what was measured in the same round.
func Ratios(a, b []float64) (all []float64) {
	for i := range min(len(a), len(b)) {
		all = append(all, a[i]/b[i])
	}
	return all
}

// Forget has the host write the file out and drop it from its page cache (posix_fadvise(2), POSIX_FADV_DONTNEED).
func Forget(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f.Sync()
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return errors.Join(err, f.Close())
}
