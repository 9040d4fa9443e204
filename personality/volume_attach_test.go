package personality

import (
	"strings"
	"testing"
)

func TestVolumeAttachRefused(t *testing.T) {
	w := newWorld(t)
	w.importImage("img:latest")
	w.run("web", "", "sleep", "1000")
	var m struct {
		Type, Name, Destination, Source, Mode string
		RW                                    bool
	}
	w.ask(&m, "POST", "/vch/containers/web/volumes", `{"Mount":"data:/srv:ro"}`)
	if m.Type != "volume" || m.Name != "data" || m.Destination != "/srv" || m.RW || m.Mode != "ro" || !strings.HasSuffix(m.Source, "data.vmdk") {
		t.Errorf("attached %+v", m)
	}
	if status, answer := w.call("GET", "/containers/web/json", ""); status != 200 || !strings.Contains(answer, `"Destination":"/srv"`) {
		t.Errorf("%d %s", status, answer)
	}
	for _, bad := range []struct {
		status       int
		words, mount string
	}{
		{409, "has volume data mounted at /srv already", "other:/srv"},
		{409, "mounted read-only at /srv", "data:/also"},
		{400, "say which volume is to be attached: VOLUME:/path", "/only"},
		{400, "nothing can be mounted at /dev", "data:/dev"},
		{400, "invalid mode", "data:/x:nonsense"},
		{400, "host path /host cannot be mounted", "/host:/x"},
		{400, "invalid volume specification", ""},
	} {
		w.refused(bad.status, bad.words, "POST", "/vch/containers/web/volumes", `{"Mount":"`+bad.mount+`"}`)
	}
	w.refused(404, "No such container: none", "POST", "/vch/containers/none/volumes", `{"Mount":"data:/x"}`)
	w.refused(400, "say where the volume is mounted: target=/path", "DELETE", "/vch/containers/web/volumes", "")
	w.refused(404, "has no volume mounted at /none", "DELETE", "/vch/containers/web/volumes?target=/none", "")
	w.refused(409, "volume is in use", "DELETE", "/volumes/data", "")
	m.Name = ""
	w.ask(&m, "DELETE", "/vch/containers/web/volumes?target=/srv/", "")
	if m.Name != "data" {
		t.Errorf("detached %+v", m)
	}
	if status, answer := w.call("DELETE", "/volumes/data", ""); status != 204 {
		t.Errorf("%d %s", status, answer)
	}
}
