"""`xenstore-control live-update`, unchanged, against every server.

What the tool prints and how long it takes was seen with the C daemon of Xen 4.17.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conformance.conftest import tool_runner
from conformance.servers import Server

from xenlive.client.blocking import Transaction, Xenstore
from xenlive.client.codec import WatchEvent
from xenlive.client.requests import Permission
from xenlive.errors import XenstoreError

pytestmark = pytest.mark.peer

REFUSED = 3  # exit code of xenstore-control
EVENT_TIMEOUT_S = 10.0


def test_a_program_that_is_not_there(own_server: Server) -> None:
    answer = tool_runner(own_server)("control", "live-update", "/no/such/program")
    assert answer.returncode == REFUSED
    assert answer.stderr == "Setting update binary failed:\nFile not accessible.\n"


def test_a_program_that_is_not_executable(own_server: Server, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not a program")
    answer = tool_runner(own_server)("control", "live-update", str(plain))
    assert answer.returncode == REFUSED
    assert answer.stderr == "Setting update binary failed:\nFile not executable.\n"


def test_clients_and_nodes_survive(own_server: Server) -> None:
    with Xenstore.connect(own_server.socket_path, timeout_s=30.0) as store:
        store.write("/kept/a", b"\0\xff value")
        store.set_perms("/kept/a", [Permission(0, "r")])
        store.watch("/kept", "token")
        assert store.next_event(EVENT_TIMEOUT_S) == WatchEvent("/kept", "token")
        for round in range(2):
            answer = tool_runner(own_server)("control", "live-update", own_server.image)
            assert (answer.returncode, answer.stderr) == (0, "")
            assert store.read("/kept/a") == b"\0\xff value"
            assert store.get_perms("/kept/a") == [Permission(0, "r")]
            # The same connection, the same watch; the C daemon fires each once when it is back.
            store.write(f"/kept/{round}", "")
            seen = []
            while (event := store.next_event(EVENT_TIMEOUT_S)) is not None:
                seen.append(event)
                if event.path == f"/kept/{round}":
                    break
            assert WatchEvent(f"/kept/{round}", "token") in seen


def test_a_refused_update_can_be_followed_by_a_good_one(own_server: Server) -> None:
    control = tool_runner(own_server)
    assert control("control", "live-update", "/no/such/program").returncode == REFUSED
    assert control("control", "live-update", own_server.image).returncode == 0


@pytest.mark.slow
def test_an_open_transaction_stops_an_update_after_its_timeout(own_server: Server) -> None:
    control = tool_runner(own_server)
    with Xenstore.connect(own_server.socket_path, timeout_s=30.0) as store:
        with store.transaction() as tx:
            tx.write("/a", "1")
            began_s = time.monotonic()
            answer = control("control", "live-update", "-t", "3", own_server.image)
            took_s = time.monotonic() - began_s
            assert answer.returncode == REFUSED
            assert answer.stderr == (
                "Starting live update failed:\n"
                "Domains with long running transactions:\nDomain 0: 3 s\n"
            )
            assert took_s > 2.5
        # It was refused, so the transaction lives and is committed.
        assert store.read("/a") == b"1"


def test_force_goes_ahead_and_the_transaction_is_lost(own_server: Server) -> None:
    control = tool_runner(own_server)

    def change(tx: Transaction) -> None:
        tx.write("/lost", "1")
        answer = control("control", "live-update", "-F", "-t", "1", own_server.image)
        assert (answer.returncode, answer.stderr) == (0, "")

    with Xenstore.connect(own_server.socket_path, timeout_s=30.0) as store:
        with pytest.raises(XenstoreError) as caught:
            store.transact(change)
        assert caught.value.name == "ENOENT"
        assert not store.exists("/lost")


def test_others_are_served_while_a_transaction_is_waited_for(own_server: Server) -> None:
    with (
        Xenstore.connect(own_server.socket_path, timeout_s=30.0) as store,
        Xenstore.connect(own_server.socket_path, timeout_s=30.0) as issuer,
    ):
        store.mkdir("/b")
        with store.transaction() as tx:
            tx.mkdir("/a")
            # The tool's two steps; the second is answered later, so it is only sent here.
            assert issuer.control("live-update", "-f", own_server.image) == "OK"
            issuer.timeout_s = 0.2
            with pytest.raises(XenstoreError, match="ETIMEDOUT"):
                issuer.control("live-update", "-s", "-t", "60")
            store.write("/b", "served meanwhile")
            assert store.read("/b") == b"served meanwhile"
