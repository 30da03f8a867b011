"""A directory of this machine as a guest sees it: nothing in it tells one run from another.

    guest ── 9P ──▶ ExportTree: numbers, versions, times of its own ──▶ the directory

Specification: Plan 9 manual section 5, `stat`: qids and versions.

**Invariants.** A file's qid number says in which order files were first seen, its version how often
the guest changed it, its time when the guest did that, in the domain's own time; what the guest
never changed is as old as the domain. Nothing of the host's inodes, clocks and owners is seen. The
same directory and the same guest: the same answers. A file that was removed and made again has a
new number. With `is_read_only` all that would change something is EROFS.

Why not the host's own numbers: they differ on each machine, and in each copy of the directory.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xenlive.ninep.messages import OMODE_MASK, ORCLOSE, ORDWR, OTRUNC, OWRITE, Qid, Stat
from xenlive.ninep.tree import OpenFile, Tree, os_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

    from xenlive.ninep.tree import Path

_U32 = 0xFFFFFFFF


@dataclass(slots=True)
class _Seen:
    number: int
    version: int
    time_s: int


class ExportTree(Tree):
    """What is in `tree`, at the domain's time `now_s`; it begins at `born_s`."""

    __slots__ = ("_born_s", "_next", "_now_s", "_seen", "_tree", "is_read_only")

    def __init__(
        self, tree: Tree, now_s: Callable[[], int], born_s: int, is_read_only: bool = False
    ) -> None:
        self.is_read_only = is_read_only
        self._tree = tree
        self._now_s = now_s
        self._born_s = born_s
        self._seen: dict[Path, _Seen] = {}
        self._next = 1

    def stat(self, path: Path) -> Stat:
        return self._steady(path, self._tree.stat(path))

    def entries(self, path: Path) -> list[Stat]:
        found = sorted(self._tree.entries(path), key=lambda stat: stat.name)
        return [self._steady((*path, stat.name), stat) for stat in found]

    def open(self, path: Path, mode: int) -> OpenFile:
        writes = mode & OMODE_MASK in (OWRITE, ORDWR) or mode & (OTRUNC | ORCLOSE)
        if self.is_read_only and writes:
            self._tree.stat(path)
            raise os_error(errno.EROFS)
        file = self._tree.open(path, mode)
        if mode & OTRUNC:
            self.changed(path)
        return _ExportedFile(self, self._find(path), file)

    def create(self, path: Path, permissions: int, mode: int) -> OpenFile:
        self._validate_writable()
        file = self._tree.create(path, permissions, mode)
        self._made(path)
        return _ExportedFile(self, self._find(path), file)

    def mkdir(self, path: Path, permissions: int) -> None:
        self._validate_writable()
        self._tree.mkdir(path, permissions)
        self._made(path)

    def remove(self, path: Path) -> None:
        self._validate_writable()
        self._tree.remove(path)
        self._seen.pop(path, None)
        self.changed(path[:-1])

    def changed(self, path: Path) -> None:
        """The guest changed what is there."""
        self.touch(self._find(path))

    def touch(self, seen: _Seen) -> None:
        """The guest changed this file, which may be removed by now."""
        seen.version = seen.version + 1 & _U32
        seen.time_s = self._now_s()

    def _made(self, path: Path) -> None:
        self._seen.pop(path, None)
        self._find(path).time_s = self._now_s()
        self.changed(path[:-1])

    def _find(self, path: Path) -> _Seen:
        seen = self._seen.get(path)
        if seen is None:
            seen = self._seen[path] = _Seen(self._next, 0, self._born_s)
            self._next += 1
        return seen

    def _steady(self, path: Path, stat: Stat) -> Stat:
        seen = self._find(path)
        qid = Qid(stat.qid.type, seen.version, seen.number)
        length = 0 if stat.is_dir else stat.length  # a directory's is its file system's affair
        time_s = seen.time_s & _U32
        return Stat(stat.name, qid, stat.mode, length, time_s, time_s)

    def _validate_writable(self) -> None:
        if self.is_read_only:
            raise os_error(errno.EROFS)


class _ExportedFile(OpenFile):
    __slots__ = ("_file", "_seen", "_tree")

    def __init__(self, tree: ExportTree, seen: _Seen, file: OpenFile) -> None:
        self._tree = tree
        self._seen = seen
        self._file = file

    def read(self, offset: int, count: int) -> bytes:
        return self._file.read(offset, count)

    def write(self, offset: int, data: Buffer) -> int:
        count = self._file.write(offset, data)
        if count:
            self._tree.touch(self._seen)
        return count

    def close(self) -> None:
        self._file.close()
