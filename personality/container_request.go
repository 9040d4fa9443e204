package personality

import (
	"bytes"
	"encoding/json"
	"reflect"
	"sort"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"vch/internal/fault"
)

// createRequest is the body of POST /containers/create. HostConfig and NetworkingConfig are never nil after parseCreate.
type createRequest struct {
	Config           container.Config
	HostConfig       *container.HostConfig
	NetworkingConfig *network.NetworkingConfig
}

// createBody is createRequest on the wire. Cmd and Entrypoint stand in front of Config's own, because Docker's API takes a lone string there too.
type createBody struct {
	*container.Config
	Cmd              words
	Entrypoint       words
	HostConfig       *container.HostConfig
	NetworkingConfig *network.NetworkingConfig
}

// words is a list of strings, or one string, which stands for a list of itself (Docker API: "a string or an array of strings").
type words []string

func (w *words) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil && string(data) != "null" {
		*w = words{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(w))
}

// parseCreate decodes a create body. A field that no version known here has, or one that later versions dropped, is refused by name unless
// it is empty: Docker's engine would ignore it.
func parseCreate(raw []byte) (createRequest, error) {
	var none createRequest
	var body createBody
	if err := json.Unmarshal(raw, &body); err != nil {
		return none, fault.New(fault.Invalid, "invalid JSON: %w", err)
	}
	if body.Config == nil {
		return none, fault.New(fault.Invalid, "config cannot be empty in order to create a container")
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(raw, &top); err != nil {
		return none, fault.New(fault.Invalid, "invalid JSON: %w", err)
	}
	if err := onlyKnown("", top, reflect.TypeFor[createBody]()); err != nil {
		return none, err
	}
	for name, value := range top {
		if !strings.EqualFold(name, "HostConfig") {
			continue
		}
		var host map[string]json.RawMessage
		if err := json.Unmarshal(value, &host); err != nil {
			return none, fault.New(fault.Invalid, "invalid JSON: %w", err)
		}
		if err := onlyKnown("HostConfig.", host, reflect.TypeFor[container.HostConfig]()); err != nil {
			return none, err
		}
	}
	req := createRequest{Config: *body.Config, HostConfig: body.HostConfig, NetworkingConfig: body.NetworkingConfig}
	req.Config.Cmd, req.Config.Entrypoint = body.Cmd, body.Entrypoint
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	if req.NetworkingConfig == nil {
		req.NetworkingConfig = &network.NetworkingConfig{}
	}
	return req, nil
}

// dropped says why a field of an older API version cannot be honoured, by its name in lower case.
func dropped(name string) string {
	switch name {
	case "macaddress":
		return "say it of the network: --network name=NETWORK,mac-address=…"
	case "kernelmemory", "kernelmemorytcp":
		return "the kernel in a container's machine has no limit of its own; use --memory"
	}
	return "vch does not know this option"
}

// onlyKnown refuses the first field of object, in the order of their names, that is no field of t and not empty.
func onlyKnown(prefix string, object map[string]json.RawMessage, t reflect.Type) error {
	known := map[string]bool{}
	jsonNames(t, known)
	var unknown []string
	for name, value := range object {
		if !known[strings.ToLower(name)] && !emptyJSON(value) {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	sort.Strings(unknown)
	return refused(prefix+unknown[0], "", dropped(strings.ToLower(unknown[0])))
}

// jsonNames collects the names that encoding/json reads into t, in lower case.
func jsonNames(t reflect.Type, names map[string]bool) {
	for f := range fieldsOf(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		names[strings.ToLower(name)] = true
	}
}

// fieldsOf yields the fields of struct t, those of embedded structs in place of the embedded ones.
func fieldsOf(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for _, f := range reflect.VisibleFields(t) {
			if !f.Anonymous && !yield(f) {
				return
			}
		}
	}
}

// emptyJSON reports whether raw says nothing: null, false, 0, "", or a list or object of such.
func emptyJSON(raw json.RawMessage) bool {
	dec := json.NewDecoder(bytes.NewReader(raw))
	var v any
	return dec.Decode(&v) == nil && emptyValue(v)
}

func emptyValue(v any) bool {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			if !emptyValue(e) {
				return false
			}
		}
		return true
	case map[string]any:
		for _, e := range v {
			if !emptyValue(e) {
				return false
			}
		}
		return true
	}
	return v == nil || v == false || v == 0.0 || v == ""
}
