package personality

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"vch/internal/fault"
	"vch/portlayer"
)

// containerList is GET /containers/json.
func (s *Server) containerList(w http.ResponseWriter, r *http.Request) error {
	limit, _, err := intValue(r, "limit")
	if err != nil {
		return err
	}
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	pick, err := s.containerFilter(r.Context(), f)
	if err != nil {
		return err
	}
	// A limit and a wish for a state both mean stopped ones too, as in Moby.
	stopped := boolValue(r, "all") || limit > 0 || len(f["status"]) > 0
	all, err := s.Containers.List(r.Context())
	if err != nil {
		return err
	}
	stores, images := s.Volumes.Locations(), imageNames{s: s, known: map[string]portlayer.Image{}}
	on, err := s.nets(r.Context())
	if err != nil {
		return err
	}
	list := []container.Summary{}
	for _, c := range all {
		if !stopped && !alive(c.State) || !pick(c) {
			continue
		}
		summary, err := summaryOf(c, stores, on, time.Now())
		if err != nil {
			return err
		}
		if versionOf(r).atLeast(1, 52) {
			summary.Health = healthSummary(c.State.Health)
		}
		named := images.get(r.Context(), c.Spec.Image)
		if named.ID != c.Image { // the name is another image's by now
			summary.Image = string(c.Image)
		}
		if boolValue(r, "size") {
			written, err := s.written(r.Context(), c)
			if err != nil {
				return err
			}
			summary.SizeRw = int64(written)
			summary.SizeRootFs = int64(images.get(r.Context(), string(c.Image)).Size)
		}
		if list = append(list, summary); limit > 0 && len(list) == limit {
			break
		}
	}
	return writeJSON(w, http.StatusOK, list)
}

// written is what a container takes beside its image; nothing, where it was removed meanwhile.
func (s *Server) written(ctx context.Context, c portlayer.Container) (portlayer.Bytes, error) {
	n, err := s.Containers.Written(ctx, string(c.ID))
	if fault.Is(err, fault.NotFound) {
		return 0, nil
	}
	return n, err
}

// summaryOf is a container's line in a list.
func summaryOf(c portlayer.Container, stores map[portlayer.StoreName]string, all nets, now time.Time) (container.Summary, error) {
	d, err := openDoor(c)
	if err != nil {
		return container.Summary{}, err
	}
	summary := container.Summary{
		ID:              string(c.ID),
		Names:           []string{"/" + c.Spec.Name},
		Image:           c.Spec.Image,
		ImageID:         string(c.Image),
		Command:         commandLine(c.Spec.Process.Args),
		Created:         c.Created.Unix(),
		Ports:           portSummaries(c, d.Config.ExposedPorts),
		Labels:          d.Config.Labels,
		State:           container.ContainerState(c.State.Phase),
		Status:          statusText(c.State, now),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: networksOf(c, all)},
		Mounts:          mountPoints(c.Spec.Mounts, stores),
	}
	summary.HostConfig.NetworkMode = string(d.HostConfig.NetworkMode)
	summary.HostConfig.Annotations = d.HostConfig.Annotations
	return summary, nil
}

// commandLine is a command as docker ps shows it (moby daemon/container/view.go).
func commandLine(args []string) string {
	words := slices.Clone(args)
	for i, w := range words {
		if i > 0 && strings.Contains(w, " ") {
			words[i] = "'" + w + "'"
		}
	}
	return strings.Join(words, " ")
}

// imageNames looks images up, each once.
type imageNames struct {
	s     *Server
	known map[string]portlayer.Image
}

// get gives the image, or none.
func (n imageNames) get(ctx context.Context, ref string) portlayer.Image {
	img, ok := n.known[ref]
	if !ok {
		img, _ = n.s.Images.Get(ctx, ref) // an image may be gone: the container shows its id then
		n.known[ref] = img
	}
	return img
}

// containerFilter makes filters a question to one container. Values of one key are alternatives, but for labels; keys add up.
func (s *Server) containerFilter(ctx context.Context, f filters) (func(portlayer.Container) bool, error) {
	if err := f.only("id", "name", "label", "label!", "exited", "status", "ancestor", "before", "since", "volume", "network", "is-task", "health", "publish"); err != nil {
		return nil, err
	}
	var tests []func(portlayer.Container) bool
	add := func(key string, match func(c portlayer.Container, value string) bool) {
		if values := f[key]; len(values) > 0 {
			tests = append(tests, func(c portlayer.Container) bool {
				return slices.ContainsFunc(values, func(v string) bool { return match(c, v) })
			})
		}
	}
	add("id", func(c portlayer.Container, v string) bool { return matches(v, string(c.ID)) })
	add("name", func(c portlayer.Container, v string) bool {
		return matches(v, c.Spec.Name) || matches(v, "/"+c.Spec.Name)
	})
	tests = append(tests, func(c portlayer.Container) bool { return f.labels(c.Spec.Labels) })

	for _, v := range f["exited"] {
		if _, err := strconv.Atoi(v); err != nil {
			return nil, fault.New(fault.Invalid, "invalid filter 'exited=[%s]'", v)
		}
	}
	add("exited", func(c portlayer.Container, v string) bool {
		return c.State.Phase == portlayer.Exited && strconv.Itoa(c.State.ExitCode) == v
	})
	for _, v := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
			return nil, fault.New(fault.Invalid, "invalid filter 'status=[%s]': %w", v, err)
		}
	}
	add("status", func(c portlayer.Container, v string) bool { return string(c.State.Phase) == v })

	for _, v := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return nil, fault.New(fault.Invalid, "invalid filter 'health=[%s]': %w", v, err)
		}
	}
	add("health", func(c portlayer.Container, v string) bool { return string(healthSummary(c.State.Health).Status) == v })

	ancestors := map[portlayer.ImageID]bool{}
	for _, v := range f["ancestor"] {
		if img, err := s.Images.Get(ctx, v); err == nil {
			ancestors[img.ID] = true
		} else if !fault.Is(err, fault.NotFound) {
			return nil, err
		}
	}
	add("ancestor", func(c portlayer.Container, v string) bool { return ancestors[c.Image] || c.Spec.Image == v })

	for _, key := range []string{"before", "since"} {
		ref, err := f.single(key)
		if err != nil {
			return nil, err
		}
		if ref == "" {
			continue
		}
		mark, err := s.Containers.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		tests = append(tests, func(c portlayer.Container) bool {
			if key == "before" {
				return c.Created.Before(mark.Created)
			}
			return c.Created.After(mark.Created)
		})
	}
	add("volume", func(c portlayer.Container, v string) bool {
		return slices.ContainsFunc(c.Spec.Mounts, func(m portlayer.Mount) bool {
			switch m.Kind {
			case portlayer.VolumeMount:
				return m.VolumeRef() == v || m.ID().String() == v || m.Target == v
			case portlayer.BindMount:
				return m.Source == v || m.Target == v
			}
			return false
		})
	})
	add("network", func(c portlayer.Container, v string) bool {
		if len(c.Spec.Networks) == 0 {
			return v == network.NetworkNone
		}
		return slices.ContainsFunc(c.Spec.Networks, func(e portlayer.Endpoint) bool { return string(e.Name) == v || string(e.Network) == v })
	})
	add("publish", func(c portlayer.Container, v string) bool {
		r, err := network.ParsePortRange(v)
		return err == nil && slices.ContainsFunc(c.State.Ports, func(p portlayer.Published) bool {
			return string(r.Proto()) == string(p.Proto) && p.Port >= r.Start() && p.Port <= r.End()
		})
	})
	task, err := f.boolean("is-task", false)
	if err != nil {
		return nil, err
	}
	return func(c portlayer.Container) bool {
		return !task && !slices.ContainsFunc(tests, func(ok func(portlayer.Container) bool) bool { return !ok(c) })
	}, nil
}

// matches is how Moby compares ids and names with a filter: an unanchored regular expression, or the very text.
func matches(pattern, text string) bool {
	re, err := regexp.Compile(pattern)
	return err == nil && re.MatchString(text) || pattern == text
}
