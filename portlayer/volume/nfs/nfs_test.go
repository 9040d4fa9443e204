package nfs

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vch/internal/nfsclient"
	"vch/internal/nfsclient/nfstest"
	"vch/portlayer"
	"vch/portlayer/volume/volumetest"
)

// tree is all that is below a directory, sorted.
func tree(t testing.TB, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil {
			rel, _ := filepath.Rel(dir, p)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// placeAt is a place whose export is dir of this machine, opened by open. hand changes it behind the store's back; a server's would not notice what is changed on its disk.
func placeAt(t *testing.T, dir string, l Location, hand Export, open func(ctx context.Context, uid, gid uint32) (Export, error)) volumetest.Place {
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	record := func(n portlayer.VolumeName) string { return metadataOf(n) + "/" + recordFile }
	put := func(n portlayer.VolumeName, text string) { must(hand.WriteFile(ctx, record(n), []byte(text), 0o644)) }
	return volumetest.Place{
		Open: func(ctx context.Context) (portlayer.VolumeStore, error) {
			s, err := Open(ctx, StoreOptions{Name: "remote", Location: l, Driver: "test-nfs", VCH: "vch1", Timeout: 20 * time.Second, Open: open})
			if err == nil {
				t.Cleanup(func() { _ = s.Close() })
			}
			return s, err
		},
		Tree: func() []string { return tree(t, dir) },
		Degrade: map[string]func(bool){
			"unmounted": func(on bool) {
				if on {
					must(hand.Rename(ctx, metadataDir, "away"))
				} else {
					must(hand.Rename(ctx, "away", metadataDir))
				}
			},
		},
		Damage: map[string]func(portlayer.VolumeName){
			"no directory":        func(n portlayer.VolumeName) { must(hand.RemoveAll(ctx, volumesDir+"/"+string(n))) },
			"no volume.json":      func(n portlayer.VolumeName) { must(hand.RemoveAll(ctx, record(n))) },
			"empty volume.json":   func(n portlayer.VolumeName) { put(n, "") },
			"garbled volume.json": func(n portlayer.VolumeName) { put(n, `{"format":1,"size":`) },
			"hollow volume.json":  func(n portlayer.VolumeName) { put(n, "{}") },
			"one that leads out": func(n portlayer.VolumeName) {
				put(n, `{"format":1,"name":"data","at":"../etc","created":"2026-01-02T03:04:05Z"}`)
			},
		},
	}
}

// The laws on a directory of this machine, with every call failing in turn.
func TestStoreLaws(t *testing.T) {
	volumetest.Run(t, func(t *testing.T, dir string) volumetest.Place {
		l := &local{dir: dir}
		p := placeAt(t, dir, Location{Host: "server", Port: DefaultPort, Path: "/export"}, &local{dir: dir}, func(context.Context, uint32, uint32) (Export, error) {
			return l, l.call(context.Background(), "mount", "", func(string) error { return nil })
		})
		p.Faults = &l.Faults
		for _, r := range []nfsclient.Reason{nfsclient.Unresolved, nfsclient.Refused, nfsclient.Silent, nfsclient.Lost, nfsclient.NoExport, nfsclient.Stale} {
			p.Degrade[r.String()] = func(on bool) {
				if on {
					l.setDown(&nfsclient.Error{Op: "call", Reason: r})
				} else {
					l.setDown(nil)
				}
			}
		}
		return p
	})
}

// The laws on servers.
func onServer(t *testing.T, c nfstest.Config, o Options, version nfsclient.Version) {
	server := nfstest.Start(t, c)
	volumetest.Run(t, func(t *testing.T, _ string) volumetest.Place {
		dir, err := os.MkdirTemp(server.Dir, "place-")
		if err != nil {
			t.Fatal(err)
		}
		l := Location{Host: server.Host, Port: server.Port, Path: server.Path + "/" + filepath.Base(dir), Options: o}
		open := func(ctx context.Context, uid, gid uint32) (Export, error) {
			e, err := nfsclient.Open(ctx, nfsclient.Options{Host: l.Host, Port: l.Port, MountPort: server.MountPort, Version: version, Path: l.Path, UID: uid, GID: gid, Dial: server.Dial})
			if err != nil {
				return nil, err
			}
			return e, nil
		}
		hand, err := open(t.Context(), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = hand.Close() })
		return placeAt(t, dir, l, hand, open)
	})
}

// The laws on an implementation that is nobody's standard, so that the store does not come to lean on Ganesha.
func TestStoreLawsOnAnother(t *testing.T) {
	volumetest.Run(t, func(t *testing.T, dir string) volumetest.Place {
		port := nfstest.Another(t, dir)
		l := Location{Host: "127.0.0.1", Port: port, Path: "/", Options: Options{Vers: V3, MountPort: uint16(port)}}
		hand, err := l.open(t.Context(), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = hand.Close() })
		return placeAt(t, dir, l, hand, l.open)
	})
}

func TestStoreLawsOnVersion4(t *testing.T) { onServer(t, nfstest.Config{}, Options{}, nfsclient.V4) }

func TestStoreLawsOnVersion3(t *testing.T) {
	onServer(t, nfstest.Config{V3: true}, Options{Vers: V3}, nfsclient.V3)
}
