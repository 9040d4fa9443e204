package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vch/internal/fault"
)

// reach asks for / at a TCP server with the certificates of dir ("" none), and says what came of it.
func reach(t *testing.T, at, dir string) error {
	t.Helper()
	env := func(name string) string {
		return map[string]string{"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": dir}[name]
	}
	if dir == "" {
		env = func(string) string { return "" }
	}
	dial, err := dialer(address{"tcp", at}, surroundings{}, env)
	if err != nil {
		return err
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}}
	resp, err := c.Get("http://vch/")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && string(text) != "hello" {
		err = fmt.Errorf("it said %q", text)
	}
	return err
}

func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	own := filepath.Join(dir, "tls")
	files := tlsFiles{CA: filepath.Join(own, caFile), Cert: filepath.Join(own, serverFile), Key: filepath.Join(own, serverKeyFile), Own: own}
	listen := []address{{"tcp", "127.0.0.1:0"}}
	config, err := files.config(listen)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{caKeyFile, serverKeyFile} {
		if fi, err := os.Stat(filepath.Join(own, key)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", key, fi, err)
		}
	}
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	ctx, cancel := context.WithCancel(t.Context())
	listening := make(chan string, 1)
	log := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		if _, rest, ok := strings.Cut(string(b), "msg=listening address=tcp://"); ok {
			at, _, _ := strings.Cut(rest, " ")
			listening <- at
		}
		return len(b), nil
	}), nil))
	ended := make(chan error, 1)
	go func() { ended <- answer(ctx, listen, config, hello, log) }()
	at := <-listening
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	client, stranger := filepath.Join(dir, "client"), filepath.Join(dir, "stranger")
	if err := (authority{own}).client(client, "ann"); err != nil {
		t.Fatal(err)
	}
	if err := reach(t, at, client); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	if err := (authority{own}).client(client, "ann"); !fault.Is(err, fault.Conflict) {
		t.Errorf("the same directory again: %v", err)
	}
	// Another authority's certificate, with this one's beside it, so that only the server can say no.
	if err := (authority{filepath.Join(dir, "other")}).client(stranger, "ann"); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(own, caFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stranger, caFile), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, dir := range map[string]string{"a stranger": stranger, "without TLS": ""} {
		if err := reach(t, at, dir); err == nil {
			t.Errorf("%s was let in", what)
		}
	}
	none := tls.Client(must(net.Dial("tcp", at)), &tls.Config{InsecureSkipVerify: true})
	defer none.Close()
	fmt.Fprint(none, "GET / HTTP/1.0\r\n\r\n")
	if text, err := io.ReadAll(none); err == nil {
		t.Errorf("without a certificate: %q", text)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestServerCertificateIsKeptOrRenewed(t *testing.T) {
	a := authority{t.TempDir()}
	read := func() *x509.Certificate {
		t.Helper()
		cert, _, err := readPair(filepath.Join(a.dir, serverFile), filepath.Join(a.dir, serverKeyFile))
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	if made, err := a.server([]string{"a.example", "192.0.2.1"}); err != nil || !made {
		t.Fatal(made, err)
	}
	first := read()
	if made, err := a.server([]string{"192.0.2.1"}); err != nil || made || !read().Equal(first) {
		t.Errorf("a certificate that will do was replaced: %v, %v", made, err)
	}
	if made, err := a.server([]string{"b.example"}); err != nil || !made {
		t.Errorf("a name more: %v, %v", made, err)
	}
	for _, name := range []string{"a.example", "b.example", "[192.0.2.1]"} {
		if err := read().VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	ca, key, err := a.signer()
	if err != nil {
		t.Fatal(err)
	}
	old := certificate("vch", x509.ExtKeyUsageServerAuth)
	old.NotAfter, old.DNSNames = time.Now().Add(renewBefore/2), []string{"b.example"}
	if _, _, err := issue(old, ca, key, filepath.Join(a.dir, serverFile), filepath.Join(a.dir, serverKeyFile)); err != nil {
		t.Fatal(err)
	}
	if made, err := a.server([]string{"b.example"}); err != nil || !made {
		t.Errorf("a certificate that is about to end: %v, %v", made, err)
	}
	if err := os.Remove(filepath.Join(a.dir, caKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.server([]string{"c.example"}); err == nil || !strings.Contains(err.Error(), "its key") {
		t.Errorf("without the authority's key: %v", err)
	}
}

func TestCertCommand(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	args := []string{"cert", "--state", filepath.Join(dir, "state"), "--name", "vch.example", "--client", filepath.Join(dir, "ann"), "--user", "ann"}
	if code := run(t.Context(), args, &out, &errs); code != 0 || !strings.Contains(out.String(), "the server's certificate was made") || !strings.Contains(out.String(), "DOCKER_CERT_PATH="+filepath.Join(dir, "ann")) {
		t.Fatalf("%d %s%s", code, out.String(), errs.String())
	}
	cert, _, err := readPair(filepath.Join(dir, "ann", certFile), filepath.Join(dir, "ann", keyFile))
	if err != nil || cert.Subject.CommonName != "ann" {
		t.Errorf("%v, %v", cert, err)
	}
	if code := run(t.Context(), args, &out, &errs); code != exitFailure || !strings.Contains(errs.String(), "is there already") {
		t.Errorf("again: %d %s", code, errs.String())
	}
}

func TestGivenCertificates(t *testing.T) {
	dir := t.TempDir()
	none := tlsFiles{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	if _, err := none.config(nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("files that are not there: %v", err)
	}
	if _, err := (authority{dir}).server([]string{"x"}); err != nil {
		t.Fatal(err)
	}
	given := tlsFiles{CA: filepath.Join(dir, serverKeyFile), Cert: filepath.Join(dir, serverFile), Key: filepath.Join(dir, serverKeyFile)}
	if _, err := given.config(nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "holds no certificate") {
		t.Errorf("no certificate in it: %v", err)
	}
}
