package image

import (
	"encoding/binary"
	"strings"
)

const paxXattr = "SCHILY.xattr."

// maxXattrs is how many bytes of extended attributes a file may bring; ext4 keeps them in one block of 4096 (ext4/xattr.c).
const maxXattrs = 3800

// xattrs picks the extended attributes that the image's disk keeps: those of user, security and trusted, and ACLs. What overlayfs writes for itself is
// dropped, for it would be obeyed in the guest, and so is what ext4 has no name space for, or no room.
func xattrs(records map[string]string) map[string]string {
	var keep map[string]string
	room := maxXattrs
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || strings.Contains(name, "=") {
			continue
		}
		switch {
		case strings.HasPrefix(name, "trusted.overlay."):
			continue
		case name == "system.posix_acl_access", name == "system.posix_acl_default":
			if value, ok = aclOnDisk(value); !ok {
				continue
			}
		case strings.HasPrefix(name, "user."), strings.HasPrefix(name, "security."), strings.HasPrefix(name, "trusted."):
		default:
			continue
		}
		cost := len(name) + len(value) + 24
		if cost > room || len(name) > 255 {
			continue
		}
		room -= cost
		if keep == nil {
			keep = map[string]string{}
		}
		keep[paxXattr+name] = value
	}
	return keep
}

// aclOnDisk turns an ACL as getxattr(2) gives it (version 2, include/uapi/linux/posix_acl_xattr.h) into ext4's own form (version 1, fs/ext4/acl.h).
func aclOnDisk(v string) (string, bool) {
	b := []byte(v)
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != 2 {
		return "", false
	}
	out := binary.LittleEndian.AppendUint32(nil, 1)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		out = append(out, b[:4]...)
		switch binary.LittleEndian.Uint16(b) {
		case 0x02, 0x08: // ACL_USER, ACL_GROUP
			out = append(out, b[4:8]...)
		case 0x01, 0x04, 0x10, 0x20:
		default:
			return "", false
		}
	}
	return string(out), true
}
