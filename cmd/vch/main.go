// Command vch is a virtual container host: the daemon, and what an administrator says to it.
//
// It is the only place that names implementations: it reads flags and the configuration file (settings.go, pure), constructs the rooms bottom up
// and connects them (serve.go), and listens (listen.go). It decides nothing about containers, volumes or images. The tether, the program
// that runs in every container VM, is embedded (embed/).
//
// Exit codes: 0 all went well, 1 something failed, 2 the command line or the configuration file makes no sense. An error is one line
// on standard error that says what to do.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"vch/hypervisor/qemu"
)

// Exit codes.
const (
	exitFailure = 1
	exitUsage   = 2
)

// version, commit and built are set by make build (-ldflags -X).
var (
	version = "unknown"
	commit  = "unknown"
	built   = "unknown"
)

// usageError is a failure of whoever wrote the command line or the configuration file.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func main() {
	if qemu.IsShareStage(os.Args) {
		fmt.Fprintln(os.Stderr, qemu.ShareStage())
		os.Exit(exitFailure)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is vch with args; it gives the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "vch",
		Short:         "A virtual container host: every container a VM of its own, every volume a disk",
		Long:          "vch answers the docker CLI, and runs every container as a virtual machine of its own and keeps every volume as a real disk.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddGroup(&cobra.Group{ID: "life", Title: "The life of a VCH:"}, &cobra.Group{ID: "other", Title: "And more:"})
	for _, cmd := range []*cobra.Command{
		createCommand(stdout), lsCommand(stdout), inspectCommand(stdout), startCommand(stdout), stopCommand(stdout), logsCommand(stdout), configureCommand(stdout), upgradeCommand(stdout), deleteCommand(stdout), debugCommand(stdout),
	} {
		cmd.GroupID = "life"
		root.AddCommand(cmd)
	}
	for _, cmd := range []*cobra.Command{
		serveCommand(stderr), volumeCommand(stdout), templateCommand(stdout), certCommand(stdout), thumbprintCommand(stdout), roleCommand(stdout), doctorCommand(stdout), versionCommand(stdout),
	} {
		cmd.GroupID = "other"
		root.AddCommand(cmd)
	}
	root.SetHelpCommandGroupID("other")
	root.SetCompletionCommandGroupID("other")
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	began := false // cobra gave the word to a command: what fails from now on is not cobra's parsing
	root.PersistentPreRun = func(*cobra.Command, []string) { began = true }
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if errors.Is(err, errDoctor) { // the table has said it
		return exitFailure
	}
	fmt.Fprintf(stderr, "vch: %s\n", oneLine(err))
	var usage usageError
	if !began || errors.As(err, &usage) {
		fmt.Fprintln(stderr, "vch: see vch --help")
		return exitUsage
	}
	return exitFailure
}

// oneLine is an error's text without the line breaks that some causes have.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func versionCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this vch",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			tether := "with its tether"
			if len(tetherProgram()) == 0 {
				tether = "without a tether: it cannot serve; build it with make build"
			}
			_, err := fmt.Fprintf(stdout, "vch %s (commit %s, built %s), %s\n", version, commit, built, tether)
			return err
		},
	}
}
