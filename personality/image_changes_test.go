package personality

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vch/internal/fault"
	"vch/portlayer"
)

func TestParseChanges(t *testing.T) {
	for _, tt := range []struct {
		changes []string
		want    portlayer.ImageConfig
	}{
		{nil, portlayer.ImageConfig{}},
		{[]string{`CMD ["echo", "a b"]`}, portlayer.ImageConfig{Cmd: []string{"echo", "a b"}}},
		{[]string{`cmd echo "a  b"`}, portlayer.ImageConfig{Cmd: []string{"/bin/sh", "-c", `echo "a  b"`}}},
		{[]string{`CMD []`, `ENTRYPOINT []`}, portlayer.ImageConfig{Cmd: []string{}, Entrypoint: []string{}}},
		{[]string{`CMD [broken`}, portlayer.ImageConfig{Cmd: []string{"/bin/sh", "-c", "[broken"}}},
		{[]string{`SHELL ["ash","-ec"]`, `ENTRYPOINT x`}, portlayer.ImageConfig{Shell: []string{"ash", "-ec"}, Entrypoint: []string{"ash", "-ec", "x"}}},
		{[]string{`ENV A=1 B="2 3" C='$x' D=e\ f`, `ENV A=9`, `ENV G old form`}, portlayer.ImageConfig{Env: []string{"A=9", "B=2 3", "C=$x", "D=e f", "G=old form"}}},
		{[]string{`LABEL a=b "c d"="e" f=`}, portlayer.ImageConfig{Labels: map[string]string{"a": "b", "c d": "e", "f": ""}}},
		{[]string{`EXPOSE 80 53/UDP 8000-8002/tcp`, "EXPOSE 80/tcp"}, portlayer.ImageConfig{ExposedPorts: []string{"53/udp", "80/tcp", "8000/tcp", "8001/tcp", "8002/tcp"}}},
		{[]string{`VOLUME /data /more`, `VOLUME ["/a b", "/data"]`}, portlayer.ImageConfig{Volumes: []string{"/a b", "/data", "/more"}}},
		{[]string{`USER 1:2`, `WORKDIR /srv`, `WORKDIR a/../b`}, portlayer.ImageConfig{User: "1:2", WorkingDir: "/srv/b"}},
		{[]string{`STOPSIGNAL SIGINT`}, portlayer.ImageConfig{StopSignal: "SIGINT"}},
		{[]string{`ONBUILD RUN make`}, portlayer.ImageConfig{OnBuild: []string{"RUN make"}}},
		{[]string{`HEALTHCHECK NONE`}, portlayer.ImageConfig{Healthcheck: []byte(`{"Test":["NONE"]}`)}},
		{[]string{`HEALTHCHECK --interval=5s --retries=3 CMD curl x`}, portlayer.ImageConfig{Healthcheck: []byte(`{"Test":["CMD-SHELL","curl x"],"Interval":5000000000,"Retries":3}`)}},
		{[]string{`HEALTHCHECK CMD ["a","b"]`}, portlayer.ImageConfig{Healthcheck: []byte(`{"Test":["CMD","a","b"]}`)}},
		{[]string{"# a comment\n\nUSER x\nENV A=1 \\\n  B=2\n"}, portlayer.ImageConfig{User: "x", Env: []string{"A=1", "B=2"}}},
	} {
		got, err := parseChanges(portlayer.ImageConfig{}, tt.changes)
		if err != nil {
			t.Errorf("%q: %v", tt.changes, err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%q: %s", tt.changes, d)
		}
	}
}

func TestRefusedChanges(t *testing.T) {
	for change, text := range map[string]string{
		"RUN make":                       "RUN is not a valid change command",
		"FROM x":                         "FROM is not a valid change command",
		"BOGUS x":                        "BOGUS is not a valid change command",
		"CMD":                            "CMD takes an argument",
		"ENV A":                          "ENV must have two arguments",
		"ENV A=1 B":                      "can't find = in \"B\"",
		"ENV =1":                         "ENV names can not be blank",
		"LABEL =1":                       "LABEL names can not be blank",
		"EXPOSE x":                       "invalid containerPort: x",
		"EXPOSE 70000":                   "invalid containerPort: 70000",
		"EXPOSE 9-8":                     "invalid containerPort: 9-8",
		"EXPOSE 80/icmp":                 "invalid containerPort: 80/icmp",
		`VOLUME [""]`:                    "VOLUME specified can not be an empty string",
		"STOPSIGNAL NOPE":                "NOPE",
		`SHELL sh`:                       "SHELL takes a JSON list",
		"ONBUILD ONBUILD x":              "chaining ONBUILD",
		"ONBUILD FROM x":                 "FROM isn't allowed as an ONBUILD trigger",
		"HEALTHCHECK NONE x":             "HEALTHCHECK NONE takes no arguments",
		"HEALTHCHECK CMD":                "Missing command after HEALTHCHECK CMD",
		"HEALTHCHECK true":               `Unknown type "true" in HEALTHCHECK`,
		"HEALTHCHECK --retries=-1 CMD x": "--retries cannot be negative",
		"HEALTHCHECK --timeout=x CMD x":  "--timeout takes a time",
		"HEALTHCHECK --bogus=1 CMD x":    "unknown flag: --bogus",
	} {
		_, err := parseChanges(portlayer.ImageConfig{}, []string{change})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %s", change, err, text)
		}
	}
}

func FuzzChanges(f *testing.F) {
	for _, seed := range []string{"ENV A=\"", "CMD [", "EXPOSE 1-65535", "HEALTHCHECK --", "ONBUILD  x", "LABEL a\\", "ENV \\ =x", "A\\\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, change string) {
		c, err := parseChanges(portlayer.ImageConfig{}, []string{change})
		if err == nil && len(c.Healthcheck) > 0 {
			if _, err := imageConfig(c, maxVersion); err != nil {
				t.Error(err)
			}
		}
	})
}
