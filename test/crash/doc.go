// Package crash kills a real daemon at every named step of a commit, starts it again, and looks for what must not be: an orphan, a
// loss, a double. The steps are the fail points of portlayer/exec (internal/failpoint). Its tests need the whole machine: QEMU, a
// guest kernel, the docker CLI.
package crash
