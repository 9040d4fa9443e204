package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vch/internal/atomicfile"
	"vch/internal/fault"
)

// The files of certificates. A client's have the names that the docker CLI looks for in DOCKER_CERT_PATH.
const (
	caFile, caKeyFile         = "ca.pem", "ca-key.pem"
	serverFile, serverKeyFile = "server.pem", "server-key.pem"
	certFile, keyFile         = "cert.pem", "key.pem"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	certLife      = 825 * 24 * time.Hour // the most that clients of some vendors take
	renewBefore   = 30 * 24 * time.Hour
)

// tlsFiles are the certificates of a server, and those that made its clients'.
type tlsFiles struct {
	CA, Cert, Key string
	Own           string   // the directory of what vch makes itself; "": they are given
	Names         []string // that its server's certificate is to hold beside those of the machine
}

// config reads them, making vch's own first where they are missing, for the addresses where it listens.
func (f tlsFiles) config(listen []address) (*tls.Config, error) {
	if f.Own != "" {
		if _, err := (authority{f.Own}).server(append(listenNames(listen), f.Names...)); err != nil {
			return nil, err
		}
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot use the certificate %s with the key %s: %w", f.Cert, f.Key, err)
	}
	text, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot read the certificate that clients' are checked by: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fault.New(fault.Invalid, "%s holds no certificate that clients' could be checked by (PEM)", f.CA)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}, nil
}

// listenNames are the names that clients may know this machine by.
func listenNames(listen []address) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	for _, a := range listen {
		host, _, err := net.SplitHostPort(a.At)
		if a.Network != "tcp" || err != nil {
			continue
		}
		if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
			names = append(names, host)
			continue
		}
		all, _ := net.InterfaceAddrs() // none: it is known by its names
		for _, addr := range all {
			if n, ok := addr.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
				names = append(names, n.IP.String())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// authority signs the certificates of one VCH. It is a directory.
type authority struct{ dir string }

// signer is the authority's certificate and key, made if they are missing.
func (a authority) signer() (cert *x509.Certificate, key *ecdsa.PrivateKey, err error) {
	certPath, keyPath := filepath.Join(a.dir, caFile), filepath.Join(a.dir, caKeyFile)
	cert, key, err = readPair(certPath, keyPath)
	if !errors.Is(err, fs.ErrNotExist) {
		return cert, key, err
	}
	if _, err := os.Stat(certPath); err == nil {
		return nil, nil, fault.New(fault.NotFound, "%s is there and its key %s is not: put the key there, or remove the certificate and hand out new ones", certPath, keyPath)
	}
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return nil, nil, err
	}
	name, _ := os.Hostname()
	template := &x509.Certificate{
		Subject:  pkix.Name{CommonName: "vch on " + name},
		NotAfter: time.Now().Add(authorityLife), BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	return issue(template, nil, nil, certPath, keyPath)
}

// server makes the server's certificate for names, unless there is one for all of them that is not about to end. It reports whether it has.
func (a authority) server(names []string) (made bool, err error) {
	ca, key, err := a.signer()
	if err != nil {
		return false, err
	}
	certPath, keyPath := filepath.Join(a.dir, serverFile), filepath.Join(a.dir, serverKeyFile)
	have, _, err := readPair(certPath, keyPath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	case time.Until(have.NotAfter) > renewBefore && have.CheckSignatureFrom(ca) == nil && !slices.ContainsFunc(names, func(n string) bool { return have.VerifyHostname(bracketed(n)) != nil }):
		return false, nil
	default:
		for _, ip := range have.IPAddresses {
			names = append(names, ip.String())
		}
		names = append(names, have.DNSNames...)
	}
	slices.Sort(names)
	template := certificate("vch", x509.ExtKeyUsageServerAuth)
	for _, n := range slices.Compact(names) {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	_, _, err = issue(template, ca, key, certPath, keyPath)
	return err == nil, err
}

// bracketed is a name as x509 checks it: an address stands in brackets.
func bracketed(name string) string {
	if net.ParseIP(name) != nil {
		return "[" + name + "]"
	}
	return name
}

// client makes a certificate for a client in dir, with the authority's beside it. One that is there stays, and is refused.
func (a authority) client(dir, name string) error {
	ca, key, err := a.signer()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, file := range []string{caFile, certFile, keyFile} {
		if _, err := os.Lstat(filepath.Join(dir, file)); err == nil {
			return fault.New(fault.Conflict, "%s is there already; give another directory with --client", filepath.Join(dir, file))
		}
	}
	if _, _, err := issue(certificate(name, x509.ExtKeyUsageClientAuth), ca, key, filepath.Join(dir, certFile), filepath.Join(dir, keyFile)); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, caFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o644)
}

func certificate(name string, use x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(certLife), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}, BasicConstraintsValid: true}
}

// issue makes a key and a certificate for it, signed by ca (nil: by itself), the key's file first.
func issue(template, ca *x509.Certificate, caKey *ecdsa.PrivateKey, certPath, keyPath string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	const serialBits = 127
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), serialBits)); err != nil {
		return nil, nil, err
	}
	template.NotBefore = time.Now().Add(-time.Hour) // clients' clocks differ
	if ca == nil {
		ca, caKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &key.PublicKey, caKey)
	if err != nil {
		return nil, nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	if err := atomicfile.Write(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return nil, nil, err
	}
	return cert, key, atomicfile.Write(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func readPair(certPath, keyPath string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	pair, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot use the certificate %s with the key %s: %w", certPath, keyPath, err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fault.New(fault.Invalid, "the key %s was not made by vch", keyPath)
	}
	return pair.Leaf, key, nil
}

// certCommand makes certificates.
func certCommand(stdout io.Writer) *cobra.Command {
	var w words
	var names []string
	var client, user string
	settings := pflag.NewFlagSet("", pflag.ContinueOnError) // a configuration file may hold them all; the command line says two of them
	w.flags(settings)
	cmd := &cobra.Command{
		Use:   "cert",
		Short: "Make the certificates for reaching vch serve over TCP",
		Long: `vch cert makes, in the directory tls of --state, a certificate authority of this VCH's own and the server's certificate, where they are missing, and with --client
a certificate for one client: ca.pem, cert.pem and key.pem, which the docker CLI looks for in DOCKER_CERT_PATH. Who has these can do everything that the daemon can.

vch serve --tlsverify uses what stands there, and makes the server's certificate itself where it is missing or about to end, for the addresses where it listens.
To take a client's right away again, remove the directory tls, and make all certificates anew.`,
		Example: `  vch cert --name vch.example.org --client ~/laptop
  vch serve --listen tcp://0.0.0.0:2376 --tlsverify
  DOCKER_HOST=tcp://vch.example.org:2376 DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=~/laptop docker ps`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := w.resolve(settings)
			if err != nil {
				return err
			}
			return makeCerts(cmd.Context(), stdout, authority{filepath.Join(s.State, "tls")}, names, client, user)
		},
	}
	cmd.Flags().StringArrayVar(&names, "name", nil, "a `NAME` or address that clients know this machine by, beside its own; may be given several times")
	cmd.Flags().StringVar(&client, "client", "", "make a certificate for a client in this `DIRECTORY`")
	cmd.Flags().StringVar(&user, "user", "client", "`WHO` the client is, for those who read its certificate")
	for _, name := range []string{"state", configFlag} {
		cmd.Flags().AddFlag(settings.Lookup(name))
	}
	return cmd
}

func makeCerts(_ context.Context, stdout io.Writer, a authority, names []string, client, user string) error {
	if _, err := os.Stat(filepath.Join(a.dir, serverFile)); errors.Is(err, fs.ErrNotExist) {
		names = append(listenNames([]address{{"tcp", ":0"}}), names...)
	}
	made, err := a.server(names)
	if err != nil {
		return err
	}
	what := "is there"
	if made {
		what = "was made"
	}
	if _, err := fmt.Fprintf(stdout, "the server's certificate %s: %s\n", what, filepath.Join(a.dir, serverFile)); err != nil || client == "" {
		return err
	}
	dir, err := filepath.Abs(client)
	if err != nil {
		return err
	}
	if err := a.client(dir, user); err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "a client's certificate was made: export DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=%s\n", dir)
	return err
}
