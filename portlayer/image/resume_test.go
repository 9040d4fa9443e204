package image

import (
	"bytes"
	"math/rand"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// largeLayer is a layer that does not compress.
func largeLayer(t *testing.T) []byte {
	body := make([]byte, 3*leastKept)
	rand.New(rand.NewSource(1)).Read(body)
	return makeTar(t, ent{name: "large", body: string(body)})
}

// cutOff is a registry that breaks the transfer of one blob after so many bytes, as often as told, and notes what is asked for.
type cutOff struct {
	suffix string
	after  int64
	times  int
	ranges []string
}

func (c *cutOff) handle(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, c.suffix) {
		inner(r).ServeHTTP(w, r)
		return
	}
	c.ranges = append(c.ranges, r.Header.Get("Range"))
	if c.times > 0 {
		c.times--
		w = &brokenWriter{w, c.after}
	}
	inner(r).ServeHTTP(w, r)
}

// brokenWriter lets so many bytes through and then breaks the connection.
type brokenWriter struct {
	http.ResponseWriter
	left int64
}

func (s *brokenWriter) Write(b []byte) (int, error) {
	if int64(len(b)) > s.left {
		s.ResponseWriter.Write(b[:s.left])
		http.NewResponseController(s.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	s.left -= int64(len(b))
	return s.ResponseWriter.Write(b)
}

// A pull that was cut off goes on where it was: at the next try, and after a restart of the daemon.
func TestPullGoesOn(t *testing.T) {
	b, h := newBox(t), newHub(t)
	img := makeImage(t, hostPlatform().Architecture, largeLayer(t))
	ref := h.push("app", img)
	digest := digests(t, img)[0]
	cut := &cutOff{suffix: digest, after: leastKept, times: 1}
	h.set(cut.handle)
	if _, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil); err != nil {
		t.Fatal(err)
	}
	if len(cut.ranges) != 2 || cut.ranges[0] != "" || !strings.HasPrefix(cut.ranges[1], "bytes=1048576-") {
		t.Errorf("asked for %q", cut.ranges)
	}
	if left, _ := os.ReadDir(b.partialDir()); len(left) != 0 {
		t.Errorf("kept: %v", left)
	}
	b2 := newBox(t)
	cut = &cutOff{suffix: digest, after: leastKept / 2, times: transferTries}
	h.set(cut.handle)
	_, err := b2.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil)
	wantKind(t, err, fault.Unavailable, "broke after 1572864 of")
	b2.restart()
	cut.ranges = nil
	if _, err := b2.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil); err != nil {
		t.Fatal(err)
	}
	if len(cut.ranges) != 1 || !strings.HasPrefix(cut.ranges[0], "bytes=1572864-") {
		t.Errorf("after a restart it asked for %q", cut.ranges)
	}
}

// A registry that does not know ranges, or sends other bytes: what is kept is not mixed up.
func TestPullGoesOnWithoutRanges(t *testing.T) {
	b, h := newBox(t), newHub(t)
	img := makeImage(t, hostPlatform().Architecture, largeLayer(t))
	ref := h.push("app", img)
	digest := digests(t, img)[0]
	cut := &cutOff{suffix: digest, after: leastKept, times: 1}
	h.set(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Range")
		cut.handle(w, r)
	})
	if _, err := b.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil); err != nil {
		t.Fatal(err)
	}
	// What was kept has rotted: the digest tells, and the next pull begins anew.
	b2 := newBox(t)
	cut = &cutOff{suffix: digest, after: leastKept, times: transferTries}
	h.set(cut.handle)
	if _, err := b2.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil); err == nil {
		t.Fatal("it was not cut off")
	}
	kept := b2.partialDir() + "/" + strings.TrimPrefix(digest, "sha256:")
	f, err := os.OpenFile(kept, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff, 0xff}, 1000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	_, err = b2.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil)
	wantKind(t, err, fault.Unavailable, "verification failed for digest "+digest)
	if _, err := b2.Pull(t.Context(), ref, "", portlayer.Credentials{}, nil); err != nil {
		t.Error(err)
	}
}

// What nobody goes on with is removed: by a prune after an hour, by a start after a week.
func TestPartialsAreRemoved(t *testing.T) {
	b := newBox(t)
	write := func(age time.Duration) string {
		path := b.partialDir() + "/" + strings.Repeat("a", 64)
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 100), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	path := write(time.Minute)
	if _, _, err := b.Prune(t.Context(), false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("what may be coming just now was removed")
	}
	path = write(2 * unfinished)
	b.restart()
	if _, err := os.Stat(path); err != nil {
		t.Error("a start has removed it too early")
	}
	if _, freed, err := b.Prune(t.Context(), false, nil); err != nil || freed != 100 {
		t.Errorf("%d bytes freed, %v", freed, err)
	}
	path = write(2 * partialLife)
	b.restart()
	if _, err := os.Stat(path); err == nil {
		t.Error("it is there after a week")
	}
}

// Docker Hub's images come from a mirror, if one has them; others' do not, and no mirror hears a password.
func TestMirrors(t *testing.T) {
	h, empty := newHub(t), newHub(t)
	h.push("library/app:latest", twoLayers(t))
	asked := 0
	h.set(func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); ok || r.Header.Get("Authorization") != "" {
			asked++
		}
		inner(r).ServeHTTP(w, r)
	})
	b := newBox(t)
	b.mirrors = []Mirror{{"http", empty.host}, {"http", h.host}}
	img, err := b.Pull(t.Context(), "app", "", portlayer.Credentials{Username: "ann", Password: "secret"}, nil)
	if err != nil || len(img.Tags) != 1 || img.Tags[0] != "app:latest" || !strings.HasPrefix(img.Digests[0], "app@sha256:") {
		t.Errorf("%+v, %v", img, err)
	}
	if asked != 0 {
		t.Errorf("a mirror was given credentials %d times", asked)
	}
	if n := empty.count("library/app/manifests/latest"); n == 0 {
		t.Error("the first mirror was not asked")
	}
	h.set(nil)
	if _, err := b.Pull(t.Context(), h.host+"/other/app", "", portlayer.Credentials{}, nil); !fault.Is(err, fault.NotFound) || empty.count("other/app/manifests/latest") != 0 {
		t.Errorf("another registry's image: %v", err)
	}
}

func TestParseRegistries(t *testing.T) {
	for text, ok := range map[string]bool{"https://mirror.example": true, "http://10.0.0.1:5000/": true, "mirror.example": false, "https://": false, "ftp://x": false, "https://x/path": false, "https://u:p@x": false, "https://x?q": false} {
		if _, err := ParseMirror(text); (err == nil) != ok {
			t.Errorf("mirror %s: %v", text, err)
		}
	}
	for text, ok := range map[string]bool{"reg.example:5000": true, "10.0.0.0/8": true, "::1/128": true, "http://x": false, "": false, "a b": false, "x/y": false} {
		if _, err := ParseInsecure([]string{text}); (err == nil) != ok {
			t.Errorf("insecure %s: %v", text, err)
		}
	}
}
