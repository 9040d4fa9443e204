package nfsclient

import (
	"context"
	"errors"
	"path"
	"strings"
)

// Procedures of RFC 1813 section 5.2 and RFC 1833 section 3.2.
const (
	procMount   = 1
	procExport  = 5
	procGetPort = 3
)

const portmapPort = 111

// mount asks mountd for the handle of Path. It leaves no trace in mountd's list (UMNT is a courtesy that servers do without), since it may mount more than once.
func (v *v3) mount(ctx context.Context) (handle []byte, err error) {
	port := v.opts.MountPort
	if port == 0 {
		if port, err = v.mountPort(ctx); err != nil {
			return nil, err
		}
	}
	c, err := v.dialer.connect(ctx, port)
	if err != nil {
		if hasReason(err, Refused) {
			err = &Error{Reason: NoMountd, Err: err}
		}
		return nil, err
	}
	defer c.close()
	handle, err = mountAt(ctx, c, v.opts.Path)
	if why := new(Error); !errors.As(err, &why) || why.Name != "MNT3ERR_ACCES" {
		return handle, err
	}
	// Linux's mountd says MNT3ERR_ACCES also to what it does not export, Ganesha to what is not there below an export. The list of exports tells that from being
	// denied; a server that does not show it leaves its answer as it is.
	dir, known := exportAbove(ctx, c, v.opts.Path)
	switch {
	case !known || dir == v.opts.Path:
		return nil, err
	case dir == "":
		return nil, &Error{Reason: NoExport, Status: mountDenied, Name: "MNT3ERR_ACCES", Reserved: c.reserved}
	}
	if handle, err = mountAt(ctx, c, dir); err != nil {
		return nil, err
	}
	return v.dir(ctx, place{handle, strings.Split(strings.Trim(strings.TrimPrefix(v.opts.Path, dir), "/"), "/")})
}

// mountAt does MNT.
func mountAt(ctx context.Context, c *conn, dir string) (handle []byte, err error) {
	var e encoder
	e.text(dir)
	body, err := c.call(ctx, service{programMount, 3}, procMount, e.b)
	var why *Error
	if err == nil {
		handle, err = mountReply(body)
		if errors.As(err, &why) {
			why.Reserved = c.reserved
		}
	} else if errors.As(err, &why) && why.Name == "PROG_UNAVAIL" {
		err = &Error{Reason: NoMountd, Err: err}
	}
	return handle, err
}

// mountReply is mountres3 (RFC 1813 section 5.2.1). The flavors are not looked at: lists of what servers accept are known to lack what they accept.
func mountReply(body []byte) ([]byte, error) {
	d := decoder{b: body}
	if n := d.u32(); n != 0 && d.err == nil {
		return nil, statusErrorMount(n)
	}
	handle := d.opaque(maxHandle3)
	d.words(256)
	if d.err != nil || len(handle) == 0 {
		return nil, malformed()
	}
	return handle, nil
}

// exportAbove is the longest path of mountd's list that is name or above it; empty if there is none. known is false if there is no list.
func exportAbove(ctx context.Context, c *conn, name string) (above string, known bool) {
	body, err := c.call(ctx, service{programMount, 3}, procExport, nil)
	if err != nil {
		return "", false
	}
	dirs, err := exportList(body)
	for _, dir := range dirs {
		if dir = path.Clean(dir); (dir == "/" || dir == name || strings.HasPrefix(name, dir+"/")) && len(dir) > len(above) {
			above = dir
		}
	}
	return above, err == nil
}

// exportList is exports (RFC 1813 section 5.2.5).
func exportList(body []byte) (dirs []string, err error) {
	d := decoder{b: body}
	for d.flag() {
		dirs = append(dirs, d.text(1024))
		for d.flag() {
			d.text(255)
		}
	}
	return dirs, d.err
}

// mountPort asks the portmapper for mountd's port.
func (v *v3) mountPort(ctx context.Context) (int, error) {
	c, err := v.dialer.connect(ctx, portmapPort)
	if err != nil {
		if hasReason(err, Refused) {
			err = &Error{Reason: NoPortmapper, Err: err}
		}
		return 0, err
	}
	defer c.close()
	var e encoder
	for _, w := range []uint32{programMount, 3, 6, 0} { // 6: TCP
		e.u32(w)
	}
	body, err := c.call(ctx, service{programPortmap, 2}, procGetPort, e.b)
	if err != nil {
		return 0, err
	}
	d := decoder{b: body}
	port := d.u32()
	switch {
	case d.err != nil || port > 65535:
		return 0, malformed()
	case port == 0:
		return 0, &Error{Reason: NoMountd}
	}
	return int(port), nil
}
