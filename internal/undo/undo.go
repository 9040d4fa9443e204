// Package undo keeps the steps back beside the steps forward.
//
// A Stack collects, after each step that worked, the function that takes it back. Unless Keep is called,
// Run takes all of them back in reverse order. It is for failures within one process; what has to survive
// a crash is journaled (portlayer/record).
package undo

import (
	"context"
	"errors"
	"time"
)

// Limit bounds the whole of a Run: clean-up after a cancelled request has its own time.
const Limit = 60 * time.Second

// Stack is a list of undo steps. The zero value is empty and ready. It is not safe for use by several goroutines.
type Stack struct {
	steps []func(context.Context) error
}

// Push adds the step that takes back what was just done.
func (s *Stack) Push(step func(context.Context) error) { s.steps = append(s.steps, step) }

// Keep drops all steps: what was done stays.
func (s *Stack) Keep() { s.steps = nil }

// Run takes everything back, last first, and reports every step that could not be. It uses ctx's values
// but not its cancellation, and empties the stack.
func (s *Stack) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Limit)
	defer cancel()
	var errs []error
	for i := len(s.steps) - 1; i >= 0; i-- {
		errs = append(errs, s.steps[i](ctx))
	}
	s.steps = nil
	return errors.Join(errs...)
}
