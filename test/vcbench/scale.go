package main

import (
	"context"
)

type phase struct{}

func (r *results) scale(ctx context.Context, o options, d *daemon, v *vcenter) error { return nil }
