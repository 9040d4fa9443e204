// Package e2e runs vch as its users do: the real docker CLI, as scripts (testdata/*.txtar), against a real daemon and real container VMs.
//
// A script has one idea, and says it in its first line. Most scripts share one daemon and tell their things apart by names that begin with $ME;
// a script that restarts, kills or fills its daemon starts its own (the command daemon). When a script ends, whatever way, the harness removes
// what it left and then looks for a QEMU process, a machine's directory or a log that should be gone; that is part of every test here.
//
// The commands that scripts have beside testscript's own are listed in commands_test.go. Without KVM a boot takes two seconds: scripts boot as
// often as their idea needs, and no more.
package e2e
