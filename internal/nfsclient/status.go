package nfsclient

import "strconv"

// status is what a number of a protocol means.
type status struct {
	name   string
	reason Reason
}

// Numbers that this package decides by. The first 99 are the same in all versions: they are those of Unix.
const (
	nfsNotSame4  = 10027
	nfsBadCookie = 10003
	nfsExpired4  = 10011
	nfsStaleID4  = 10022
	nfsSymlink4  = 10029
	nfsBadSess4  = 10052
	nfsBadSlot4  = 10053
	nfsDone4     = 10054
	nfsNotBound4 = 10055
	nfsMisorder4 = 10063
	nfsFalse4    = 10076
	nfsDeadSess4 = 10078
	mountDenied  = 13
)

// statuses3 are nfsstat3 (RFC 1813 section 2.6).
var statuses3 = map[uint32]status{
	1: {"NFS3ERR_PERM", Denied}, 2: {"NFS3ERR_NOENT", NotFound}, 5: {"NFS3ERR_IO", ServerFault}, 6: {"NFS3ERR_NXIO", ServerFault}, 13: {"NFS3ERR_ACCES", Denied},
	17: {"NFS3ERR_EXIST", Exists}, 18: {"NFS3ERR_XDEV", Inval}, 19: {"NFS3ERR_NODEV", ServerFault}, 20: {"NFS3ERR_NOTDIR", NotDir}, 21: {"NFS3ERR_ISDIR", IsDir},
	22: {"NFS3ERR_INVAL", Inval}, 27: {"NFS3ERR_FBIG", Inval}, 28: {"NFS3ERR_NOSPC", Full}, 30: {"NFS3ERR_ROFS", ReadOnly}, 31: {"NFS3ERR_MLINK", Inval},
	63: {"NFS3ERR_NAMETOOLONG", LongName}, 66: {"NFS3ERR_NOTEMPTY", NotEmpty}, 69: {"NFS3ERR_DQUOT", Full}, 70: {"NFS3ERR_STALE", Stale}, 71: {"NFS3ERR_REMOTE", ServerFault},
	10001: {"NFS3ERR_BADHANDLE", Stale}, 10002: {"NFS3ERR_NOT_SYNC", ServerFault}, 10003: {"NFS3ERR_BAD_COOKIE", ServerFault}, 10004: {"NFS3ERR_NOTSUPP", Unsupported},
	10005: {"NFS3ERR_TOOSMALL", ServerFault}, 10006: {"NFS3ERR_SERVERFAULT", ServerFault}, 10007: {"NFS3ERR_BADTYPE", Unsupported}, 10008: {"NFS3ERR_JUKEBOX", Busy},
}

// statusesMount are mountstat3 (RFC 1813 section 5.1.5).
var statusesMount = map[uint32]status{
	1: {"MNT3ERR_PERM", Denied}, 2: {"MNT3ERR_NOENT", NoExport}, 5: {"MNT3ERR_IO", ServerFault}, 13: {"MNT3ERR_ACCES", Denied}, 20: {"MNT3ERR_NOTDIR", NotDir},
	22: {"MNT3ERR_INVAL", Inval}, 63: {"MNT3ERR_NAMETOOLONG", LongName}, 10004: {"MNT3ERR_NOTSUPP", Unsupported}, 10006: {"MNT3ERR_SERVERFAULT", ServerFault},
}

// statuses4 are nfsstat4 (RFC 8881 section 15.1), but for those of locks, layouts and callbacks, which this package does not ask for.
var statuses4 = map[uint32]status{
	1: {"NFS4ERR_PERM", Denied}, 2: {"NFS4ERR_NOENT", NotFound}, 5: {"NFS4ERR_IO", ServerFault}, 6: {"NFS4ERR_NXIO", ServerFault}, 13: {"NFS4ERR_ACCESS", Denied},
	17: {"NFS4ERR_EXIST", Exists}, 18: {"NFS4ERR_XDEV", Inval}, 20: {"NFS4ERR_NOTDIR", NotDir}, 21: {"NFS4ERR_ISDIR", IsDir}, 22: {"NFS4ERR_INVAL", Inval},
	27: {"NFS4ERR_FBIG", Inval}, 28: {"NFS4ERR_NOSPC", Full}, 30: {"NFS4ERR_ROFS", ReadOnly}, 31: {"NFS4ERR_MLINK", Inval}, 63: {"NFS4ERR_NAMETOOLONG", LongName},
	66: {"NFS4ERR_NOTEMPTY", NotEmpty}, 69: {"NFS4ERR_DQUOT", Full}, 70: {"NFS4ERR_STALE", Stale}, 10001: {"NFS4ERR_BADHANDLE", Stale}, 10003: {"NFS4ERR_BAD_COOKIE", ServerFault},
	10004: {"NFS4ERR_NOTSUPP", Unsupported}, 10005: {"NFS4ERR_TOOSMALL", ServerFault}, 10006: {"NFS4ERR_SERVERFAULT", ServerFault}, 10007: {"NFS4ERR_BADTYPE", Unsupported},
	10008: {"NFS4ERR_DELAY", Busy}, 10009: {"NFS4ERR_SAME", IsDir}, 10011: {"NFS4ERR_EXPIRED", Lost}, 10013: {"NFS4ERR_GRACE", Busy}, 10014: {"NFS4ERR_FHEXPIRED", Stale},
	10015: {"NFS4ERR_SHARE_DENIED", Denied}, 10016: {"NFS4ERR_WRONGSEC", Denied}, 10018: {"NFS4ERR_RESOURCE", ServerFault}, 10019: {"NFS4ERR_MOVED", Unsupported},
	10020: {"NFS4ERR_NOFILEHANDLE", ServerFault}, 10021: {"NFS4ERR_MINOR_VERS_MISMATCH", NoVersion}, 10022: {"NFS4ERR_STALE_CLIENTID", Lost}, 10023: {"NFS4ERR_STALE_STATEID", Lost},
	10024: {"NFS4ERR_OLD_STATEID", Lost}, 10025: {"NFS4ERR_BAD_STATEID", Lost}, 10027: {"NFS4ERR_NOT_SAME", NotDir}, 10029: {"NFS4ERR_SYMLINK", NotDir},
	10030: {"NFS4ERR_RESTOREFH", ServerFault}, 10032: {"NFS4ERR_ATTRNOTSUPP", Unsupported}, 10033: {"NFS4ERR_NO_GRACE", ServerFault}, 10036: {"NFS4ERR_BADXDR", Protocol},
	10038: {"NFS4ERR_OPENMODE", ServerFault}, 10039: {"NFS4ERR_BADOWNER", Unsupported}, 10040: {"NFS4ERR_BADCHAR", Inval}, 10041: {"NFS4ERR_BADNAME", Inval},
	10044: {"NFS4ERR_OP_ILLEGAL", Unsupported}, 10046: {"NFS4ERR_FILE_OPEN", Denied}, 10047: {"NFS4ERR_ADMIN_REVOKED", Lost}, 10052: {"NFS4ERR_BADSESSION", Lost},
	10053: {"NFS4ERR_BADSLOT", Lost}, 10054: {"NFS4ERR_COMPLETE_ALREADY", ServerFault}, 10055: {"NFS4ERR_CONN_NOT_BOUND_TO_SESSION", Lost}, 10063: {"NFS4ERR_SEQ_MISORDERED", Lost},
	10065: {"NFS4ERR_REQ_TOO_BIG", ServerFault}, 10066: {"NFS4ERR_REP_TOO_BIG", ServerFault}, 10067: {"NFS4ERR_REP_TOO_BIG_TO_CACHE", ServerFault},
	10068: {"NFS4ERR_RETRY_UNCACHED_REP", Lost}, 10069: {"NFS4ERR_UNSAFE_COMPOUND", ServerFault}, 10070: {"NFS4ERR_TOO_MANY_OPS", ServerFault},
	10071: {"NFS4ERR_OP_NOT_IN_SESSION", ServerFault}, 10074: {"NFS4ERR_CLIENTID_BUSY", ServerFault}, 10076: {"NFS4ERR_SEQ_FALSE_RETRY", Lost}, 10078: {"NFS4ERR_DEADSESSION", Lost},
	10081: {"NFS4ERR_NOT_ONLY_OP", ServerFault}, 10083: {"NFS4ERR_WRONG_TYPE", Inval}, 10087: {"NFS4ERR_DELEG_REVOKED", Lost},
}

// statusError is the error of a status that is not 0. A number that the table lacks is a failure of the server, and is given as it is.
func statusError(table map[uint32]status, prefix string, n uint32) *Error {
	if s, ok := table[n]; ok {
		return &Error{Reason: s.reason, Status: n, Name: s.name}
	}
	return &Error{Status: n, Name: prefix + strconv.FormatUint(uint64(n), 10)}
}

func statusError3(n uint32) *Error     { return statusError(statuses3, "NFS3ERR_", n) }
func statusError4(n uint32) *Error     { return statusError(statuses4, "NFS4ERR_", n) }
func statusErrorMount(n uint32) *Error { return statusError(statusesMount, "MNT3ERR_", n) }
