package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vch/portlayer"
	"vch/portlayer/volume/nfs"
)

func TestThumbprint(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	var out, diag bytes.Buffer
	if code := run(t.Context(), []string{"thumbprint", server.URL}, &out, &diag); code != 0 {
		t.Fatalf("%d: %s", code, diag.String())
	}
	lines := strings.Fields(out.String())
	if len(lines) != 4 || lines[0] != "SHA-256" || len(lines[1]) != 95 || lines[2] != "SHA-1" || len(lines[3]) != 59 {
		t.Fatalf("%q", lines)
	}
	if v, err := (vsphereWords{target: "vc", user: "u", thumbprint: lines[1]}).parse(); err != nil || v.Thumbprint != strings.ToLower(strings.ReplaceAll(lines[1], ":", "")) {
		t.Errorf("it is no --thumbprint: %v", err)
	}
	plain := httptest.NewServer(nil)
	defer plain.Close()
	for at, code := range map[string]int{plain.Listener.Addr().String(): exitFailure, "http://x": exitUsage, "https://": exitUsage, ":1": exitUsage} {
		diag.Reset()
		if got := run(t.Context(), []string{"thumbprint", at}, &out, &diag); got != code {
			t.Errorf("%s: exit code %d: %s", at, got, diag.String())
		}
	}
	for text, want := range map[string]string{"vc": "vc:443", "https://vc/sdk": "vc:443", "vc:8443": "vc:8443", "[::1]": "[::1]:443"} {
		if got, err := thumbprintAddress(text); got != want || err != nil {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
}

func TestSinceTime(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{"": {}, "10m": now.Add(-10 * time.Minute), "2026-11-26T11:00:00Z": now.Add(-time.Hour)} {
		if got, err := sinceTime(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if _, err := sinceTime("yesterday", now); err == nil {
		t.Error("yesterday")
	}
}

// A log is shown from a time on, or its end, and followed: also when it is cut, which makes it another file.
func TestShowLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	line := func(minute int, text string) string {
		return fmt.Sprintf("time=2026-11-26T12:%02d:00.000Z level=INFO msg=%s\n", minute, text)
	}
	text := line(1, "a") + "panic: of a\n" + line(2, "b") + "panic: of b\n" + `{"time":"2026-11-26T12:03:00Z","msg":"c"}` + "\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(minute int) time.Time { return time.Date(2026, 11, 26, 12, minute, 0, 0, time.UTC) }
	for _, tc := range []struct {
		from time.Time
		last int
		want string
	}{{time.Time{}, -1, text}, {at(2), -1, text[strings.Index(text, line(2, "b")):]}, {at(3), -1, text[strings.Index(text, "{"):]}, {at(9), -1, ""}, {time.Time{}, 1, text[strings.Index(text, "{"):]}, {time.Time{}, 0, ""}} {
		var out bytes.Buffer
		if err := showLog(t.Context(), &out, path, false, tc.from, tc.last); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tc.want, out.String()); diff != "" {
			t.Errorf("from %v, last %d: %s", tc.from, tc.last, diff)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- showLog(ctx, w, path, true, time.Time{}, 0); w.Close() }()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := make([]byte, 100)
	var n int
	for i := 0; n == 0; i++ { // it may not be at the end yet when the first of these is written
		fmt.Fprintf(f, "line %d\n", i)
		r.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, _ = r.Read(read)
	}
	if !strings.HasPrefix(string(read[:n]), "line ") {
		t.Errorf("%q", read[:n])
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	r.Close()
}

func TestMovedStores(t *testing.T) {
	a, b := storePlace{Name: "a", Path: "/a"}, storePlace{Name: "b", NFS: &nfs.Location{Host: "h", Port: 2049, Path: "/e"}}
	soft := storePlace{Name: "b", NFS: &nfs.Location{Host: "h", Port: 2049, Path: "/e", Options: nfs.Options{Soft: true}}}
	for _, tc := range []struct {
		is   []storePlace
		want []portlayer.StoreName
	}{
		{[]storePlace{a, b}, nil}, {[]storePlace{soft, a}, nil}, {[]storePlace{b}, []portlayer.StoreName{"a"}},
		{[]storePlace{{Name: "a", Path: "/x"}, b}, []portlayer.StoreName{"a"}}, {[]storePlace{{Name: "x", Path: "/a"}, {Name: "b", Path: "/e"}}, []portlayer.StoreName{"a", "b"}},
	} {
		if diff := cmp.Diff(tc.want, movedStores([]storePlace{a, b}, tc.is)); diff != "" {
			t.Errorf("%+v: %s", tc.is, diff)
		}
	}
}

// The line that makes a docker context says an address that a client can reach.
func TestContextLines(t *testing.T) {
	l := place{Name: "x", Socket: "/h/x/vch.sock", Client: "/h/x/client"}
	own := &tlsFiles{Own: "/h/x/state/tls", Names: []string{"*.example", "vch.example"}}
	unix, tcp := address{"unix", "/h/x/vch.sock"}, address{"tcp", "0.0.0.0:2376"}
	for _, tc := range []struct {
		s    settings
		want string
	}{
		{settings{Listen: []address{unix}}, `docker context create x --docker "host=unix:///h/x/vch.sock"`},
		{settings{Listen: []address{unix, tcp}, TLS: own}, `docker context create x --docker "host=tcp://vch.example:2376,ca=/h/x/client/ca.pem,cert=/h/x/client/cert.pem,key=/h/x/client/key.pem"`},
		{settings{Listen: []address{unix, {"tcp", "10.0.0.1:99"}}}, `docker context create x --docker "host=tcp://10.0.0.1:99"`},
		{settings{Listen: []address{unix, {"tcp", "h:99"}}, TLS: &tlsFiles{}}, `docker context create x --docker "host=tcp://h:99,ca=CA.pem,cert=YOUR-CERT.pem,key=YOUR-KEY.pem"`},
	} {
		if diff := cmp.Diff([]string{tc.want}, contextLines(l, tc.s)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestConfirm(t *testing.T) {
	for answer, good := range map[string]bool{"web\n": true, " web ": true, "yes\n": false, "": false} {
		var out bytes.Buffer
		if err := confirm(strings.NewReader(answer), &out, "web", []string{"data"}); (err == nil) != good || !strings.Contains(out.String(), "data will be deleted") {
			t.Errorf("%q: %v, %s", answer, err, out.String())
		}
	}
}
