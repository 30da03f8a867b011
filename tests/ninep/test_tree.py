"""Exported trees: one suite for both, in memory and on disk, and the traps only a disk has."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from xenlive.machine.disktree import DiskTree
from xenlive.ninep.messages import DMDIR, ORDWR, OREAD, OTRUNC, OWRITE
from xenlive.ninep.tree import MemoryTree, Tree, validate_name

MAX_BYTES = 10000


@pytest.fixture(params=["memory", "disk"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tree]:
    if request.param == "memory":
        yield MemoryTree(MAX_BYTES)
        return
    disk = DiskTree(str(tmp_path), MAX_BYTES)
    yield disk
    disk.close()


@contextmanager
def refused(*numbers: int) -> Iterator[None]:
    """The block must fail with an OSError of one of these numbers."""
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        yield
    assert caught.value.errno in numbers


#: What following a symbolic link may be refused with, by who notices.
LINK = (errno.ELOOP, errno.EMLINK, errno.ENOTDIR)


def put(tree: Tree, path: tuple[bytes, ...], data: bytes) -> None:
    file = tree.create(path, 0o600, OWRITE)
    assert file.write(0, data) == len(data)
    file.close()


def get(tree: Tree, path: tuple[bytes, ...]) -> bytes:
    file = tree.open(path, OREAD)
    data = file.read(0, 1 << 20)
    file.close()
    return data


def test_the_root_is_a_directory(tree: Tree) -> None:
    assert tree.stat(()).is_dir
    assert tree.entries(()) == []
    with refused(errno.EISDIR):
        tree.open((), OREAD)
    with refused(errno.EEXIST):
        tree.create((), 0o600, OWRITE)
    with refused(errno.EEXIST):
        tree.mkdir((), 0o700)
    with refused(errno.EBUSY):
        tree.remove(())


def test_a_file_is_created_read_and_removed(tree: Tree) -> None:
    put(tree, (b"state",), b"hello")
    stat = tree.stat((b"state",))
    assert (stat.name, stat.length, stat.is_dir) == (b"state", 5, False)
    assert stat.mode & 0o777 == 0o600
    assert get(tree, (b"state",)) == b"hello"
    assert [entry.name for entry in tree.entries(())] == [b"state"]
    with refused(errno.EEXIST):
        tree.create((b"state",), 0o600, OWRITE)
    tree.remove((b"state",))
    with refused(errno.ENOENT):
        tree.stat((b"state",))
    with refused(errno.ENOENT):
        tree.remove((b"state",))


def test_writes_at_offsets(tree: Tree) -> None:
    file = tree.create((b"f",), 0o600, ORDWR)
    assert file.write(4, b"abc") == 3
    assert file.write(0, memoryview(b"xy")) == 2
    assert file.write(2000, b"") == 0
    assert file.read(0, 100) == b"xy\0\0abc"
    assert file.read(5, 1) == b"b"
    assert file.read(7, 10) == b""
    file.close()
    assert tree.stat((b"f",)).length == 7


def test_truncating_gives_room_back(tree: Tree) -> None:
    put(tree, (b"f",), bytes(MAX_BYTES))
    other = tree.create((b"g",), 0o600, OWRITE)
    with refused(errno.ENOSPC):
        other.write(0, b"x")
    tree.open((b"f",), OWRITE | OTRUNC).close()
    assert other.write(0, b"x") == 1
    other.close()
    assert tree.stat((b"f",)).length == 0


def test_space_ends(tree: Tree) -> None:
    file = tree.create((b"f",), 0o600, OWRITE)
    assert file.write(0, bytes(MAX_BYTES - 10)) == MAX_BYTES - 10
    assert file.write(MAX_BYTES - 10, bytes(100)) == 10
    with refused(errno.ENOSPC):
        file.write(MAX_BYTES, b"x")
    with refused(errno.ENOSPC):
        file.write(1 << 50, b"x")
    assert file.write(0, b"over") == 4
    file.close()
    assert tree.stat((b"f",)).length == MAX_BYTES
    tree.remove((b"f",))
    put(tree, (b"g",), bytes(MAX_BYTES))


def test_directories(tree: Tree) -> None:
    tree.mkdir((b"d",), 0o700)
    assert tree.stat((b"d",)).mode & DMDIR
    put(tree, (b"d", b"f"), b"1")
    assert [entry.name for entry in tree.entries((b"d",))] == [b"f"]
    with refused(errno.EEXIST):
        tree.mkdir((b"d",), 0o700)
    with refused(errno.ENOTEMPTY):
        tree.remove((b"d",))
    with refused(errno.EISDIR):
        tree.open((b"d",), OREAD)
    with refused(errno.ENOTDIR):
        tree.entries((b"d", b"f"))
    with refused(errno.ENOTDIR):
        tree.stat((b"d", b"f", b"g"))
    with refused(errno.ENOENT):
        tree.create((b"no", b"f"), 0o600, OWRITE)
    tree.remove((b"d", b"f"))
    tree.remove((b"d",))
    assert tree.entries(()) == []


NO_NAMES = [b"", b".", b"..", b"a/b", b"/", b"/etc", b"a\0b", b"\0"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_are_none(tree: Tree, name: bytes) -> None:
    with refused(errno.ENOENT):
        validate_name(name)
    with refused(errno.ENOENT):
        tree.create((name,), 0o600, OWRITE)
    with refused(errno.ENOENT):
        tree.mkdir((name,), 0o700)
    with refused(errno.ENOENT):
        tree.stat((name,))
    with refused(errno.ENOENT):
        tree.open((name,), OREAD)
    with refused(errno.ENOENT):
        tree.remove((name,))
    with refused(errno.ENOENT):
        tree.entries((name,))


def test_a_name_that_is_too_long(tree: Tree) -> None:
    with refused(errno.ENAMETOOLONG):
        tree.create((b"a" * 256,), 0o600, OWRITE)
    put(tree, (b"a" * 255,), b"")


# -- what only a disk has ------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> tuple[DiskTree, Path]:
    """A tree whose directory has symbolic links out of it, and the directory they lead to."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    export = tmp_path / "export"
    export.mkdir()
    (export / "link").symlink_to(secret)
    (export / "filelink").symlink_to(secret / "file")
    (export / "dangling").symlink_to(secret / "new")
    return DiskTree(str(export)), secret


def test_symbolic_links_lead_nowhere(outside: tuple[DiskTree, Path]) -> None:
    tree, secret = outside
    for path in ((b"filelink",), (b"link",)):
        with refused(*LINK):
            tree.stat(path)
        with refused(*LINK):
            tree.open(path, OREAD)
        with refused(*LINK):
            tree.open(path, OWRITE | OTRUNC)
        with refused(*LINK):
            tree.entries(path)
    with refused(*LINK):
        tree.open((b"link", b"file"), OREAD)
    with refused(*LINK):
        tree.stat((b"link", b"file"))
    with refused(*LINK):
        tree.remove((b"link", b"file"))
    with refused(*LINK):
        tree.create((b"link", b"new"), 0o600, OWRITE)
    with refused(errno.EEXIST):
        tree.create((b"dangling",), 0o600, OWRITE)
    with refused(*LINK):
        tree.mkdir((b"link", b"new"), 0o700)
    assert tree.entries(()) == []
    assert [entry.name for entry in secret.iterdir()] == ["file"]
    assert (secret / "file").read_bytes() == b"secret"
    tree.close()


def test_removing_a_link_removes_the_link(outside: tuple[DiskTree, Path]) -> None:
    tree, secret = outside
    tree.remove((b"filelink",))
    assert (secret / "file").exists()
    tree.close()


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    tree = DiskTree(str(tmp_path))
    for mode in (OREAD, ORDWR):
        with refused(errno.EPERM):
            tree.open((b"pipe",), mode)
    tree.close()


def test_what_was_there_counts(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_bytes(bytes(90))
    tree = DiskTree(str(tmp_path), max_bytes=100, max_files=4)
    assert (tree.used_bytes, tree.used_files) == (90, 2)
    file = tree.create((b"f",), 0o600, OWRITE)
    assert file.write(0, bytes(50)) == 10
    (tmp_path / "d" / "old").unlink()  # somebody makes room behind the tree's back
    assert file.write(10, bytes(50)) == 50
    file.close()
    tree.close()


def test_the_sums_are_kept(tmp_path: Path) -> None:
    tree = DiskTree(str(tmp_path))
    put(tree, (b"a",), bytes(100))
    put(tree, (b"b",), bytes(30))
    file = tree.open((b"a",), OWRITE)
    file.write(50, bytes(60))
    file.close()
    assert (tree.used_bytes, tree.used_files) == (140, 2)
    tree.open((b"a",), OWRITE | OTRUNC).close()
    assert tree.used_bytes == 30
    tree.remove((b"b",))
    assert (tree.used_bytes, tree.used_files) == (0, 1)
    tree.close()


def test_the_number_of_files_is_limited(tmp_path: Path) -> None:
    tree = DiskTree(str(tmp_path), max_files=2)
    put(tree, (b"a",), b"")
    tree.mkdir((b"b",), 0o700)
    with refused(errno.ENOSPC):
        tree.create((b"c",), 0o600, OWRITE)
    with refused(errno.ENOSPC):
        tree.mkdir((b"c",), 0o700)
    tree.remove((b"b",))
    put(tree, (b"c",), b"")
    tree.close()


def test_a_removed_file_counts_as_long_as_it_is_open(tmp_path: Path) -> None:
    disk = DiskTree(str(tmp_path), max_bytes=1000)
    file, other = disk.create((b"gone",), 0o600, OWRITE), disk.open((b"gone",), OWRITE)
    assert file.write(0, bytes(900)) == 900
    disk.remove((b"gone",))
    assert disk.used_bytes == 900
    assert file.write(900, bytes(900)) == 100
    with refused(errno.ENOSPC):
        other.write(1000, b"1")
    with refused(errno.ENOSPC):
        put(disk, (b"new",), b"1")
    file.close()
    assert disk.used_bytes == 1000
    other.close()
    assert disk.used_bytes == 0
    put(disk, (b"next",), bytes(1000))
    disk.close()


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    tree = DiskTree(str(tmp_path), max_files=3)
    put(tree, (b"a",), b"1")
    for path in ((b"a", b"b"), (b"no", b"b"), (b"..",), (b"a", b"..")):
        for call in (tree.stat, tree.entries, tree.remove):
            with refused(errno.ENOENT, errno.ENOTDIR):
                call(path)
        with refused(errno.ENOENT, errno.ENOTDIR):
            tree.open(path, OREAD)
    tree.entries(())
    tree.stat((b"a",))
    tree.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_an_export_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        DiskTree(str(tmp_path / "f"))
