"""The server's end of 9P2000.u without I/O of its own: requests in, replies out, files from a tree.

    server.receive(data)         requests, in any chunking, no more than `server.room` bytes
    server.next_reply()          handles one request: its reply, or None when none is complete

One reply is made at a time, and only when it is asked for: the transport asks again once it could
send the last one. So a client that asks for much and takes nothing holds up itself alone, and
costs at most one request and one reply of memory.

Source: Plan 9 manual section 5, 9P2000.u. What differs, because Mini-OS and Xen's backend
(`tools/9pfsd`) do it so:

* Tversion does *not* end the session: fids stay. After kexec a Mini-OS front end sends Tversion
  again, but not Tattach, and goes on with the root fid it had.
* Tattach to a fid in use is refused (EBADF) and leaves that fid as it is.
* Tauth, Tflush and Twstat are answered EOPNOTSUPP.

**Invariants.** A request whose length is right gets exactly one reply; if its body is broken, that
is Rerror EINVAL. A length that can't be right is a PeerError, after which the connection is dead.
No reply is longer than `msize`. Fids, open files and what a read may ask for are bounded.
"""

from __future__ import annotations

import errno
import os

from xenlive.errors import PeerError
from xenlive.ninep.codec import (
    Message,
    decode,
    encode,
    encode_read_reply,
    encode_stat,
    frame_size,
    header,
)
from xenlive.ninep.messages import (
    DM_SPECIAL,
    DMDIR,
    MIN_MSIZE,
    OMODE_MASK,
    ORCLOSE,
    ORDWR,
    OREAD,
    OTRUNC,
    OWRITE,
    RERROR,
    RREAD_BYTES,
    TATTACH,
    TCLUNK,
    TCREATE,
    TOPEN,
    TREAD,
    TREMOVE,
    TSTAT,
    TVERSION,
    TWALK,
    TWRITE,
    VERSION_9P2000U,
    VERSION_UNKNOWN,
)
from xenlive.ninep.tree import os_error, validate_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from xenlive.ninep.messages import Qid
    from xenlive.ninep.tree import OpenFile, Path, Tree

#: The largest file offset; everything behind it is EFBIG.
_MAX_OFFSET = (1 << 63) - 1
_MAX_TEXT = 79

#: Directories within directories, so that a path costs no more than a little to follow.
_MAX_DEPTH = 64


class Fid:
    """What a client calls a file: its path, and how it is open, if it is."""

    __slots__ = ("entries", "file", "is_open", "mode", "path", "read_at")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_open = False
        self.mode = 0
        self.file: OpenFile | None = None
        # a directory's entries, encoded and not read yet, and the offset of the first of them
        self.entries: list[bytes] | None = None
        self.read_at = 0


class Session:
    """What is said over one stream is true on all that share it: fids, and the agreed `msize`."""

    __slots__ = ("fids", "max_fids", "max_open_files", "msize", "open_files")

    def __init__(self, max_fids: int = 256, max_open_files: int = 64) -> None:
        self.max_fids = max_fids
        self.max_open_files = max_open_files
        self.open_files = 0
        self.fids: dict[int, Fid] = {}
        #: What Tversion agreed to; 0 before it.
        self.msize = 0

    def close(self) -> None:
        """Closes all open files; those to be removed on close stay."""
        for fid in self.fids.values():
            if fid.file is not None:
                fid.file.close()
        self.fids.clear()
        self.open_files = 0


class NinePServer:
    """One stream of a client's session with a tree; `msize` is the most it agrees to.

    A client with several streams has one `session` on all of them, which then is the caller's to
    close; without one given the stream has a session of its own.
    """

    __slots__ = ("_handlers", "_in", "_limit", "_owns_session", "_tree", "session")

    def __init__(
        self,
        tree: Tree,
        msize: int,
        max_fids: int = 256,
        max_open_files: int = 64,
        session: Session | None = None,
    ) -> None:
        self._tree = tree
        self._limit = msize
        self._owns_session = session is None
        self.session = session or Session(max_fids, max_open_files)
        self._in = bytearray()
        self._handlers: dict[int, Callable[[int, Message], bytes]] = {
            TVERSION: self._version,
            TATTACH: self._attach,
            TWALK: self._walk,
            TOPEN: self._open,
            TCREATE: self._create,
            TREAD: self._read,
            TWRITE: self._write,
            TCLUNK: self._clunk,
            TREMOVE: self._remove,
            TSTAT: self._stat,
        }

    # -- the stream ------------------------------------------------------------------------------

    @property
    def msize(self) -> int:
        """The longest message that may be sent on this stream."""
        return min(self.session.msize or self._limit, self._limit)

    @property
    def room(self) -> int:
        """Bytes that `receive` takes now: never more than the largest request needs."""
        return self._limit - len(self._in)

    def receive(self, data: Buffer) -> None:
        """Takes bytes of requests; ValueError if there are more than `room`."""
        view = memoryview(data)
        if len(view) > self.room:
            raise ValueError(f"{len(view)} bytes of requests, room for {self.room}")
        self._in += view

    def next_reply(self) -> bytes | None:
        """Handles the next request; None if it is not complete yet. PeerError ends the session."""
        size = frame_size(self._in, self._limit)
        if size == 0 or size > len(self._in):
            return None
        # One copy, so that nothing holds on to the buffer while it shrinks.
        frame = bytes(memoryview(self._in)[:size])
        del self._in[:size]
        return self._answer(frame)

    def close(self) -> None:
        """Closes all open files, as when the connection ends, unless others use the session."""
        if self._owns_session:
            self.session.close()

    def fids(self) -> dict[int, Path]:
        """The fids of the session and the paths they stand for."""
        return {number: fid.path for number, fid in self.session.fids.items()}

    def _answer(self, frame: bytes) -> bytes:
        type, tag = header(frame)
        handler = self._handlers.get(type)
        if handler is None:
            return _error(tag, errno.EOPNOTSUPP)
        try:
            request = decode(frame)
        except PeerError:
            return _error(tag, errno.EINVAL)
        try:
            return handler(tag, request)
        except OSError as error:
            return _error(tag, error.errno or errno.EIO)

    # -- the session -----------------------------------------------------------------------------

    def _version(self, tag: int, request: Message) -> bytes:
        if request["msize"] < MIN_MSIZE:
            raise os_error(errno.EMSGSIZE)
        self.session.msize = min(request["msize"], self._limit)
        known = request["version"] == VERSION_9P2000U
        version = VERSION_9P2000U if known else VERSION_UNKNOWN
        return encode(TVERSION + 1, tag, msize=self.msize, version=version)

    def _attach(self, tag: int, request: Message) -> bytes:
        self._validate_new_fid(request["fid"])
        qid = self._tree.stat(()).qid
        self.session.fids[request["fid"]] = Fid(())
        return encode(TATTACH + 1, tag, qid=qid)

    def _walk(self, tag: int, request: Message) -> bytes:
        fid = self._fid(request["fid"])
        if fid.is_open:
            raise os_error(errno.EINVAL)
        names: list[bytes] = request["wname"]
        for name in names:
            validate_name(name)
        if request["newfid"] != request["fid"]:
            self._validate_new_fid(request["newfid"])
        qids: list[Qid] = []
        path = fid.path
        for name in names:
            try:
                qid = self._tree.stat((*path, name)).qid
            except OSError:
                if not qids:
                    raise
                return encode(TWALK + 1, tag, wqid=qids)
            path = (*path, name)
            qids.append(qid)
        _validate_depth(path)
        self.session.fids[request["newfid"]] = Fid(path)
        return encode(TWALK + 1, tag, wqid=qids)

    def _clunk(self, tag: int, request: Message) -> bytes:
        fid = self._fid(request["fid"])
        self._drop(request["fid"])
        if fid.is_open and fid.mode & ORCLOSE:
            self._tree.remove(fid.path)
        return encode(TCLUNK + 1, tag)

    def _remove(self, tag: int, request: Message) -> bytes:
        fid = self._fid(request["fid"])
        self._drop(request["fid"])
        self._tree.remove(fid.path)
        return encode(TREMOVE + 1, tag)

    def _stat(self, tag: int, request: Message) -> bytes:
        stat = self._tree.stat(self._fid(request["fid"]).path)
        return encode(TSTAT + 1, tag, stat=stat)

    # -- files -----------------------------------------------------------------------------------

    def _open(self, tag: int, request: Message) -> bytes:
        fid = self._fid(request["fid"])
        mode: int = request["mode"]
        if fid.is_open or not _mode_ok(mode):
            raise os_error(errno.EINVAL)
        self._validate_open_files()
        stat = self._tree.stat(fid.path)
        if not stat.is_dir:
            fid.file = self._tree.open(fid.path, mode)
        elif mode & ~ORCLOSE != OREAD:
            raise os_error(errno.EISDIR)
        self._opened(fid, mode)
        return encode(TOPEN + 1, tag, qid=stat.qid, iounit=0)

    def _create(self, tag: int, request: Message) -> bytes:
        fid = self._fid(request["fid"])
        mode, perm = request["mode"], request["perm"]
        if fid.is_open or perm & DM_SPECIAL or not _mode_ok(mode):
            raise os_error(errno.EINVAL)
        validate_name(request["name"])
        self._validate_open_files()
        path = (*fid.path, request["name"])
        _validate_depth(path)
        if not perm & DMDIR:
            fid.file = self._tree.create(path, perm & 0o666, mode)
        elif mode & ~ORCLOSE != OREAD:
            raise os_error(errno.EISDIR)
        else:
            self._tree.mkdir(path, perm & 0o777)
        fid.path = path
        self._opened(fid, mode)
        return encode(TCREATE + 1, tag, qid=self._tree.stat(path).qid, iounit=0)

    def _read(self, tag: int, request: Message) -> bytes:
        fid = self._fid(request["fid"])
        count = min(request["count"], self.msize - RREAD_BYTES)
        offset: int = request["offset"]
        if not fid.is_open or fid.mode & OMODE_MASK == OWRITE:
            raise os_error(errno.EBADF)
        if fid.file is None:
            data = self._read_directory(fid, offset, count)
        elif offset + count > _MAX_OFFSET:
            raise os_error(errno.EFBIG)
        else:
            data = fid.file.read(offset, count)
        return encode_read_reply(tag, len(data)) + data

    def _read_directory(self, fid: Fid, offset: int, count: int) -> bytes:
        """Whole entries only; an offset is 0 (begin again) or where the last read ended."""
        if offset == 0:
            fid.entries = [encode_stat(entry) for entry in self._tree.entries(fid.path)]
            fid.read_at = 0
        if fid.entries is None or offset != fid.read_at:
            raise os_error(errno.EINVAL)
        size = taken = 0
        while taken < len(fid.entries) and size + len(fid.entries[taken]) <= count:
            size += len(fid.entries[taken])
            taken += 1
        if fid.entries and not taken:
            raise os_error(errno.EINVAL)
        data = b"".join(fid.entries[:taken])
        del fid.entries[:taken]
        fid.read_at += size
        return data

    def _write(self, tag: int, request: Message) -> bytes:
        fid = self._fid(request["fid"])
        data: memoryview = request["data"]
        offset: int = request["offset"]
        if fid.file is None or fid.mode & OMODE_MASK == OREAD:
            raise os_error(errno.EBADF)
        if offset + len(data) > _MAX_OFFSET:
            raise os_error(errno.EFBIG)
        return encode(TWRITE + 1, tag, count=fid.file.write(offset, data))

    # -- fids ------------------------------------------------------------------------------------

    def _fid(self, number: int) -> Fid:
        try:
            return self.session.fids[number]
        except KeyError:
            raise os_error(errno.EBADF) from None

    def _validate_new_fid(self, number: int) -> None:
        if number in self.session.fids:
            raise os_error(errno.EBADF)
        if len(self.session.fids) >= self.session.max_fids:
            raise os_error(errno.EMFILE)

    def _validate_open_files(self) -> None:
        if self.session.open_files >= self.session.max_open_files:
            raise os_error(errno.EMFILE)

    def _opened(self, fid: Fid, mode: int) -> None:
        fid.is_open = True
        fid.mode = mode
        self.session.open_files += 1

    def _drop(self, number: int) -> None:
        fid = self.session.fids.pop(number)
        if fid.is_open:
            self.session.open_files -= 1
        if fid.file is not None:
            fid.file.close()


def _mode_ok(mode: int) -> bool:
    return not mode & ~(OMODE_MASK | OTRUNC | ORCLOSE) and mode & OMODE_MASK <= ORDWR


def _validate_depth(path: Path) -> None:
    if len(path) > _MAX_DEPTH:
        raise os_error(errno.ENAMETOOLONG)


def _error(tag: int, number: int) -> bytes:
    text = os.strerror(number).encode()[:_MAX_TEXT]
    return encode(RERROR, tag, ename=text, errno=number)
