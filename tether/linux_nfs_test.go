package tether

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vch/guest"
	"vch/internal/fault"
)

// What mount(2) is called with for a spec.
func TestRemoteMountOf(t *testing.T) {
	for _, tc := range []struct {
		source   string
		options  []string
		readOnly bool
		want     remoteMount
	}{
		{"nfs://nas:2049/srv/vch/volumes/data", []string{"vers=4", "addr=10.1.2.3", "port=2049", "hard"}, false,
			remoteMount{"nas:/srv/vch/volumes/data", "nfs4", 0, []string{"vers=4.2,addr=10.1.2.3,port=2049,hard", "vers=4.1,addr=10.1.2.3,port=2049,hard"}}},
		{"nfs://nas:2049/e/v", []string{"vers=4.1", "noatime", "sync", "soft"}, true,
			remoteMount{"nas:/e/v", "nfs4", unix.MS_RDONLY | unix.MS_NOATIME | unix.MS_SYNCHRONOUS, []string{"vers=4.1,soft"}}},
		{"nfs://[fd00::1]:2049/e/a b", []string{"vers=3", "nolock", "ro"}, false,
			remoteMount{"[fd00::1]:/e/a b", "nfs", unix.MS_RDONLY, []string{"vers=3,nolock"}}},
	} {
		got := remoteMountOf(guest.MountSpec{Source: tc.source, Options: tc.options}, tc.readOnly)
		if got.device != tc.want.device || got.fstype != tc.want.fstype || got.flags != tc.want.flags || !slices.Equal(got.data, tc.want.data) {
			t.Errorf("%s %v: %+v", tc.source, tc.options, got)
		}
	}
}

// Each of the kernel's errors that a server can cause has a sentence of its own, which names the volume.
func TestRemoteFault(t *testing.T) {
	m := guest.MountSpec{Source: "nfs://nas/e", Name: "data"}
	if err := remoteFault(m, nil); err != nil {
		t.Error(err)
	}
	said := map[string]bool{}
	for errno, kind := range map[unix.Errno]fault.Kind{
		unix.ENODEV: fault.Unsupported, unix.ENOENT: fault.NotFound, unix.EACCES: fault.Denied, unix.ECONNREFUSED: fault.Unavailable, unix.EPROTONOSUPPORT: fault.Unsupported,
		unix.ESTALE: fault.Unavailable, unix.EINVAL: fault.Invalid, unix.EIO: fault.Unavailable,
	} {
		err := remoteFault(m, fmt.Errorf("mount: %w", errno))
		text := strings.Split(err.Error(), "(")[0]
		if !fault.Is(err, kind) || !errors.Is(err, errno) || !strings.Contains(text, "volume data cannot be mounted") || said[text] {
			t.Errorf("%v: %v (%v)", errno, err, fault.KindOf(err))
		}
		said[text] = true
	}
}
