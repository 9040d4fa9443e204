package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"vch/internal/atomicfile"
)

func exportCommand(c *client, stdout io.Writer) *cobra.Command {
	output, format := "", ""
	cmd := &cobra.Command{
		Use:   "export VOLUME",
		Short: "Write a volume's content, or its disk, as a tar, with a checksum",
		Long: `The content of the volume as a tar, with owners, modes, times, extended attributes and links. Containers go on; one that writes meanwhile may be half in it: export a
copy of a snapshot to be sure. The checksum of what was written is printed at the end, for vch volume import --checksum.

With --format vmdk the tar holds the disk itself, a VMDK of two files as VMware and QEMU read it. VOLUME can be a snapshot then, VOLUME@SNAPSHOT; one that a container writes to is refused.`,
		Example: "  vch volume export data >data.tar\n  vch volume export -o data.tar data",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, diag := cmd.Context(), cmd.ErrOrStderr()
			if output != "" {
				return atomicfile.WriteFrom(output, 0o600, func(w io.Writer) error { return c.export(ctx, args[0], format, w, diag) })
			}
			if f, ok := stdout.(*os.File); ok && isTerminal(f) {
				return usagef("a tar does not belong on a terminal: write > FILE, or -o FILE")
			}
			return c.export(ctx, args[0], format, stdout, diag)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to this `FILE`, which is there whole or not at all, instead of standard output")
	cmd.Flags().StringVar(&format, "format", "tar", "`FORM` to write: tar (the content) or vmdk (the disk)")
	return cmd
}

// export copies the daemon's tar to w, and checks that all of it came.
func (c *client) export(ctx context.Context, volume, format string, w, diag io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, volumePath(volume, "export")+"?format="+url.QueryEscape(format), nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sum, b := sha256.New(), newBar(diag)
	_, err = io.Copy(io.MultiWriter(w, sum, b), resp.Body)
	b.end()
	if err != nil {
		return fmt.Errorf("the archive is not whole: %w", err)
	}
	if why := resp.Trailer.Get("X-Vch-Error"); why != "" {
		return fmt.Errorf("the archive is not whole: %s", why)
	}
	have := checksumOf(sum)
	switch want := resp.Trailer.Get("X-Vch-Checksum"); {
	case want == "":
		return errors.New("the archive is not whole: the daemon did not end it")
	case want != have:
		return fmt.Errorf("the archive was damaged on its way: it has the checksum %s, and should have %s", have, want)
	}
	_, err = fmt.Fprintln(diag, have)
	return err
}

func checksumOf(sum hash.Hash) string { return "sha256:" + hex.EncodeToString(sum.Sum(nil)) }

func importCommand(c *client, stdout io.Writer) *cobra.Command {
	var input, checksum, driver, format string
	var options, labels []string
	cmd := &cobra.Command{
		Use:   "import VOLUME",
		Short: "Make a volume of a tar",
		Long: `A new volume with the content of a tar (also gzip, bzip2 or zstd), as vch volume export writes it. It is there whole or not at all. VOLUME may not exist; NAME@STORE
says in which store it is to be.`,
		Example: "  vch volume import data <data.tar\n  vch volume import --opt Capacity=20G -i data.tar.zst --checksum sha256:… data",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if input != "" {
				f, err := os.Open(input)
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			} else if f, ok := in.(*os.File); ok && isTerminal(f) {
				return usagef("where is the tar? write < FILE, or -i FILE")
			}
			q := url.Values{"opt": options, "label": labels, "format": {format}}
			if checksum != "" {
				q.Set("checksum", checksum)
			}
			if driver != "" {
				q.Set("driver", driver)
			}
			return c.importVolume(cmd.Context(), args[0], q, in, stdout, cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&input, "input", "i", "", "read this `FILE` instead of standard input")
	f.StringVar(&format, "format", "tar", "`FORM` of what is read: tar (the content), or vmdk (a disk that vch volume export --format vmdk has written)")
	f.StringVar(&checksum, "checksum", "", "refuse a tar that has not this checksum, `sha256:HEX`")
	f.StringVarP(&driver, "driver", "d", "", "of the volume, as docker volume create has it")
	f.StringArrayVar(&options, "opt", nil, "an option of the volume, `KEY=VALUE`, as docker volume create has them; may be given several times")
	f.StringArrayVar(&labels, "label", nil, "a label of the volume, `KEY=VALUE`; may be given several times")
	return cmd
}

func (c *client) importVolume(ctx context.Context, volume string, q url.Values, in io.Reader, stdout, diag io.Writer) error {
	sum, b := sha256.New(), newBar(diag)
	resp, err := c.send(ctx, http.MethodPost, volumePath(volume, "import")+"?"+q.Encode(), io.TeeReader(in, io.MultiWriter(sum, b)), "application/x-tar")
	b.end()
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var made struct{ Name, Checksum string }
	if err := json.NewDecoder(resp.Body).Decode(&made); err != nil {
		return err
	}
	if have := checksumOf(sum); made.Checksum != have {
		return fmt.Errorf("volume %s was made of something else than was sent (%s, not %s): remove it", made.Name, made.Checksum, have)
	}
	if _, err := fmt.Fprintln(diag, made.Checksum); err != nil {
		return err
	}
	return printLine(stdout, made.Name)
}
