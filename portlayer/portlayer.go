// Package portlayer holds the nouns of vch and the contracts between its rooms. Read it first.
//
// The port layer is what every personality stands on: containers, volumes, images, networks. It knows no Docker word, no
// QMP, no VMDK. The nouns are plain values; the contracts are interfaces whose comments are their law:
//
//	Containers, Volumes, Images   what a door (personality, kubelet) calls; implemented by portlayer/exec, …/volume, …/image
//	Networks, Wiring              what a door and the container service call of networks; implemented by portlayer/network
//	NetworkBackend, Segment       what makes networks real; implemented by portlayer/network/user and …/bridge, held to it by …/network/networktest
//	VolumeStore                   a place that keeps volumes; implemented by …/volume/vmdk and the fake in …/volume/volumetest
//	Binds                         the directories of the host that containers may mount; implemented by portlayer/bind
//	Hypervisor, Machine, Disks    what makes machines; implemented by hypervisor/qemu and hypervisor/fake
//
// Every error is a fault (internal/fault) with a kind. Every method may be called at once by many goroutines, and
// honours ctx, unless its comment says otherwise. Nothing here does I/O.
package portlayer

import (
	"strings"
	"time"

	"vch/guest"
)

// ContainerID is 64 lower-case hex digits, random.
type ContainerID string

// ImageID is "sha256:" and the hex digest of the image's configuration, as everywhere in the field.
type ImageID string

// VolumeName names a volume within its store: [a-zA-Z0-9][a-zA-Z0-9_.-]+, at most 255 bytes.
type VolumeName string

// VolumeID is a volume's identity: its name and the store that has it. With Store "" it is a plain name, which several stores may know: it
// means the volume that this VCH made or used first.
type VolumeID struct {
	Name  VolumeName
	Store StoreName
}

// ParseVolumeID reads NAME or NAME@STORE, and checks neither. A text that lacks one of the two beside its "@" is a name, which no volume can have.
func ParseVolumeID(text string) VolumeID {
	name, store, _ := strings.Cut(text, "@")
	if name == "" || store == "" {
		return VolumeID{Name: VolumeName(text)}
	}
	return VolumeID{Name: VolumeName(name), Store: StoreName(store)}
}

// String is NAME@STORE, or NAME for a plain name.
func (id VolumeID) String() string {
	if id.Store == "" {
		return string(id.Name)
	}
	return string(id.Name) + "@" + string(id.Store)
}

// MarshalText and UnmarshalText are String and ParseVolumeID, for records.
func (id VolumeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the other half of MarshalText.
func (id *VolumeID) UnmarshalText(text []byte) error {
	*id = ParseVolumeID(string(text))
	return nil
}

// StoreName names a volume store: [a-zA-Z0-9][a-zA-Z0-9_-]*.
type StoreName string

// DefaultStore is the store that anonymous volumes and unqualified names use.
const DefaultStore StoreName = "default"

// Label is 32 lower-case hex digits: the md5 of a volume's identity (store and name at its making). It names the file system in the
// disk (the ext4 UUID is these 16 bytes, the ext4 label the first 16 digits) and is what the tether mounts by.
type Label string

// Source names the volume with the label to a guest.
func (l Label) Source() guest.Source { return "label://" + string(l) }

// Bytes is a size in bytes.
type Bytes int64

// Binary multiples.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// Event is something that happened to a noun. Events are published once, after the fact is durable.
type Event struct {
	Time  time.Time
	Noun  string            // "container", "volume", "image", "network"
	Verb  string            // container: create start die kill oom stop restart pause unpause rename destroy attach detach resize exec_create exec_start exec_die archive-path extract-to-dir; volume: create mount unmount destroy prune update (resized, moved); image: pull import load tag untag delete prune; network: create connect disconnect destroy prune
	ID    string            // the container's, image's or network's id, the volume as users of this VCH call it
	Attrs map[string]string // never nil for events that a service publishes; container events carry name, image and the labels; die carries exitCode; see docker-volumes.md for volume events
}

// Publish hands an event to whoever listens. It never waits.
type Publish func(Event)
