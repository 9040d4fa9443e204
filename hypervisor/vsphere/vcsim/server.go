package vcsim

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// server is the front door: it counts, delays and loses, and serves files itself.
type server struct {
	s            *Sim
	listener     net.Listener
	http         *http.Server
	mux          http.Handler
	served       chan struct{} // closed when Serve has returned
	sha256, sha1 string
	pem          []byte
	calls        sync.WaitGroup // that are being served

	mu       sync.Mutex // guards below
	closed   bool
	over     chan struct{}         // closed when all sessions end; a new one from then on
	sessions map[string]string     // who is logged in, by the cookie's value
	waiting  map[string]*collector // that somebody waits on, by session and reference
	news     map[string]*news      // likewise, of those that somebody has waited on
}

func (s *Sim) serve() (*server, error) {
	v := &server{s: s, served: make(chan struct{}), over: make(chan struct{}), sessions: map[string]string{}, waiting: map[string]*collector{}, news: map[string]*news{}}
	cert, err := v.certificate()
	if err != nil {
		return nil, err
	}
	// The simulator's own server is made for what it puts into the mux, and closed.
	s.service.Listen = &url.URL{User: url.UserPassword(s.o.User, s.o.Password)}
	inner := s.service.NewServer()
	inner.Close()
	v.mux = s.service.ServeMux
	address := s.o.Listen
	if address == "" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	v.listener = l
	s.service.Listen = &url.URL{Scheme: "https", Host: l.Addr().String(), Path: vim25.Path, User: url.UserPassword(s.o.User, s.o.Password)}
	v.http = &http.Server{Handler: v, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ReadHeaderTimeout: time.Minute,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP 1.1, as a vCenter: a lost answer is a cut connection
		ErrorLog:     slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug)}
	go func() {
		defer close(v.served)
		if err := v.http.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			s.o.Log.Error("the simulated vCenter serves no more", "error", err)
		}
	}()
	return v, nil
}

func (v *server) certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "vcsim"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	v.sha256, v.sha1 = colons(sha256.Sum256(der)), colons(sha1.Sum(der))
	v.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func colons[T [20]byte | [32]byte](sum T) string {
	var parts []string
	for i := range len(sum) {
		parts = append(parts, fmt.Sprintf("%02X", sum[i]))
	}
	return strings.Join(parts, ":")
}

// close ends every connection and waits for the calls.
func (v *server) close() error {
	v.mu.Lock()
	v.closed = true
	for _, pc := range v.waiting {
		pc.stop()
	}
	v.mu.Unlock()
	err := v.http.Close() // Shutdown would wait seconds for connections that were made and not used
	v.calls.Wait()
	<-v.served
	return err
}

var (
	soapMethod = regexp.MustCompile(`<(?:[A-Za-z0-9]+:)?Body[^>]*>\s*<(?:[A-Za-z0-9]+:)?([A-Za-z_]+)`)
	soapThis   = regexp.MustCompile(`<_this[^>]*>([^<]*)</_this>`)
)

// ServeHTTP serves what a vCenter's port 443 does.
func (v *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	v.calls.Add(1)
	v.mu.Unlock()
	defer v.calls.Done()
	switch {
	case strings.HasPrefix(r.URL.Path, folderPrefix):
		name := r.Method + " /folder"
		defer v.called(name, time.Now())
		if !v.s.control.arrived(r.Context(), v.s.ctx, name) {
			panic(http.ErrAbortHandler)
		}
		lost := v.s.control.lost(name)
		out := http.ResponseWriter(w)
		if lost {
			out = &answer{header: http.Header{}}
		}
		v.folder(out, r)
		if lost {
			panic(http.ErrAbortHandler)
		}
	case r.Method == http.MethodPost:
		v.soap(w, r)
	default:
		v.mux.ServeHTTP(w, r)
	}
}

// called tells who wants to know of a call that has been answered.
func (v *server) called(name string, arrived time.Time) {
	if tell := v.s.o.Called; tell != nil {
		tell(name, arrived, time.Now())
	}
}

// answer keeps what a handler answers.
type answer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header { return a.header }
func (a *answer) WriteHeader(code int) {
	if a.code == 0 {
		a.code = code
	}
}
func (a *answer) Write(p []byte) (int, error) { a.WriteHeader(http.StatusOK); return a.body.Write(p) }

func (v *server) soap(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	method, this := "", ""
	if m := soapMethod.FindSubmatch(body); m != nil {
		method = string(m[1])
	}
	if m := soapThis.FindSubmatch(body); m != nil {
		this = string(m[1])
	}
	defer v.called(method, time.Now())
	if !v.s.control.arrived(r.Context(), v.s.ctx, method) {
		panic(http.ErrAbortHandler)
	}
	lost := v.s.control.lost(method)
	a := &answer{header: http.Header{}}
	if method == "WaitForUpdatesEx" {
		v.wait(a, r, this, body)
	} else {
		v.mux.ServeHTTP(a, r)
	}
	v.learn(method, a)
	if lost {
		panic(http.ErrAbortHandler)
	}
	for k, all := range a.header {
		w.Header()[k] = all
	}
	w.WriteHeader(max(a.code, http.StatusOK))
	_, _ = w.Write(a.body.Bytes())
}

var userName = regexp.MustCompile(`<userName>([^<]*)</userName>`)

// learn takes note of who has logged in.
func (v *server) learn(method string, a *answer) {
	if !strings.HasPrefix(method, "Login") {
		return
	}
	user := v.s.o.User
	if m := userName.FindSubmatch(a.body.Bytes()); m != nil {
		user = string(m[1])
	}
	for _, c := range (&http.Response{Header: a.header}).Cookies() {
		if c.Name == soap.SessionCookieName {
			v.mu.Lock()
			v.sessions[c.Value] = user
			v.mu.Unlock()
		}
	}
}

func session(r *http.Request) string {
	c, err := r.Cookie(soap.SessionCookieName)
	if err != nil {
		return ""
	}
	return c.Value
}

// waits takes note of a property collector that a session is going to wait on.
func (v *server) waits(session, this string, pc *collector) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting[session+" "+this] = pc
}

// wait is a WaitForUpdatesEx: it ends when its client goes away, which the simulator's own would not notice, and its updates would be lost to the
// client's next.
func (v *server) wait(a *answer, r *http.Request, this string, body []byte) {
	key := session(r) + " " + this
	done := make(chan struct{})
	v.mu.Lock()
	over := v.over
	v.mu.Unlock()
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-done:
			return
		case <-r.Context().Done():
		case <-over:
		case <-v.s.ctx.Done():
		}
		// The call may not have come to where it can be cancelled.
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			v.mu.Lock()
			pc := v.waiting[key]
			v.mu.Unlock()
			if pc != nil {
				pc.stop()
			}
			select {
			case <-done:
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	})
	v.mux.ServeHTTP(a, r)
	close(done)
	watch.Wait()
	v.mu.Lock()
	delete(v.waiting, key)
	v.mu.Unlock()
	select {
	case <-over: // asked once more, it is told why
		*a = answer{header: http.Header{}}
		r.Body = io.NopCloser(bytes.NewReader(body))
		v.mux.ServeHTTP(a, r)
	default:
	}
}

// EndSessions ends every session: what comes next from any client is NotAuthenticated.
func (s *Sim) EndSessions() {
	v := s.server
	v.mu.Lock()
	var ids []string
	for id := range v.sessions {
		ids = append(ids, id)
	}
	clear(v.sessions)
	over := v.over
	v.over = make(chan struct{})
	v.mu.Unlock()
	ctx := s.context()
	ctx.Session = &simulator.Session{}
	for _, id := range ids { // one that has logged out is NotFound, and would stop the others
		ctx.Map.SessionManager().TerminateSession(ctx, &types.TerminateSession{SessionId: []string{id}})
	}
	close(over)
}

// active says whether a request comes from somebody who is logged in, or gives name and password, which /folder takes as well.
func (v *server) active(r *http.Request) bool {
	if user, password, ok := r.BasicAuth(); ok {
		return user == v.s.o.User && password == v.s.o.Password
	}
	id := session(r)
	v.mu.Lock()
	user, ok := v.sessions[id]
	v.mu.Unlock()
	if !ok {
		return false
	}
	ctx := v.s.context()
	res, ok := ctx.Map.SessionManager().SessionIsActive(ctx, &types.SessionIsActive{SessionID: id, UserName: user}).(*methods.SessionIsActiveBody)
	return ok && res.Res != nil && res.Res.Returnval
}

const folderPrefix = "/folder/"

// folder serves files: /folder/PATH?dcPath=DC0&dsName=datastore1.
func (v *server) folder(w http.ResponseWriter, r *http.Request) {
	if !v.active(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "401 Unauthorized", http.StatusUnauthorized)
		return
	}
	q := r.URL.Query()
	if dc := strings.TrimPrefix(q.Get("dcPath"), "/"); dc != "" && dc != Datacenter {
		http.Error(w, "404 Not Found", http.StatusNotFound)
		return
	}
	name := q.Get("dsName")
	if name == "" && len(v.s.stores) == 1 {
		name = v.s.o.Datastores[0]
	}
	store := v.s.stores[name]
	if store == nil || strings.Contains(r.URL.Path+"/", "/../") {
		http.Error(w, "404 Not Found", http.StatusNotFound)
		return
	}
	if store.lost.Load() {
		http.Error(w, "500 Internal Server Error", http.StatusInternalServerError)
		return
	}
	rel := strings.TrimPrefix(path.Clean("/"+strings.TrimPrefix(r.URL.Path, folderPrefix)), "/")
	p := place{store, rel, filepath.Join(store.dir, filepath.FromSlash(rel))}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		v.get(w, r, p)
	case http.MethodPut, http.MethodPost:
		v.put(w, r, p)
	case http.MethodDelete:
		if f := v.s.remove(p); f != nil {
			http.Error(w, textOf(f), codeOf(f))
			return
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, "405 Method Not Allowed", http.StatusMethodNotAllowed)
	}
}

func codeOf(f types.BaseMethodFault) int {
	switch f.(type) {
	case *types.FileNotFound:
		return http.StatusNotFound
	case *types.FileAlreadyExists:
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

func (v *server) get(w http.ResponseWriter, r *http.Request, p place) {
	f, err := os.Open(p.local)
	if err != nil {
		http.Error(w, "Not Found", codeOf(fileFault(p, err)))
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if st.IsDir() {
		w.Header().Set("Content-Type", "text/html")
		all, _ := f.ReadDir(-1)
		for _, e := range all {
			fmt.Fprintf(w, "<a href=%q>%s</a>\n", url.PathEscape(e.Name()), e.Name())
		}
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", st.ModTime(), f)
}

// put writes a file in its place: who reads meanwhile sees a part, and of one that is cut off a part stays, as on a real one.
func (v *server) put(w http.ResponseWriter, r *http.Request, p place) {
	if f := v.s.unlocked(p); f != nil {
		http.Error(w, textOf(f), http.StatusInternalServerError)
		return
	}
	_, err := os.Lstat(p.local)
	made := err != nil
	f, err := os.OpenFile(p.local, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		http.Error(w, "cannot write "+p.String(), codeOf(fileFault(p, err)))
		return
	}
	_, err = io.Copy(f, r.Body)
	if err = errors.Join(err, f.Close()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if made {
		w.WriteHeader(http.StatusCreated)
	}
}
