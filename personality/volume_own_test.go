package personality

import (
	"strings"
	"testing"
)

func TestVolumeProtect(t *testing.T) {
	w := newWorld(t)
	w.ask(nil, "POST", "/volumes/create", `{"Name":"data","Labels":{"a":"b"}}`)
	if status, answer := w.call("POST", "/vch/volumes/data/protect", ""); status != 200 || !strings.Contains(answer, `"vch.protect":"true"`) || !strings.Contains(answer, `"a":"b"`) {
		t.Errorf("%d %s", status, answer)
	}
	w.refused(409, "remove data: the volume is protected by its label vch.protect; take that away first: vch volume unprotect data", "DELETE", "/volumes/data?force=1", "")
	if status, answer := w.call("POST", "/volumes/prune?filters=%7B%22all%22%3A%5B%22true%22%5D%7D", ""); status != 200 || strings.Contains(answer, "data") {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := w.call("DELETE", "/vch/volumes/data@default/protect", ""); status != 200 || strings.Contains(answer, "vch.protect") || !strings.Contains(answer, `"a":"b"`) {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := w.call("DELETE", "/volumes/data", ""); status != 204 {
		t.Errorf("%d %s", status, answer)
	}
	w.refused(404, "get data: no such volume", "POST", "/vch/volumes/data/protect", "")
}
