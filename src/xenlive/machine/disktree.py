"""A directory on disk as a tree for a 9P server.

The client is a domain that nobody trusts. A path is followed one name at a time from the exported
directory's descriptor, each step with `O_NOFOLLOW`, so that neither `..` nor a symbolic link, also
one put there in between, leads out. Special files (devices, pipes, sockets) are not opened.

**Invariants.** No operation reaches a file outside of the exported directory. What a client can
make the tree hold is bounded by `max_bytes` (the sum of all files' lengths, so that a file with a
hole costs its length) and `max_files` (files and directories); beyond is ENOSPC. The sums are
counted once, when they are first needed, then kept; before a refusal they are counted anew, as
somebody else may have made room. A file that was removed counts for as long as a client has it
open. Without a limit nothing is ever counted. An exported directory
that somebody removes is opened again under its name, after `remake` had its chance to make it:
what was in it is gone, the export is not.

Why not `openat2` with `RESOLVE_BENEATH`: Python has no binding for it.
"""

from __future__ import annotations

import errno
import os
import stat as stat_bits
from typing import TYPE_CHECKING

from xenlive.ninep.messages import DMDIR, OMODE_MASK, OTRUNC, QTDIR, Qid, Stat
from xenlive.ninep.tree import OpenFile, Tree, os_error, validate_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from xenlive.ninep.tree import Path

_U32 = 0xFFFFFFFF
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MODES = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)

#: What nobody sets: no limit but the disk's.
UNLIMITED = 1 << 63


class DiskTree(Tree):
    """Exports the directory `root`. OSError if it is none. `close()` gives its descriptor back."""

    def __init__(
        self,
        root: str,
        max_bytes: int = UNLIMITED,
        max_files: int = UNLIMITED,
        remake: Callable[[], None] | None = None,
    ) -> None:
        self.max_bytes = max_bytes
        self.max_files = max_files
        self._used: tuple[int, int] | None = None
        self._files: set[_DiskFile] = set()
        self._path = root
        self._remake = remake
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @property
    def used_bytes(self) -> int:
        """The sum of all files' lengths."""
        return (self._used or self._recount())[0]

    @property
    def used_files(self) -> int:
        """How many files and directories there are."""
        return (self._used or self._recount())[1]

    def account(self, n_bytes: int, n_files: int) -> None:
        """Files grew by `n_bytes`, and there are `n_files` more; negative numbers for less."""
        if self._used is not None:
            used_bytes, used_files = self._used
            self._used = used_bytes + n_bytes, used_files + n_files

    def close(self) -> None:
        """Gives the directory's descriptor back; no operation after that."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def stat(self, path: Path) -> Stat:
        if not path:
            return _stat_of(b"/", os.fstat(self._root()))
        directory = self._open_directory(path[:-1])
        try:
            validate_name(path[-1])
            found = os.stat(path[-1], dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(directory)
        return _stat_of(path[-1], found)

    def entries(self, path: Path) -> list[Stat]:
        directory = self._open_directory(path)
        try:
            entries = []
            for name in sorted(map(os.fsencode, os.listdir(directory))):
                try:
                    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    entries.append(_stat_of(name, found))
                except OSError:
                    continue  # gone in between, or nothing a client may know of
            return entries
        finally:
            os.close(directory)

    def open(self, path: Path, mode: int) -> OpenFile:
        if not path:
            raise os_error(errno.EISDIR)
        fd = self._open(path, _MODES[mode & OMODE_MASK] | _FILE)
        try:
            found = os.fstat(fd)
            if not stat_bits.S_ISREG(found.st_mode):
                is_dir = stat_bits.S_ISDIR(found.st_mode)
                raise os_error(errno.EISDIR if is_dir else errno.EPERM)
            if mode & OTRUNC:
                os.ftruncate(fd, 0)
                self.account(-found.st_size, 0)
        except BaseException:
            os.close(fd)
            raise
        return _DiskFile(self, fd)

    def create(self, path: Path, permissions: int, mode: int) -> OpenFile:
        if not path:
            raise os_error(errno.EEXIST)
        self._validate_files()
        flags = _MODES[mode & OMODE_MASK] | _FILE | os.O_CREAT | os.O_EXCL
        fd = self._open(path, flags, permissions & 0o666)
        self.account(0, 1)
        return _DiskFile(self, fd)

    def mkdir(self, path: Path, permissions: int) -> None:
        if not path:
            raise os_error(errno.EEXIST)
        self._validate_files()
        validate_name(path[-1])
        directory = self._open_directory(path[:-1])
        try:
            os.mkdir(path[-1], permissions & 0o777, dir_fd=directory)
        finally:
            os.close(directory)
        self.account(0, 1)

    def remove(self, path: Path) -> None:
        if not path:
            raise os_error(errno.EBUSY)
        directory = self._open_directory(path[:-1])
        try:
            validate_name(path[-1])
            found = os.stat(path[-1], dir_fd=directory, follow_symlinks=False)
            if stat_bits.S_ISDIR(found.st_mode):
                os.rmdir(path[-1], dir_fd=directory)
            else:
                os.unlink(path[-1], dir_fd=directory)
                if stat_bits.S_ISREG(found.st_mode) and not self.is_open(found):
                    self.account(-found.st_size, 0)
        finally:
            os.close(directory)
        self.account(0, -1)

    def opened(self, file: _DiskFile) -> None:
        """Somebody holds this file, until `closed`."""
        self._files.add(file)

    def closed(self, file: _DiskFile, found: os.stat_result) -> None:
        """Nobody holds it any more; if it was removed before, it is gone only now."""
        self._files.discard(file)
        if not found.st_nlink and not self.is_open(found):
            self.account(-found.st_size, 0)

    def is_open(self, found: os.stat_result) -> bool:
        """Whether somebody holds the file of that inode."""
        inode = (found.st_dev, found.st_ino)
        return any(file.inode == inode for file in self._files)

    def room_for(self, more_bytes: int) -> int:
        """How many of `more_bytes` files may still grow by; 0 if by none."""
        if self.max_bytes >= UNLIMITED:
            return more_bytes
        if self.used_bytes + more_bytes > self.max_bytes:
            self._recount()
        return max(0, min(more_bytes, self.max_bytes - self.used_bytes))

    def _validate_files(self) -> None:
        if self.max_files < UNLIMITED and self.used_files >= self.max_files:
            self._recount()
            if self.used_files >= self.max_files:
                raise os_error(errno.ENOSPC)

    def _root(self) -> int:
        """The root's descriptor; of a new root, if the old one was removed."""
        if os.fstat(self._root_fd).st_nlink == 0:
            if self._remake is not None:
                self._remake()
            fd = os.open(self._path, _DIRECTORY)
            os.close(self._root_fd)
            self._root_fd = fd
            self._used = None
        return self._root_fd

    def _open_directory(self, path: Path) -> int:
        fd = os.dup(self._root())
        for name in path:
            try:
                validate_name(name)
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _open(self, path: Path, flags: int, permissions: int = 0) -> int:
        validate_name(path[-1])
        directory = self._open_directory(path[:-1])
        try:
            return os.open(path[-1], flags, permissions, dir_fd=directory)
        finally:
            os.close(directory)

    def _recount(self) -> tuple[int, int]:
        used_bytes = used_files = 0
        for _, folders, files, directory in os.fwalk(".", dir_fd=self._root_fd):
            used_files += len(folders) + len(files)
            for name in files:
                try:
                    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat_bits.S_ISREG(found.st_mode):
                    used_bytes += found.st_size
        gone = {file.inode: file.stat() for file in self._files}
        used_bytes += sum(found.st_size for found in gone.values() if not found.st_nlink)
        self._used = used_bytes, used_files
        return self._used


class _DiskFile(OpenFile):
    __slots__ = ("_fd", "_tree", "inode")

    def __init__(self, tree: DiskTree, fd: int) -> None:
        self._tree = tree
        self._fd = fd
        found = self.stat()
        #: Which file it is, whatever its name.
        self.inode = (found.st_dev, found.st_ino)
        tree.opened(self)

    def stat(self) -> os.stat_result:
        """What is known of it now."""
        return os.fstat(self._fd)

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._fd, count, offset)

    def write(self, offset: int, data: Buffer) -> int:
        view = memoryview(data)
        if not len(view):
            return 0
        before = self.stat().st_size
        more = offset + len(view) - before
        if more > 0:
            view = view[: max(0, len(view) - more + self._tree.room_for(more))]
            if not len(view):
                raise os_error(errno.ENOSPC)
        written = os.pwrite(self._fd, view, offset)
        self._tree.account(max(0, offset + written - before), 0)
        return written

    def close(self) -> None:
        found = self.stat()
        self._tree.closed(self, found)
        os.close(self._fd)


def _stat_of(name: bytes, found: os.stat_result) -> Stat:
    """A Stat; EMLINK for a symbolic link, as Xen's backend answers."""
    if stat_bits.S_ISLNK(found.st_mode):
        raise os_error(errno.EMLINK)
    is_dir = stat_bits.S_ISDIR(found.st_mode)
    version = (int(found.st_mtime) ^ found.st_size << 8) & _U32
    return Stat(
        name,
        Qid(QTDIR if is_dir else 0, version, found.st_ino),
        stat_bits.S_IMODE(found.st_mode) & 0o777 | (DMDIR if is_dir else 0),
        found.st_size,
        int(found.st_atime) & _U32,
        int(found.st_mtime) & _U32,
    )
