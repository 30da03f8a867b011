"""Debian's libxenstore against every server: all of its functions that a socket can serve."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest
from conformance.libxs import READ, WRITE, LibXenstore
from conformance.servers import Server

pytestmark = pytest.mark.peer


@pytest.fixture
def xs(server: Server) -> Iterator[LibXenstore]:
    handle = LibXenstore(server.socket_path)
    yield handle
    handle.close()


@pytest.fixture
def spot(place: str) -> bytes:
    """The test's own place in the store."""
    return place.encode()


def test_values(xs: LibXenstore, spot: bytes) -> None:
    xs.write(spot + b"/a", b"with\0nul")
    assert xs.read(spot + b"/a") == b"with\0nul"
    assert xs.read(spot) == b""
    xs.mkdir(spot + b"/b")
    assert xs.directory(spot) == [b"a", b"b"]
    assert xs.directory(spot + b"/b") == []
    xs.rm(spot + b"/a")
    for missing in (b"/a", b"/none/below"):
        with pytest.raises(FileNotFoundError):
            xs.read(spot + missing)
    with pytest.raises(OSError, match="Invalid argument"):
        xs.write(b"/no//path", b"")


def test_a_directory_in_parts(xs: LibXenstore, spot: bytes) -> None:
    names = [b"a-name-that-takes-its-room-%04d" % number for number in range(300)]
    tx = xs.transaction_start()
    for name in names:
        xs.write(spot + b"/" + name, b"", tx)
    xs.transaction_end(tx)
    assert xs.directory(spot) == names


def test_permissions(xs: LibXenstore, spot: bytes) -> None:
    xs.write(spot, b"")
    xs.set_permissions(spot, [(0, 0), (1, READ), (2, READ | WRITE), (3, WRITE)])
    assert xs.get_permissions(spot) == [(0, 0), (1, READ), (2, READ | WRITE), (3, WRITE)]
    with pytest.raises(FileNotFoundError):
        xs.set_permissions(spot, [(77, 0)])


def test_transactions(server: Server, xs: LibXenstore, spot: bytes) -> None:
    xs.write(spot, b"1")
    tx = xs.transaction_start()
    xs.write(spot, b"2", tx)
    assert (xs.read(spot), xs.read(spot, tx)) == (b"1", b"2")
    xs.transaction_end(tx, abort=True)
    assert xs.read(spot) == b"1"

    other = LibXenstore(server.socket_path)
    tx = xs.transaction_start()
    assert xs.read(spot, tx) == b"1"
    other.write(spot, b"3")
    xs.write(spot, b"2", tx)
    with pytest.raises(BlockingIOError):  # EAGAIN
        xs.transaction_end(tx)
    assert xs.read(spot) == b"3"
    with pytest.raises(FileNotFoundError):
        xs.read(spot, tx)
    other.close()


def test_watches(xs: LibXenstore, spot: bytes) -> None:
    xs.watch(spot, b"token")
    assert xs.read_watch() == [spot, b"token"]
    with pytest.raises(FileExistsError):
        xs.watch(spot, b"token")
    xs.write(spot + b"/a/b", b"")
    assert xs.read_watch() == [spot + b"/a/b", b"token"]
    xs.rm(spot + b"/a")
    assert xs.read_watch() == [spot + b"/a", b"token"]
    with pytest.raises(BlockingIOError):  # EAGAIN: there is none
        xs.check_watch()
    xs.write(spot, b"")
    assert select.select([xs.fileno()], [], [], 20)[0]
    assert xs.check_watch()
    xs.unwatch(spot, b"token")
    with pytest.raises(FileNotFoundError):
        xs.unwatch(spot, b"token")


def test_domains(xs: LibXenstore) -> None:
    assert xs.domain_path(7) == b"/local/domain/7"
    assert xs.is_introduced(0)
    assert not xs.is_introduced(7)
    for refused in (xs.release, xs.resume):
        with pytest.raises(FileNotFoundError):
            refused(7)
    with pytest.raises(FileNotFoundError):
        xs.set_target(7, 0)
    with pytest.raises(OSError, match="Invalid argument"):
        xs.introduce(7, 1, 1)
    with pytest.raises(OSError, match="Invalid argument"):
        xs.release(0)


def test_control(xs: LibXenstore) -> None:
    assert b"live-update" in xs.control(b"help")
    assert xs.control(b"check") == b"OK"
    with pytest.raises(OSError, match="Invalid argument"):
        xs.control(b"no-such-command")
