"""What a guest sees of a directory: the machine's own numbers, versions and times."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path as FilePath

import pytest

from xenlive.machine.disktree import DiskTree
from xenlive.machine.emulated.backends.exporttree import ExportTree
from xenlive.ninep.messages import ORCLOSE, ORDWR, OREAD, OTRUNC, OWRITE
from xenlive.ninep.tree import MemoryTree

BORN_S = 1000
Path = tuple[bytes, ...]


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = BORN_S

    def __call__(self) -> int:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inner() -> MemoryTree:
    tree = MemoryTree()
    for name in (b"z", b"a", b"m"):
        tree.create((name,), 0o600, OWRITE).close()
    tree.mkdir((b"d",), 0o700)
    return tree


@pytest.fixture
def tree(inner: MemoryTree, clock: Clock) -> ExportTree:
    return ExportTree(inner, clock, BORN_S)


def key(tree: ExportTree, path: Path) -> tuple[int, int, int]:
    """Number, version, time."""
    stat = tree.stat(path)
    assert stat.atime == stat.mtime
    return stat.qid.path, stat.qid.version, stat.mtime


def test_files_are_numbered_as_they_are_seen(tree: ExportTree, clock: Clock) -> None:
    clock.now_s = 2000
    assert key(tree, (b"m",)) == (1, 0, BORN_S)
    assert [stat.name for stat in tree.entries(())] == [b"a", b"d", b"m", b"z"]
    assert [stat.qid.path for stat in tree.entries(())] == [2, 3, 1, 4]
    assert key(tree, ()) == (5, 0, BORN_S)


def test_what_the_guest_changed_has_a_new_version_and_its_time(
    tree: ExportTree, clock: Clock
) -> None:
    before = key(tree, (b"a",))
    clock.now_s = 2000
    file = tree.open((b"a",), ORDWR)
    assert file.read(0, 9) == b""
    assert key(tree, (b"a",)) == before
    assert file.write(0, b"") == 0
    assert key(tree, (b"a",)) == before
    file.write(0, b"x")
    file.close()
    assert key(tree, (b"a",)) == (before[0], 1, 2000)
    clock.now_s = 3000
    tree.open((b"a",), OWRITE | OTRUNC).close()
    assert key(tree, (b"a",)) == (before[0], 2, 3000)
    assert key(tree, (b"m",))[1:] == (0, BORN_S)


def test_a_directory_changes_with_its_entries(tree: ExportTree, clock: Clock) -> None:
    number = key(tree, (b"d",))[0]
    clock.now_s = 2000
    tree.create((b"d", b"f"), 0o600, OWRITE).close()
    assert key(tree, (b"d",)) == (number, 1, 2000)
    tree.mkdir((b"d", b"e"), 0o700)
    tree.remove((b"d", b"f"))
    assert key(tree, (b"d",)) == (number, 3, 2000)
    assert key(tree, (b"d", b"e"))[2] == 2000
    assert key(tree, ())[1] == 0


def test_a_file_made_again_is_another(tree: ExportTree) -> None:
    old = key(tree, (b"a",))
    tree.remove((b"a",))
    tree.create((b"a",), 0o600, OWRITE).close()
    assert key(tree, (b"a",))[0] != old[0]


def test_a_directory_has_no_length(tree: ExportTree) -> None:
    assert tree.stat((b"d",)).length == 0


def test_what_is_refused_changes_nothing(tree: ExportTree) -> None:
    before = key(tree, ())
    for call in (
        lambda: tree.remove((b"none",)),
        lambda: tree.create((b"a",), 0o600, OWRITE),
        lambda: tree.mkdir((b"a",), 0o700),
    ):
        with pytest.raises(OSError, match=r"exists|No such"):
            call()
    assert key(tree, ()) == before


@pytest.mark.parametrize(
    "call",
    [
        lambda tree: tree.open((b"a",), OWRITE),
        lambda tree: tree.open((b"a",), ORDWR),
        lambda tree: tree.open((b"a",), OREAD | OTRUNC),
        lambda tree: tree.open((b"a",), OREAD | ORCLOSE),
        lambda tree: tree.create((b"n",), 0o600, OREAD),
        lambda tree: tree.mkdir((b"n",), 0o700),
        lambda tree: tree.remove((b"a",)),
    ],
)
def test_to_read_only(
    inner: MemoryTree, clock: Clock, call: Callable[[ExportTree], object]
) -> None:
    tree = ExportTree(inner, clock, BORN_S, is_read_only=True)
    with pytest.raises(OSError, match="Read-only") as refused:
        call(tree)
    assert refused.value.errno == errno.EROFS
    assert [stat.name for stat in tree.entries(())] == [b"a", b"d", b"m", b"z"]
    tree.open((b"a",), OREAD).close()


def test_to_read_only_a_file_that_is_not_there_is_not_there(
    inner: MemoryTree, clock: Clock
) -> None:
    tree = ExportTree(inner, clock, BORN_S, is_read_only=True)
    with pytest.raises(FileNotFoundError):
        tree.open((b"none",), OWRITE)


def test_a_removed_file_that_is_written_to_is_not_its_successor(
    tmp_path: FilePath, clock: Clock
) -> None:
    (tmp_path / "a").touch()
    disk = DiskTree(str(tmp_path))
    tree = ExportTree(disk, clock, BORN_S)
    held = tree.open((b"a",), OWRITE)
    tree.remove((b"a",))
    known = len(tree._seen)
    assert held.write(0, b"1") == 1
    assert len(tree._seen) == known
    tree.create((b"a",), 0o600, OWRITE).close()
    before = tree.stat((b"a",))
    clock.now_s += 5
    assert held.write(0, b"2") == 1
    assert tree.stat((b"a",)) == before
    held.close()
    disk.close()
