package personality

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"net/http"
	"strings"
	"time"

	"vch/internal/fault"
	"vch/portlayer"
)

// What vch can do with a volume and the Engine API has no word for stands below /vch/ (doc/adr/0006). vch volume asks for it.

func volumeOf(r *http.Request) portlayer.VolumeID {
	return portlayer.ParseVolumeID(r.PathValue("name"))
}

// answerVolume shows the volume that a call has changed.
func (s *Server) answerVolume(w http.ResponseWriter, vol portlayer.Volume, err error) error {
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, showVolume(vol, s.Volumes.Locations()))
}

// volumeProtect answers vch volume protect and unprotect.
func (s *Server) volumeProtect(w http.ResponseWriter, r *http.Request) error {
	vol, err := s.Volumes.Protect(r.Context(), volumeOf(r), r.Method == http.MethodPost)
	return s.answerVolume(w, vol, err)
}

// volumeResize answers vch volume resize.
func (s *Server) volumeResize(w http.ResponseWriter, r *http.Request) error {
	var req struct{ Capacity string }
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	vol, err := s.Volumes.Resize(r.Context(), volumeOf(r), req.Capacity)
	return s.answerVolume(w, vol, err)
}

// volumeRename answers vch volume rename.
func (s *Server) volumeRename(w http.ResponseWriter, r *http.Request) error {
	var req struct{ Name string }
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	vol, err := s.Volumes.Rename(r.Context(), volumeOf(r), portlayer.VolumeName(req.Name))
	return s.answerVolume(w, vol, err)
}

// volumeMove answers vch volume move.
func (s *Server) volumeMove(w http.ResponseWriter, r *http.Request) error {
	var req struct{ Store string }
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	long := &longAnswer{w: w}
	vol, err := s.Volumes.Move(r.Context(), volumeOf(r), portlayer.StoreName(req.Store), long.progress)
	return long.end(showVolume(vol, s.Volumes.Locations()), err)
}

// snapshotShown is a snapshot in answers.
type snapshotShown struct {
	Name      string
	CreatedAt time.Time
	Capacity  int64 // bytes
	Allocated int64 // bytes
}

func showSnapshot(s portlayer.Snapshot) snapshotShown {
	return snapshotShown{Name: s.Name, CreatedAt: s.Created, Capacity: int64(s.Capacity), Allocated: int64(s.Allocated)}
}

// volumeAdopt answers vch volume adopt.
func (s *Server) volumeAdopt(w http.ResponseWriter, r *http.Request) error {
	var req struct {
		Store, Directory string
		Options, Labels  map[string]string
	}
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	vol, err := s.Volumes.Adopt(r.Context(), portlayer.VolumeRequest{Name: portlayer.VolumeName(r.PathValue("name")), Store: portlayer.StoreName(req.Store), Options: req.Options, Labels: req.Labels}, req.Directory)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]string{"Name": vol.Ref()})
}

// snapshotCreate answers vch volume snapshot create.
func (s *Server) snapshotCreate(w http.ResponseWriter, r *http.Request) error {
	var req struct{ Name string }
	if err := decodeJSON(r, &req); err != nil {
		return err
	}
	long := &longAnswer{w: w}
	snap, err := s.Volumes.Snapshot(r.Context(), volumeOf(r), req.Name, long.progress)
	return long.end(showSnapshot(snap), err)
}

// snapshotList answers vch volume snapshot ls.
func (s *Server) snapshotList(w http.ResponseWriter, r *http.Request) error {
	list, err := s.Volumes.Snapshots(r.Context(), volumeOf(r))
	if err != nil {
		return err
	}
	shown := []snapshotShown{}
	for _, snap := range list {
		shown = append(shown, showSnapshot(snap))
	}
	return writeJSON(w, http.StatusOK, shown)
}

// snapshotRemove answers vch volume snapshot rm.
func (s *Server) snapshotRemove(w http.ResponseWriter, r *http.Request) error {
	if err := s.Volumes.RemoveSnapshot(r.Context(), volumeOf(r), r.PathValue("snapshot")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// The trailers of an export: what was sent, or why it is not whole.
const (
	checksumTrailer = "X-Vch-Checksum" // sha256:HEX
	errorTrailer    = "X-Vch-Error"
)

// volumeExport answers vch volume export: a tar, and after it whether it is whole.
func (s *Server) volumeExport(w http.ResponseWriter, r *http.Request) error {
	form, err := formatOf(r)
	if err != nil {
		return err
	}
	out := &exported{w: w, sum: sha256.New()}
	if form == vmdkFormat {
		err = s.Volumes.ExportDisk(r.Context(), r.PathValue("name"), out)
	} else {
		err = s.Volumes.Export(r.Context(), volumeOf(r), out)
	}
	if err != nil && !out.began {
		return err
	}
	out.begin()
	if err != nil {
		w.Header().Set(errorTrailer, strings.ReplaceAll(err.Error(), "\n", "; "))
		return err
	}
	w.Header().Set(checksumTrailer, checksumOf(out.sum))
	return nil
}

// The forms of an archive: a volume's content, or its disk.
const (
	tarFormat  = "tar"
	vmdkFormat = "vmdk"
)

func formatOf(r *http.Request) (string, error) {
	switch form := r.URL.Query().Get("format"); form {
	case "", tarFormat:
		return tarFormat, nil
	case vmdkFormat:
		return form, nil
	default:
		return "", fault.New(fault.Invalid, "format %q is none of tar, vmdk", form)
	}
}

func checksumOf(sum hash.Hash) string { return "sha256:" + hex.EncodeToString(sum.Sum(nil)) }

// exported is the body of an export, begun with its first bytes: until then an error has a status.
type exported struct {
	w     http.ResponseWriter
	sum   hash.Hash
	began bool
}

func (e *exported) begin() {
	if !e.began {
		e.began = true
		e.w.Header().Set("Content-Type", "application/x-tar")
		e.w.Header().Set("Trailer", checksumTrailer+", "+errorTrailer)
		e.w.WriteHeader(http.StatusOK)
	}
}

func (e *exported) Write(p []byte) (int, error) {
	e.begin()
	e.sum.Write(p) // never fails (hash.Hash)
	return e.w.Write(p)
}

// volumeImport answers vch volume import: it makes a volume of the body, and says what that was. With checksum it must be that.
func (s *Server) volumeImport(w http.ResponseWriter, r *http.Request) error {
	id, q := volumeOf(r), r.URL.Query()
	req := portlayer.VolumeRequest{Name: id.Name, Store: id.Store, Driver: q.Get("driver"), Options: pairs(q["opt"]), Labels: pairs(q["label"])}
	body := &verified{r: r.Body, sum: sha256.New(), want: q.Get("checksum")}
	form, err := formatOf(r)
	if err != nil {
		return err
	}
	imports := s.Volumes.Import
	if form == vmdkFormat {
		imports = s.Volumes.ImportDisk
	}
	vol, err := imports(r.Context(), req, body)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]string{"Name": vol.Ref(), "Checksum": checksumOf(body.sum)})
}

// pairs reads KEY=VALUE texts; one without a value has an empty one.
func pairs(texts []string) map[string]string {
	m := map[string]string{}
	for _, text := range texts {
		key, value, _ := strings.Cut(text, "=")
		m[key] = value
	}
	return m
}

// verified is a body whose end is an error if it was not what it should be.
type verified struct {
	r    io.Reader
	sum  hash.Hash
	want string // sha256:HEX; "": anything
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	if err == io.EOF && v.want != "" && checksumOf(v.sum) != v.want {
		return n, fault.New(fault.Invalid, "the archive has the checksum %s, and should have %s: it was damaged on its way", checksumOf(v.sum), v.want)
	}
	return n, err
}

// longAnswer tells of a long piece of work while it goes on: lines of JSON, {"done":BYTES,"total":BYTES}, and at the end {"result":…} or {"error":TEXT}. What fails
// before there is anything to tell gets its status.
type longAnswer struct {
	w     http.ResponseWriter
	began bool
	last  time.Time
}

// tellEvery is how often progress is told.
const tellEvery = 100 * time.Millisecond

func (l *longAnswer) progress(done, total portlayer.Bytes) {
	if time.Since(l.last) < tellEvery && done < total {
		return
	}
	l.last = time.Now()
	l.line(map[string]int64{"done": int64(done), "total": int64(total)})
}

func (l *longAnswer) line(v any) {
	if !l.began {
		l.began = true
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		l.w.WriteHeader(http.StatusOK)
	}
	_ = json.NewEncoder(l.w).Encode(v) // a client that has left is noticed by the request's context
	if f, ok := l.w.(http.Flusher); ok {
		f.Flush()
	}
}

// end is the outcome.
func (l *longAnswer) end(result any, err error) error {
	switch {
	case err != nil && !l.began:
		return err
	case err != nil:
		l.line(map[string]string{"error": err.Error()})
		return err
	}
	l.line(map[string]any{"result": result})
	return nil
}
