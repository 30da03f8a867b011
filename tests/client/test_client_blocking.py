"""The blocking client against a server that follows a script, and against none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from xenlive.abi import xs_wire
from xenlive.client.blocking import Transaction, Xenstore
from xenlive.client.codec import WatchEvent
from xenlive.errors import ConfigError, PeerError, XenstoreError
from xenlive.rundir import default_rundir, default_socket

Handler = Callable[[int, int, bytes], list[tuple[int, bytes]]]
EVENT = (xs_wire.XS_WATCH_EVENT, b"/w\0t\0")


@contextmanager
def served(handler: Handler, *, timeout_s: float | None = None) -> Iterator[Xenstore]:
    """A client whose requests (type, transaction, payload) `handler` answers, in a thread."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        # The client may leave before it heard all.
        with suppress(BrokenPipeError), theirs, theirs.makefile("rb") as stream:
            while len(header := stream.read(16)) == 16:
                type, request_id, transaction, length = xs_wire.XSD_SOCKMSG.unpack(header)
                for kind, payload in handler(type, transaction, stream.read(length)):
                    number = 0 if kind == xs_wire.XS_WATCH_EVENT else request_id
                    tx = 0 if kind == xs_wire.XS_WATCH_EVENT else transaction
                    head = xs_wire.XSD_SOCKMSG.pack(kind, number, tx, len(payload))
                    theirs.sendall(head + payload)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        with Xenstore(ours, timeout_s=timeout_s) as store:
            yield store
    finally:
        ours.close()
        thread.join(30)


def test_events_between_answers_are_kept_in_order() -> None:
    def handler(type: int, transaction: int, payload: bytes) -> list[tuple[int, bytes]]:
        return [EVENT, (type, b"OK\0"), (xs_wire.XS_WATCH_EVENT, b"/w/late\0t\0")]

    with served(handler) as store:
        store.write("/a", "1")
        assert store.next_event() == WatchEvent("/w", "t")
        assert store.next_event() == WatchEvent("/w/late", "t")
        assert store.next_event(timeout_s=0.0) is None


def test_no_answer_in_time_closes_the_connection() -> None:
    with served(lambda *_: [], timeout_s=0.02) as store:
        with pytest.raises(XenstoreError) as caught:
            store.read("/a")
        assert caught.value.name == "ETIMEDOUT"
        assert store.fileno() == -1


def test_an_answer_to_nothing_closes_the_connection() -> None:
    with served(lambda *_: [(xs_wire.XS_RM, b"OK\0")]) as store:
        with pytest.raises(PeerError):
            store.read("/a")
        assert store.fileno() == -1


def test_a_server_that_goes_away() -> None:
    ours, theirs = socket.socketpair()
    with Xenstore(ours) as store:
        theirs.close()
        with pytest.raises(PeerError, match=r"broke|closed"):
            store.read("/a")
        with pytest.raises(PeerError, match="broke"):
            store.read("/a")


def test_a_server_that_goes_away_while_waiting_for_events() -> None:
    ours, theirs = socket.socketpair()
    with Xenstore(ours) as store:
        theirs.close()
        with pytest.raises(PeerError, match="closed"):
            store.next_event()


def test_a_long_directory_is_read_in_parts() -> None:
    def handler(type: int, transaction: int, payload: bytes) -> list[tuple[int, bytes]]:
        if type == xs_wire.XS_DIRECTORY:
            return [(xs_wire.XS_ERROR, b"E2BIG\0")]
        return [(type, b"9\0b\0" if payload == b"/a\0" + b"0\0" else b"9\0c\0\0")]

    with served(handler) as store:
        assert store.directory("/a") == ["b", "c"]


def test_other_errors_of_a_directory_are_not_hidden() -> None:
    with (
        served(lambda *_: [(xs_wire.XS_ERROR, b"EACCES\0")]) as store,
        pytest.raises(XenstoreError, match="EACCES"),
    ):
        store.directory("/a")


class Ledger:
    """A server's transactions: what was asked in which, and how many commits conflict."""

    def __init__(self, conflicts: int) -> None:
        self.conflicts = conflicts
        self.started = 0
        self.writes: list[int] = []
        self.ended: list[bytes] = []

    def __call__(self, type: int, transaction: int, payload: bytes) -> list[tuple[int, bytes]]:
        if type == xs_wire.XS_TRANSACTION_START:
            self.started += 1
            return [(type, b"%d\0" % self.started)]
        if type == xs_wire.XS_TRANSACTION_END:
            self.ended.append(payload)
            if payload == b"T\0" and self.conflicts:
                self.conflicts -= 1
                return [(xs_wire.XS_ERROR, b"EAGAIN\0")]
            return [(type, b"OK\0")]
        self.writes.append(transaction)
        return [(type, b"OK\0")]


def test_a_conflict_is_tried_again() -> None:
    ledger = Ledger(conflicts=2)
    with served(ledger) as store:
        for attempt in store.transactions():
            with attempt as tx:
                tx.write("/a", "1")
    assert ledger.writes == [1, 2, 3]
    assert ledger.ended == [b"T\0"] * 3


def test_conflicts_without_end_are_an_error() -> None:
    ledger = Ledger(conflicts=100)
    with served(ledger) as store, pytest.raises(XenstoreError) as caught:
        store.transact(lambda tx: tx.write("/a", "1"), attempts=3)
    assert caught.value.name == "EAGAIN"
    assert ledger.started == 3


def test_transact_gives_what_the_change_returns() -> None:
    with served(Ledger(conflicts=1)) as store:
        assert store.transact(lambda tx: tx.read("/a")) == b"OK\0"


def test_a_single_transaction_does_not_repeat() -> None:
    with (
        served(Ledger(conflicts=1)) as store,
        pytest.raises(XenstoreError, match="EAGAIN"),
        store.transaction() as tx,
    ):
        tx.write("/a", "1")


def test_an_error_inside_aborts_and_is_not_repeated() -> None:
    ledger = Ledger(conflicts=0)

    def change(tx: Transaction) -> None:
        tx.write("/a", str(1 // 0))

    with served(ledger) as store, pytest.raises(ZeroDivisionError):
        store.transact(change)
    assert ledger.ended == [b"F\0"]
    assert ledger.started == 1


def test_a_transaction_without_its_with_is_a_bug() -> None:
    with served(Ledger(conflicts=0)) as store:
        tx = store.transaction()
        with pytest.raises(RuntimeError, match="with"):
            tx.read("/a")
        with tx:
            tx.write("/a", "1")
        with pytest.raises(RuntimeError, match="with"):
            tx.read("/a")


def test_exists_tells_missing_from_broken() -> None:
    answers = iter([b"ENOENT\0", b"EACCES\0", b"EINVAL\0"])
    with served(lambda *_: [(xs_wire.XS_ERROR, next(answers))]) as store:
        assert not store.exists("/a")
        assert not store.exists("/a")
        with pytest.raises(XenstoreError, match="EINVAL"):
            store.exists("/a")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Xenstore.connect(tmp_path / "socket")
    with pytest.raises(ConfigError, match="too long"):
        Xenstore.connect(tmp_path / ("x" * 200))


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with Xenstore.connect(path):
            with pytest.raises(ConfigError, match="unavailable"):
                Xenstore.connect(path, connect_timeout_s=0.01)
            accepting = threading.Timer(0.02, lambda: listener.accept()[0].close())
            accepting.daemon = True
            accepting.start()
            Xenstore.connect(path).close()
            accepting.join(30)


@pytest.mark.parametrize(
    ("environment", "socket_path"),
    [
        ({"XENSTORED_PATH": "/p", "XENSTORED_RUNDIR": "/r"}, "/p"),
        ({"XENSTORED_RUNDIR": "/r", "XENLIVE_RUNDIR": "/x"}, "/r/socket"),
        ({"XENLIVE_RUNDIR": "/x", "XDG_RUNTIME_DIR": "/u"}, "/x/socket"),
        ({"XDG_RUNTIME_DIR": "/u"}, "/u/xenlive/socket"),
    ],
)
def test_where_the_socket_is(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], socket_path: str
) -> None:
    for name in ("XENSTORED_PATH", "XENSTORED_RUNDIR", "XENLIVE_RUNDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_socket() == Path(socket_path)


def test_the_last_resort_is_a_directory_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XENLIVE_RUNDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert str(default_rundir()).startswith("/tmp/xenlive-")
