"""Whole files over a 9P connection: write, append, read, stat, remove.

`NinePFiles` knows which requests an operation takes and in what order; moving bytes is the
transport's: it is given as `drive(until)`, which sends `client.output`, feeds `client.receive`
and returns once `until()` is true.

Reads and writes are pipelined: the next request goes out while earlier ones are not answered, as
long as the transport takes it, so that a transfer waits for the other side only when the ring
between them is full or empty.

**Invariants.** Between operations only the root fid is known to the server. An operation that
fails lets go of its fid; where that is not possible (the server is silent) the fid is kept on a
list and let go of before the next operation. Each error is NinePError for what the server refused,
PeerError for what it should not have sent, or what `drive` raises.
"""

from __future__ import annotations

import errno
import os

from xenlive.errors import NinePError, OutOfSpace, PeerError, PeerTimeout
from xenlive.ninep.messages import (
    MAX_WALK,
    NOFID,
    ORCLOSE,
    OREAD,
    OTRUNC,
    OWRITE,
    TATTACH,
    TCLUNK,
    TCREATE,
    TOPEN,
    TREAD,
    TREMOVE,
    TSTAT,
    TWALK,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from typing_extensions import Buffer

    from xenlive.ninep.client import Call, NinePClient
    from xenlive.ninep.codec import Message
    from xenlive.ninep.messages import Stat

ROOT_FID = 0

#: Reads in flight: enough to keep both sides busy, few enough that a short file costs little.
_READS_AHEAD = 8


class NinePFiles:
    """File operations over `client`; paths are absolute, from the root of what is exported."""

    __slots__ = ("_client", "_drive", "_stale_fids")

    def __init__(self, client: NinePClient, drive: Callable[[Callable[[], bool]], None]) -> None:
        self._client = client
        self._drive = drive
        self._stale_fids: list[int] = []

    # -- the session -----------------------------------------------------------------------------

    def attach(self) -> None:
        """Agrees on the protocol and takes the root as fid 0.

        A server that still has fid 0 from the kernel before refuses the attach; then that fid must
        stand for a directory, and is used as it is.
        """
        self._finish(self._client.version())
        while self._client.next_fid <= ROOT_FID:
            self._client.new_fid()
        try:
            self._ask(TATTACH, fid=ROOT_FID, afid=NOFID, uname=b"root", aname=b"", n_uname=0)
        except NinePError as refused:
            if not self._ask(TSTAT, fid=ROOT_FID)["stat"].is_dir:
                raise refused from None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and the server knows no fid but the root's."""
        return self._client.is_idle and not self._stale_fids

    # -- operations ------------------------------------------------------------------------------

    def write_file(self, path: str, chunks: Iterable[Buffer], permissions: int = 0o600) -> int:
        """Creates or replaces a file with what `chunks` give; returns its length in bytes.

        A chunk must not change before the next one is asked for. On failure a part of the file
        may be there.
        """
        names = _names(path)
        if not names:
            raise NinePError(f"{path}: {os.strerror(errno.EISDIR)}", errno.EISDIR)
        fid = self._create(names, permissions)
        return self._write(fid, chunks, 0)

    def append_file(
        self, path: str, data: bytes, limit_bytes: int = 1 << 30, permissions: int = 0o600
    ) -> int:
        """Writes behind the end of a file, made if there is none; returns its length then.

        OutOfSpace, before anything is written, if it would have more than `limit_bytes`.
        """
        names = _names(path)
        if not names:
            raise NinePError(f"{path}: {os.strerror(errno.EISDIR)}", errno.EISDIR)
        try:
            fid = self._walk(names)
        except NinePError as error:
            if error.errno != errno.ENOENT:
                raise
            return self._write(self._create(names, permissions), [data], 0)
        try:
            stat: Stat = self._ask(TSTAT, fid=fid)["stat"]
            if stat.is_dir:
                raise NinePError(f"{path}: {os.strerror(errno.EISDIR)}", errno.EISDIR)
            if stat.length + len(data) > limit_bytes:
                raise OutOfSpace(f"bytes for {path}", stat.length + len(data), limit_bytes)
            self._ask(TOPEN, fid=fid, mode=OWRITE)
        except BaseException as error:
            self._let_go(fid, error)
            raise
        return self._write(fid, [data], stat.length)

    def _write(self, fid: int, chunks: Iterable[Buffer], offset: int) -> int:
        """Writes to an open fid from `offset` on, and lets go of it; returns where it ended."""
        calls: list[tuple[Call, int]] = []
        try:
            for chunk in chunks:
                view = memoryview(chunk).cast("B")
                for start in range(0, len(view), self._client.write_limit):
                    piece = view[start : start + self._client.write_limit]
                    self._drive(self._may_send)
                    calls.append((self._client.write(fid, offset, piece), len(piece)))
                    offset += len(piece)
                    _reap_writes(calls)
                # The chunk is the caller's again after this: all of it has to be in the ring.
                self._drive(self._all_sent)
            while calls:
                self._finish(calls[0][0])
                _reap_writes(calls)
        except BaseException as error:
            self._let_go(fid, error)
            raise
        self._clunk(fid)
        return offset

    def read_file(self, path: str, limit_bytes: int = 1 << 30) -> bytearray:
        """A whole file. OutOfSpace, before anything is read, if it has more than `limit_bytes`."""
        fid = self._walk(_names(path))
        try:
            size = self._ask(TSTAT, fid=fid)["stat"].length
            if size > limit_bytes:
                raise OutOfSpace(f"bytes for {path}", size, limit_bytes)
            self._ask(TOPEN, fid=fid, mode=OREAD)
            content = self._read(fid, size)
        except BaseException as error:
            self._let_go(fid, error)
            raise
        self._clunk(fid)
        return content

    def stat(self, path: str) -> Stat:
        """What the server knows of a file; NinePError with ENOENT if there is none."""
        fid = self._walk(_names(path))
        try:
            stat: Stat = self._ask(TSTAT, fid=fid)["stat"]
        except BaseException as error:
            self._let_go(fid, error)
            raise
        self._clunk(fid)
        return stat

    def remove(self, path: str) -> None:
        """Removes a file or an empty directory.

        Xen's own backend has no Tremove; there a file is opened to be removed on close.
        """
        fid = self._walk(_names(path))
        try:
            self._ask(TREMOVE, fid=fid)
            self._client.free_fid(fid)
            return
        except NinePError as error:
            if error.errno != errno.EOPNOTSUPP:
                self._client.free_fid(fid)  # a Tremove that fails lets go of the fid too
                raise
        except BaseException as error:
            self._let_go(fid, error)
            raise
        try:
            self._ask(TOPEN, fid=fid, mode=OREAD | ORCLOSE)
        except BaseException as error:
            self._let_go(fid, error)
            raise
        self._clunk(fid)

    # -- requests --------------------------------------------------------------------------------

    def _ask(self, type: int, **fields: Any) -> Message:
        self._drive(lambda: self._client.can_call)
        return self._finish(self._client.call(type, **fields))

    def _finish(self, call: Call) -> Message:
        if not call.done:
            self._drive(lambda: call.done)
        return call.result()

    def _may_send(self) -> bool:
        return not self._client.output and self._client.can_call

    def _all_sent(self) -> bool:
        return not self._client.output

    def _walk(self, names: list[bytes]) -> int:
        """A new fid for a path; none is left behind when the path leads nowhere."""
        self._clunk_stale()
        fid = self._client.new_fid()
        start = ROOT_FID
        rest = names
        try:
            while True:
                found = self._ask(TWALK, fid=start, newfid=fid, wname=rest[:MAX_WALK])["wqid"]
                if len(found) < len(rest[:MAX_WALK]):
                    raise NinePError(os.strerror(errno.ENOENT), errno.ENOENT)
                start, rest = fid, rest[MAX_WALK:]
                if not rest:
                    return fid
        except BaseException as error:
            if start == ROOT_FID and isinstance(error, NinePError):
                self._client.free_fid(fid)  # the first walk failed: the server never knew it
            else:
                self._let_go(fid, error)
            raise

    def _create(self, names: list[bytes], permissions: int) -> int:
        """An open fid of an empty file, new or emptied."""
        fid = self._walk(names[:-1])
        try:
            self._ask(
                TCREATE, fid=fid, name=names[-1], perm=permissions, mode=OWRITE, extension=b""
            )
            return fid
        except BaseException as error:
            self._let_go(fid, error)
            if not isinstance(error, NinePError) or error.errno != errno.EEXIST:
                raise
        fid = self._walk(names)
        try:
            self._ask(TOPEN, fid=fid, mode=OWRITE | OTRUNC)
        except BaseException as error:
            self._let_go(fid, error)
            raise
        return fid

    def _read(self, fid: int, size: int) -> bytearray:
        """Reads an open file from its beginning, as far as `size`, or to its end if it shrank."""
        content = bytearray(size)
        calls: list[tuple[Call, int]] = []
        unit = self._client.read_limit
        asked = 0
        while asked < size or calls:
            while asked < size and len(calls) < _READS_AHEAD and self._client.can_call:
                count = min(unit, size - asked)
                calls.append((self._client.call(TREAD, fid=fid, offset=asked, count=count), asked))
                asked += count
            call, offset = calls.pop(0)
            data = self._finish(call)["data"]
            content[offset : offset + len(data)] = data
            if len(data) < call.limit:
                # Short, but not by an error: ask for the rest; nothing at all is the file's end.
                while calls:
                    self._finish(calls.pop(0)[0])
                asked = offset + len(data)
                if not data:
                    del content[asked:]
                    break
        return content

    # -- letting go ------------------------------------------------------------------------------

    def _clunk(self, fid: int) -> None:
        try:
            self._ask(TCLUNK, fid=fid)
        except NinePError:
            self._client.free_fid(fid)  # a fid that can't be clunked is gone, says the manual
            raise
        except BaseException:
            self._stale_fids.append(fid)
            raise
        self._client.free_fid(fid)

    def _let_go(self, fid: int, error: BaseException) -> None:
        """Clunks a fid after `error`, unless that was that the server can't be asked any more."""
        if isinstance(error, (PeerError, PeerTimeout)):
            self._stale_fids.append(fid)
            return
        try:
            self._clunk(fid)
        except (NinePError, PeerError, PeerTimeout):
            return

    def _clunk_stale(self) -> None:
        while self._stale_fids:
            fid = self._stale_fids.pop()
            try:
                self._clunk(fid)
            except NinePError:
                continue


def _reap_writes(calls: list[tuple[Call, int]]) -> None:
    """Takes answered writes from the head of the list; NinePError for one that was cut short."""
    while calls and calls[0][0].done:
        call, size = calls.pop(0)
        if call.result()["count"] != size:
            raise NinePError(os.strerror(errno.ENOSPC), errno.ENOSPC)


def _names(path: str) -> list[bytes]:
    if not path.startswith("/"):
        raise NinePError(f"{path}: not an absolute path", errno.EINVAL)
    return [name.encode() for name in path.split("/") if name]
