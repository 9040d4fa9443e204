package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"vch/internal/sparsefile"
)

// sparse makes holes of the zeros in the golden disks, which were uploaded: a datastore that makes thin copies leaves them out, and the simulated one would write 64 MiB for each volume.
func sparse(ctx context.Context, v *vcenter) error {
	files, err := filepath.Glob(v.path(".vch", "*-flat.vmdk"))
	if err == nil && len(files) == 0 {
		err = errors.New("there is no golden disk")
	}
	for _, file := range files {
		err = errors.Join(err, holed(ctx, file))
	}
	return err
}

func holed(ctx context.Context, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	beside := file + ".holes"
	if err := sparsefile.Write(ctx, beside, st.Size(), f); err != nil {
		return err
	}
	return errors.Join(os.Remove(file), os.Link(beside, file), os.Remove(beside))
}
