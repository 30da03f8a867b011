"""What a 9P server exports: a tree of files, as an interface, and one that lives in memory.

A path is a tuple of names from the root, `()` the root itself. Failure is an OSError: its errno is
what goes into Rerror, so a tree speaks the operating system's language.

**Invariants.** Nothing outside of the tree can be named: a name is never empty, `.` or `..`, and
holds no `/` and no NUL. An operation that fails has changed nothing, but that a write may be cut
short where space ends, as `write(2)` may.
"""

from __future__ import annotations

import errno
import os

from xenlive.ninep.messages import DMDIR, OTRUNC, QTDIR, Qid, Stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    Path = tuple[bytes, ...]

#: `NAME_MAX` of Linux.
MAX_NAME = 255


def validate_name(name: bytes) -> None:
    """Refuses a name that is none: ENOENT, as Xen's backend answers; ENAMETOOLONG."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise os_error(errno.ENOENT)
    if len(name) > MAX_NAME:
        raise os_error(errno.ENAMETOOLONG)


def os_error(number: int) -> OSError:
    """An OSError with the system's own text."""
    return OSError(number, os.strerror(number))


class OpenFile:
    """An open file. `close` is called once; nothing after it."""

    __slots__ = ()

    def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset`; empty at or behind the end."""
        raise NotImplementedError

    def write(self, offset: int, data: Buffer) -> int:
        """Writes at `offset`; returns how many bytes, fewer than given only if space ends."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives the file back."""
        raise NotImplementedError


class Tree:
    """A tree of files and directories."""

    __slots__ = ()

    def stat(self, path: Path) -> Stat:
        """What is known of a file. ENOENT if there is none, ELOOP for a symbolic link."""
        raise NotImplementedError

    def entries(self, path: Path) -> list[Stat]:
        """What is in a directory. ENOTDIR if it is none."""
        raise NotImplementedError

    def open(self, path: Path, mode: int) -> OpenFile:
        """Opens a file (not a directory: EISDIR) with a Topen `mode`, checked by the server."""
        raise NotImplementedError

    def create(self, path: Path, permissions: int, mode: int) -> OpenFile:
        """Creates a file that is not there (EEXIST) and opens it."""
        raise NotImplementedError

    def mkdir(self, path: Path, permissions: int) -> None:
        """Creates a directory that is not there (EEXIST)."""
        raise NotImplementedError

    def remove(self, path: Path) -> None:
        """Removes a file or an empty directory (ENOTEMPTY); EBUSY for the root."""
        raise NotImplementedError


class MemoryTree(Tree):
    """A tree in memory, for tests and simulation; `max_bytes` is all it takes in its files."""

    __slots__ = ("_next_inode", "_root", "max_bytes", "used_bytes")

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._next_inode = 1
        self._root = _Node(b"", 0, 0o755 | DMDIR)

    def stat(self, path: Path) -> Stat:
        return self._find(path).stat()

    def entries(self, path: Path) -> list[Stat]:
        return [node.stat() for node in self._directory(path).values()]

    def open(self, path: Path, mode: int) -> OpenFile:
        node = self._find(path)
        if node.children is not None:
            raise os_error(errno.EISDIR)
        if mode & OTRUNC:
            self.used_bytes -= len(node.data)
            node.data.clear()
            node.version += 1
        return _MemoryFile(self, node)

    def create(self, path: Path, permissions: int, mode: int) -> OpenFile:
        return _MemoryFile(self, self._add(path, permissions & 0o666))

    def mkdir(self, path: Path, permissions: int) -> None:
        self._add(path, permissions & 0o777 | DMDIR)

    def remove(self, path: Path) -> None:
        if not path:
            raise os_error(errno.EBUSY)
        node = self._find(path)
        if node.children:
            raise os_error(errno.ENOTEMPTY)
        del self._directory(path[:-1])[path[-1]]
        self.used_bytes -= len(node.data)
        node.removed = True

    def _find(self, path: Path) -> _Node:
        node = self._root
        for name in path:
            if node.children is None:
                raise os_error(errno.ENOTDIR)
            try:
                node = node.children[name]
            except KeyError:
                raise os_error(errno.ENOENT) from None
        return node

    def _directory(self, path: Path) -> dict[bytes, _Node]:
        children = self._find(path).children
        if children is None:
            raise os_error(errno.ENOTDIR)
        return children

    def _add(self, path: Path, mode: int) -> _Node:
        if not path:
            raise os_error(errno.EEXIST)
        name = path[-1]
        validate_name(name)
        directory = self._directory(path[:-1])
        if name in directory:
            raise os_error(errno.EEXIST)
        node = directory[name] = _Node(name, self._next_inode, mode)
        self._next_inode += 1
        return node


class _Node:
    __slots__ = ("children", "data", "inode", "mode", "name", "removed", "version")

    def __init__(self, name: bytes, inode: int, mode: int) -> None:
        self.name = name
        self.inode = inode
        self.mode = mode
        self.version = 0
        self.removed = False
        self.data = bytearray()
        self.children: dict[bytes, _Node] | None = {} if mode & DMDIR else None

    def stat(self) -> Stat:
        kind = QTDIR if self.children is not None else 0
        return Stat(self.name, Qid(kind, self.version, self.inode), self.mode, len(self.data))


class _MemoryFile(OpenFile):
    __slots__ = ("_node", "_tree")

    def __init__(self, tree: MemoryTree, node: _Node) -> None:
        self._tree = tree
        self._node = node

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self._node.data[offset : offset + count])

    def write(self, offset: int, data: Buffer) -> int:
        view = memoryview(data)
        if self._node.removed:
            raise os_error(errno.ESTALE)
        content = self._node.data
        room = self._tree.max_bytes - self._tree.used_bytes
        count = min(len(view), len(content) + room - offset)
        if not len(view):
            return 0
        if count <= 0:
            raise os_error(errno.ENOSPC)
        end = offset + count
        if end > len(content):
            self._tree.used_bytes += end - len(content)
            content.extend(bytes(end - len(content)))
        content[offset:end] = view[:count]
        self._node.version = (self._node.version + 1) & 0xFFFFFFFF
        return count

    def close(self) -> None:
        pass
