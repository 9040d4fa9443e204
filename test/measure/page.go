package measure

import (
	"fmt"

	"vch/internal/atomicfile"
)

// Page prints a page, and writes it to a file too, if one is named.
func Page(page, into string) error {
	fmt.Print(page)
	if into == "" {
		return nil
	}
	return atomicfile.Write(into, []byte(page), 0o644)
}
