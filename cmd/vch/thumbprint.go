package main

import (
	"context"
	"crypto/sha1" // a thumbprint, to compare with what others show
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vch/internal/fault"
)

func thumbprintCommand(stdout io.Writer) *cobra.Command {
	return &cobra.Command{
		Use:   "thumbprint URL|HOST[:PORT]",
		Short: "Print the thumbprint of a server's certificate",
		Long: `vch thumbprint connects to a server by TLS, believes nothing that it says, and prints the SHA-256 and the SHA-1 of its certificate. Compare it with what the server's administrator tells you
before you give it to --thumbprint. Without a port it is 443.`,
		Example: "  vch thumbprint vcenter.example.com",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := thumbprintAddress(args[0])
			if err != nil {
				return err
			}
			raw, err := certificateAt(cmd.Context(), at)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(stdout, "SHA-256  %s\nSHA-1    %s\n", colons(fmt.Sprintf("%X", sha256.Sum256(raw))), colons(fmt.Sprintf("%X", sha1.Sum(raw))))
			return err
		},
	}
}

// thumbprintAddress is HOST:PORT of a server.
func thumbprintAddress(text string) (string, error) {
	if scheme, _, ok := strings.Cut(text, "://"); ok {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" {
			return "", usagef("%q is neither a URL nor HOST[:PORT]", text)
		}
		if scheme == "http" {
			return "", usagef("%s: http has no certificates", text)
		}
		text = u.Host
	}
	at, err := hostPort(text, "443")
	if err != nil || strings.HasPrefix(at, ":") {
		return "", usagef("%q is neither a URL nor HOST[:PORT]", text)
	}
	return at, nil
}

// certificateAt is the server's certificate, unverified.
func certificateAt(ctx context.Context, at string) ([]byte, error) {
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return nil, err
	}
	var raw []byte
	// Whatever it is, it is looked at and not trusted. One that asks for a client's certificate has shown its own by then.
	config := &tls.Config{InsecureSkipVerify: true, ServerName: host, VerifyPeerCertificate: func(certs [][]byte, _ [][]*x509.Certificate) error {
		if len(certs) > 0 {
			raw = certs[0]
		}
		return nil
	}}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", at)
	if err == nil {
		conn.Close()
	}
	if raw == nil {
		if err == nil {
			err = fmt.Errorf("it showed none")
		}
		return nil, fault.New(fault.Unavailable, "cannot see the certificate of %s: %w", at, err)
	}
	return raw, nil
}

// colons puts a colon after every second digit.
func colons(digits string) string {
	var b strings.Builder
	for i := 0; i < len(digits); i += 2 {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(digits[i : i+2])
	}
	return b.String()
}
