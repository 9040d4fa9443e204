package main

import "embed"

// embedded holds the tether if make build put it there; otherwise only a README.
//
//go:embed embed
var embedded embed.FS

// tetherProgram is the guest's program; nil for a vch that was built without it.
func tetherProgram() []byte {
	program, err := embedded.ReadFile("embed/tether")
	if err != nil {
		return nil
	}
	return program
}
