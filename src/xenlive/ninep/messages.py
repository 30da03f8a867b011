"""The messages of 9P2000.u: one table that codec, client and server are driven by.

    size[4] type[1] tag[2] fields...         integers little endian, `size` counts itself

Sources: section 5 of the Plan 9 manual, "Access to files", and the 9P2000.u extension (a number
beside the text of Rerror, `n_uname` in Tattach, `extension` in Tcreate, four more fields in stat).

The kinds a field can have:

    u8 u16 u32 u64      integers
    string              u16 length, then bytes (UTF-8 by the manual, any bytes on Linux)
    strings             u16 number, then strings
    data                u32 length, then bytes
    qid                 type u8, version u32, path u64
    qids                u16 number, then qids
    stat                u16 length around a stat, which begins with its own u16 length

**Invariants.** A request has an even number, its reply the next one; Rerror answers any request.
Tauth, Tflush and Twstat are not part of what the Xen front ends speak: a server answers
EOPNOTSUPP to them as to any number that is not in the table.
"""

from __future__ import annotations

VERSION_9P2000U = b"9P2000.u"
VERSION_UNKNOWN = b"unknown"

#: Bytes of the header, and of what stands around the data of the two big messages.
HEADER_BYTES = 7
TWRITE_BYTES = HEADER_BYTES + 16
RREAD_BYTES = HEADER_BYTES + 4

#: Smallest message size a server accepts (Xen's own has the same), largest number of walk names.
MIN_MSIZE = 2048
MAX_WALK = 16

NOTAG = 0xFFFF
NOFID = 0xFFFFFFFF

TVERSION, RVERSION = 100, 101
TATTACH, RATTACH = 104, 105
RERROR = 107
TWALK, RWALK = 110, 111
TOPEN, ROPEN = 112, 113
TCREATE, RCREATE = 114, 115
TREAD, RREAD = 116, 117
TWRITE, RWRITE = 118, 119
TCLUNK, RCLUNK = 120, 121
TREMOVE, RREMOVE = 122, 123
TSTAT, RSTAT = 124, 125

#: number -> name, and the fields in order: name and kind.
MESSAGES: dict[int, tuple[str, tuple[tuple[str, str], ...]]] = {
    TVERSION: ("Tversion", (("msize", "u32"), ("version", "string"))),
    RVERSION: ("Rversion", (("msize", "u32"), ("version", "string"))),
    TATTACH: (
        "Tattach",
        (
            ("fid", "u32"),
            ("afid", "u32"),
            ("uname", "string"),
            ("aname", "string"),
            ("n_uname", "u32"),
        ),
    ),
    RATTACH: ("Rattach", (("qid", "qid"),)),
    RERROR: ("Rerror", (("ename", "string"), ("errno", "u32"))),
    TWALK: ("Twalk", (("fid", "u32"), ("newfid", "u32"), ("wname", "strings"))),
    RWALK: ("Rwalk", (("wqid", "qids"),)),
    TOPEN: ("Topen", (("fid", "u32"), ("mode", "u8"))),
    ROPEN: ("Ropen", (("qid", "qid"), ("iounit", "u32"))),
    TCREATE: (
        "Tcreate",
        (
            ("fid", "u32"),
            ("name", "string"),
            ("perm", "u32"),
            ("mode", "u8"),
            ("extension", "string"),
        ),
    ),
    RCREATE: ("Rcreate", (("qid", "qid"), ("iounit", "u32"))),
    TREAD: ("Tread", (("fid", "u32"), ("offset", "u64"), ("count", "u32"))),
    RREAD: ("Rread", (("data", "data"),)),
    TWRITE: ("Twrite", (("fid", "u32"), ("offset", "u64"), ("data", "data"))),
    RWRITE: ("Rwrite", (("count", "u32"),)),
    TCLUNK: ("Tclunk", (("fid", "u32"),)),
    RCLUNK: ("Rclunk", ()),
    TREMOVE: ("Tremove", (("fid", "u32"),)),
    RREMOVE: ("Rremove", ()),
    TSTAT: ("Tstat", (("fid", "u32"),)),
    RSTAT: ("Rstat", (("stat", "stat"),)),
}

# Topen and Tcreate `mode`.
OREAD, OWRITE, ORDWR = 0, 1, 2
OMODE_MASK = 0x03
OTRUNC = 0x10
ORCLOSE = 0x40

#: Tcreate `perm` and stat `mode`: a directory; links, devices, pipes and sockets of 9P2000.u.
DMDIR = 0x80000000
DM_SPECIAL = 0x03B00000
QTDIR = 0x80


class Qid:
    """What the server calls a file: `path` is the same for the same file, `version` changes."""

    __slots__ = ("path", "type", "version")

    def __init__(self, type: int, version: int, path: int) -> None:
        self.type = type
        self.version = version
        self.path = path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Qid) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Qid(type={self.type:#x}, version={self.version}, path={self.path})"

    def _key(self) -> tuple[int, int, int]:
        return self.type, self.version, self.path


class Stat:
    """What is known of a file: times in seconds since 1970, `length` in bytes."""

    __slots__ = ("atime", "length", "mode", "mtime", "name", "qid")

    def __init__(
        self, name: bytes, qid: Qid, mode: int, length: int, atime: int = 0, mtime: int = 0
    ) -> None:
        self.name = name
        self.qid = qid
        self.mode = mode
        self.length = length
        self.atime = atime
        self.mtime = mtime

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return bool(self.mode & DMDIR)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stat) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Stat({self.name!r}, mode={self.mode:o}, length={self.length})"

    def _key(self) -> tuple[object, ...]:
        return self.name, self.qid, self.mode, self.length, self.atime, self.mtime
