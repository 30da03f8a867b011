"""The private Xenstore and its fake guests: what a test can count on, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import XS_READ, XSD_SOCKMSG
from xenlive.client import Permission, Xenstore, tree, treefile
from xenlive.errors import ConfigError, PeerError, XenstoreError
from xenlive.testing import PrivateXenstore
from xenlive.testing import process as testing_process

PATIENCE_S = 60.0
U32 = 0xFFFFFFFF


@pytest.fixture
def store() -> Iterator[PrivateXenstore]:
    """A fresh one."""
    with PrivateXenstore() as started:
        yield started


def wait_until(true: Callable[[], object], what: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until_s, what
        time.sleep(0.005)


def test_each_is_fresh_and_gone_afterwards(store: PrivateXenstore) -> None:
    store.client.write("/a", "1")
    with PrivateXenstore(seed={"/b": b"\xff"}) as other:
        assert not other.client.exists("/a")
        assert other.client.read("/b") == b"\xff"
        other.client.control("print", "a word")
        rundir, client = other.rundir, other.client
        assert rundir.stat().st_mode & 0o077 == 0
    assert not rundir.exists()
    assert client.fileno() == -1
    assert other.log().endswith("a word\n")
    with pytest.raises(RuntimeError, match="not running"):
        _ = other.socket_path
    other.stop()
    other.start()
    assert other.client.read("/b") == b"\xff"
    with pytest.raises(RuntimeError, match="already"):
        other.start()
    other.stop()
    assert store.client.read("/a") == b"1"


def test_what_it_starts_with(tmp_path: Path, store: PrivateXenstore) -> None:
    store.client.write("/a/b", b"\0\xff")
    store.client.set_perms("/a", [Permission(0, "r")])
    nodes = store.client.carry_out(tree.collect("/a"))
    with PrivateXenstore(seed=nodes) as other:
        assert other.client.carry_out(tree.collect("/a")) == nodes
    (tmp_path / "dump").write_text("\n".join(treefile.lines("/a", nodes)))
    with PrivateXenstore(seed=tmp_path / "dump") as other:
        assert other.client.carry_out(tree.collect("/a")) == nodes
    with pytest.raises(XenstoreError, match="EINVAL"), PrivateXenstore(seed={"/a b": ""}):
        pass
    (tmp_path / "dump").write_text("{")
    with pytest.raises(ConfigError, match="dump"), PrivateXenstore(seed=tmp_path / "dump"):
        pass


def test_quotas_hold_for_guests() -> None:
    with PrivateXenstore(quotas={"nodes": 12, "watches": 1}) as store:
        assert store.client.get_quota("nodes") == 12
        guest = store.new_guest()
        batch = [tree.Node(f"data/{number}", b"", None) for number in range(12)]
        with pytest.raises(XenstoreError, match="ENOSPC"):
            guest.store.carry_out(tree.make(batch))
        guest.store.watch("data", "1")
        with pytest.raises(XenstoreError, match=r"ENOSPC|E2BIG"):
            guest.store.watch("data", "2")
        for number in range(40):
            store.client.write(f"/a/{number}", "")
    with pytest.raises(XenstoreError, match="EINVAL"), PrivateXenstore(quotas={"no-such": 1}):
        pass


def test_a_guest_has_a_guests_rights(store: PrivateXenstore) -> None:
    guest = store.new_guest()
    assert (guest.domid, guest.home) == (1, "/local/domain/1")
    assert store.client.is_domain_introduced(1)
    assert guest.store.read_text("domid") == "1"
    guest.store.write("data/a", "x" * 2000)
    assert store.client.read("/local/domain/1/data/a") == b"x" * 2000
    assert guest.store.get_perms("data/a") == [Permission(1, "n")]
    for refused in (
        lambda: guest.store.write("name", "another"),
        lambda: guest.store.introduce(2, 1, 1),
        lambda: guest.store.read("/tool"),
    ):
        with pytest.raises(XenstoreError, match="EACCES"):
            refused()
    with pytest.raises(XenstoreError, match="EINVAL"):
        store.client.introduce(77, 1, 1)  # no such domain


def test_many_requests_of_a_guest_at_once(store: PrivateXenstore) -> None:
    guest = store.new_guest()
    guest.store.write("data/a", "y" * 2000)
    nodes = [tree.Node(f"data/n{number}", b"z" * 1500, None) for number in range(60)]
    guest.store.carry_out(tree.make(nodes))  # rings of 1024 bytes, full both ways
    found = [node for node in guest.store.walk("data") if node.name.startswith("n")]
    assert [node.value for node in found] == [b"z" * 1500] * 60
    with guest.store.transaction() as tx:
        assert len([*tx.walk("data")]) == 61


def test_guests_see_each_others_changes_as_events(store: PrivateXenstore) -> None:
    first, second = store.new_guest(), store.new_guest()
    assert (first.domid, second.domid) == (1, 2)
    first.store.write("data/shared", "1")
    first.store.set_perms("data/shared", [Permission(1, "n"), Permission(2, "r")])
    with second.store.watching(f"{first.home}/data/shared") as events:
        assert events.next(PATIENCE_S) is not None
        first.store.write("data/shared", "2")
        assert events.next(PATIENCE_S) is not None
    assert second.store.wait_for(f"{first.home}/data/shared", "2", PATIENCE_S) == b"2"


def test_shutting_down_and_ending_are_noticed(store: PrivateXenstore) -> None:
    guest = store.new_guest()
    with store.client.watching("@releaseDomain") as events:
        assert events.next(PATIENCE_S) is not None
        guest.shut_down()
        assert events.next(PATIENCE_S) is not None
        assert store.client.is_domain_introduced(guest.domid)
        store.client.resume(guest.domid)
        guest.close()
        assert events.next(PATIENCE_S) is not None
    assert not store.client.is_domain_introduced(guest.domid)
    with pytest.raises(PeerError, match="closed"):
        guest.store.read("data")


def test_a_guest_is_connected_when_it_is_introduced(store: PrivateXenstore) -> None:
    guest = store.new_guest(introduce=False)
    with pytest.raises(RuntimeError, match="not introduced"):
        _ = guest.store
    assert not store.client.exists(guest.home)
    guest.introduce(nodes=False)
    assert not store.client.exists(guest.home)
    with pytest.raises(XenstoreError, match=r"EACCES|ENOENT"):
        guest.store.read("name")


def test_a_connection_that_starts_over(store: PrivateXenstore) -> None:
    guest = store.new_guest()
    guest.store.watch("data", "t")
    guest.notify()
    guest.reconnect()
    assert guest.words[xs_ring.CONNECTION] == xs_ring.XENSTORE_CONNECTED
    guest.store.write("data/a", "1")
    assert guest.store.next_event(0.0) is None
    guest.store.watch("data", "t")


def test_a_page_of_ones_own_making(store: PrivateXenstore) -> None:
    guest = store.new_guest()
    request = XSD_SOCKMSG.pack(XS_READ, 5, 0, 7) + b"domid\0\0"
    guest.page[: len(request)] = request
    guest.words[xs_ring.REQ_PROD] = len(request)
    guest.notify()
    assert guest.wait(PATIENCE_S)
    wait_until(lambda: guest.words[xs_ring.RSP_PROD] >= 16, "an answer")
    kind, number, _, _ = XSD_SOCKMSG.unpack(bytes(guest.page[1024:1040]))
    assert (kind, number) == (16, 5)  # two strings are one too many
    while guest.wait(0.0):
        pass
    assert not guest.wait(0.0)


def test_a_wild_guest_hurts_itself_only(store: PrivateXenstore) -> None:
    wild, good = store.new_guest(), store.new_guest()
    wild.words[xs_ring.REQ_PROD] = 0x12345678
    wild.notify()
    wait_until(lambda: wild.words[xs_ring.ERROR], "an error")
    assert wild.words[xs_ring.ERROR] == xs_ring.XENSTORE_ERROR_RINGIDX
    with pytest.raises(PeerError, match=r"ignores this ring at offset 2072.*error 2"):
        wild.store.read("data")
    assert good.store.read_text("domid") == "2"


@pytest.mark.parametrize("word", [xs_ring.REQ_CONS, xs_ring.RSP_PROD])
def test_a_server_with_wild_indices(store: PrivateXenstore, word: int) -> None:
    guest = store.new_guest()
    guest.store.read("domid")
    guest.words[word] = guest.words[word] + 5000 & U32
    with pytest.raises(PeerError, match=r"out of range|ignores this ring"):
        guest.store.read("domid")
    assert guest.store.fileno() == -1


def test_a_guest_is_not_waited_for_for_ever(store: PrivateXenstore) -> None:
    guest = store.new_guest()
    assert guest.store.next_event(0.01) is None
    guest.words[xs_ring.REQ_PROD] = guest.words[xs_ring.REQ_CONS]
    store.client.release(guest.domid)
    guest.store.timeout_s = 0.01
    with pytest.raises(XenstoreError, match="ETIMEDOUT"):
        guest.store.read("domid")


def test_guest_code_in_another_process(store: PrivateXenstore) -> None:
    guest = store.new_guest()
    code = (
        "import mmap, sys; from xenlive.client import Xenstore; "
        "from xenlive.client.ring import RingTransport; "
        "memory, hears, rings = map(int, sys.argv[1:]); "
        "page = memoryview(mmap.mmap(memory, 4096)); "
        "Xenstore(RingTransport(page, hears, rings)).write('data/from', 'another process')"
    )
    fds = (guest.memory_fd, guest.hears_fd, guest.rings_fd)
    command = [sys.executable, "-c", code, *map(str, fds)]
    subprocess.run(command, pass_fds=fds, check=True, timeout=PATIENCE_S)
    assert store.client.read(f"{guest.home}/data/from") == b"another process"


def test_a_nursery_that_ended_is_replaced() -> None:
    with PrivateXenstore():
        pass
    nursery = testing_process._NURSERY._process
    assert nursery is not None
    nursery.send_signal(signal.SIGKILL)
    nursery.wait()
    with PrivateXenstore(seed={"/a": "1"}) as store:
        assert store.client.read("/a") == b"1"
    assert testing_process._NURSERY._process is not nursery


def test_servers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import os; from xenlive.testing import PrivateXenstore; "
        "store = PrivateXenstore(); store.start(); store.new_guest(); "
        "print(store.socket_path, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr

    def nobody_is_there() -> bool:
        try:
            Xenstore.connect(ended.stdout.strip()).close()
        except ConfigError:
            return True
        return False

    wait_until(nobody_is_there, "the server goes on")


def test_a_directory_that_is_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with PrivateXenstore() as store:
        assert not store.rundir.is_relative_to(deep)
        store.new_guest()
    assert [*deep.iterdir()] == []


def test_a_server_that_can_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"

    def made() -> Path:
        gone.mkdir()
        (gone / "socket").mkdir()
        return gone

    monkeypatch.setattr(testing_process, "_new_rundir", made)
    with pytest.raises(ConfigError, match="no Xenstore could be started: Address already in use"):
        PrivateXenstore().start()
    assert not gone.exists()
