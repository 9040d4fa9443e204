package personality

import (
	"encoding/base64"
	"net/http"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"

	"vch/internal/fault"
	"vch/portlayer"
)

// imageCreate answers docker pull and docker import.
func (s *Server) imageCreate(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Get("fromImage") != "" {
		return s.imagePull(w, r)
	}
	return s.imageImport(w, r)
}

func (s *Server) imagePull(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if q.Get("fromSrc") != "" || len(q["changes"]) > 0 {
		return fault.New(fault.Invalid, "fromSrc and changes are for an import, and fromImage asks for a pull: give one of them")
	}
	name, err := joinTag(q.Get("fromImage"), q.Get("tag"))
	if err != nil {
		return err
	}
	if named, err := reference.ParseNormalizedNamed(name); err == nil && reference.IsNameOnly(named) {
		return fault.New(fault.Unsupported, "pulling all tags of %s (--all-tags) is not supported by vch: name one, such as %[1]s:latest", reference.FamiliarName(named))
	}
	cred, err := registryAuth(r)
	if err != nil {
		return err
	}
	out := newProgressStream(w)
	_, err = s.Images.Pull(r.Context(), name, q.Get("platform"), cred, out.progress)
	return out.finish(err)
}

// credentials reads Docker's form. Old clients send name and password in Auth only.
func credentials(a *registry.AuthConfig) (portlayer.Credentials, error) {
	c := portlayer.Credentials{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if c.Username == "" && a.Auth != "" {
		text, err := base64.StdEncoding.DecodeString(a.Auth)
		user, password, ok := strings.Cut(string(text), ":")
		if err != nil || !ok {
			return c, fault.New(fault.Invalid, "the credentials cannot be read: auth is not the base64 of NAME:PASSWORD; log in again")
		}
		c.Username, c.Password = user, strings.TrimRight(password, "\x00")
	}
	return c, nil
}

func (s *Server) imageImport(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	switch src := q.Get("fromSrc"); src {
	case "-":
	case "":
		return fault.New(fault.Invalid, "neither fromImage nor fromSrc is given: name an image to pull, or give fromSrc=- and a tar to import")
	default:
		return fault.New(fault.Unsupported, "importing from %s is not supported by vch: fetch it yourself, and pipe it to docker import -", src)
	}
	name := ""
	if q.Get("repo") != "" {
		var err error
		if name, err = joinTag(q.Get("repo"), q.Get("tag")); err != nil {
			return err
		}
		if strings.Contains(name, "@") {
			return fault.New(fault.Invalid, "cannot import digest reference")
		}
	}
	config, err := parseChanges(portlayer.ImageConfig{}, q["changes"])
	if err != nil {
		return err
	}
	message := q.Get("message")
	if message == "" {
		message = "Imported from -" // what docker history shows of an import that says nothing
	}
	out := newProgressStream(w)
	img, err := s.Images.Import(r.Context(), r.Body, name, message, q.Get("platform"), config, out.progress)
	if err == nil {
		err = out.send(progressLine{Message: jsonstream.Message{Status: string(img.ID)}})
	}
	return out.finish(err)
}

// imageLoad answers docker load. Its last lines name what was loaded.
func (s *Server) imageLoad(w http.ResponseWriter, r *http.Request) error {
	if p := r.URL.Query()["platform"]; len(p) > 0 && p[0] != "" {
		return fault.New(fault.Unsupported, "platform=%s is not supported by vch: docker load takes what the archive holds for this host", strings.Join(p, ","))
	}
	out := newProgressStream(w)
	progress := out.progress
	if boolValue(r, "quiet") {
		progress = func(portlayer.Progress) {}
	}
	loaded, err := s.Images.Load(r.Context(), r.Body, progress)
	for _, img := range loaded {
		for _, line := range loadedLines(img) {
			if err == nil {
				err = out.send(progressLine{Message: jsonstream.Message{Stream: line}})
			}
		}
	}
	return out.finish(err)
}

func loadedLines(img portlayer.Image) []string {
	if len(img.Tags) == 0 {
		return []string{"Loaded image ID: " + string(img.ID) + "\n"}
	}
	var lines []string
	for _, tag := range img.Tags {
		lines = append(lines, "Loaded image: "+tag+"\n")
	}
	return lines
}
