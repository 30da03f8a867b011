"""A domain beside a hosted Xenstore when something ends: the domain, the host, a kernel."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.servers import XenliveServer
from machine.fake_guest import PATIENCE_S, FakeGuest, connect, introduce, wait_until
from machine.hosts import make_image, status, update
from xenstore.talk import HEADER

from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import (
    XS_DIRECTORY,
    XS_READ,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.client.blocking import Xenstore
from xenlive.client.codec import WatchEvent
from xenlive.client.requests import Permission


@pytest.fixture
def own(tmp_path: Path) -> Iterator[XenliveServer]:
    made = XenliveServer(tmp_path / "run")
    made.start()
    yield made
    made.stop()


# -- ends --------------------------------------------------------------------------------------


def test_a_domain_that_shuts_down_is_there_until_it_goes(
    shared: XenliveServer, dom0: Xenstore
) -> None:
    made = introduce(dom0, FakeGuest(shared.rundir))
    dom0.watch("@releaseDomain", "w")
    assert dom0.next_event(10) == WatchEvent("@releaseDomain", "w")
    made.membership.shut_down()
    assert dom0.next_event(10) == WatchEvent("@releaseDomain", "w")
    assert dom0.is_domain_introduced(made.domid)
    assert made.ask(XS_READ, b"name"), "what it left is still served"
    made.close()
    assert dom0.next_event(10) == WatchEvent("@releaseDomain", "w")
    assert not dom0.is_domain_introduced(made.domid)


def test_a_process_that_is_killed_takes_its_domain_with_it(
    shared: XenliveServer, dom0: Xenstore
) -> None:
    script = (
        "import sys, time\nfrom xenlive.machine.hosted.joining import Membership\n"
        "member = Membership.join(sys.argv[1])\nprint(member.domid, flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(shared.rundir)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        domid = int(process.stdout.readline())
        dom0.write(f"/local/domain/{domid}", "")
        dom0.set_perms(f"/local/domain/{domid}", [Permission(domid, "n")])
        process.kill()
    wait_until(lambda: not dom0.exists(f"/local/domain/{domid}"), "its nodes are left")


def test_the_end_of_the_host_is_seen(tmp_path: Path) -> None:
    server = XenliveServer(tmp_path / "run")
    server.start()
    with connect(server) as store:
        made = introduce(store, FakeGuest(server.rundir))
    assert made.membership.is_alive()
    server.stop()
    assert select.select([made.membership], [], [], PATIENCE_S)[0]
    assert not made.membership.is_alive()
    made.close()


# -- live update -------------------------------------------------------------------------------


def test_an_update_loses_nothing_of_a_ring(own: XenliveServer, tmp_path: Path) -> None:
    other_image = make_image(tmp_path / "other", "", "kernel.__version__ = '9.9.9'")
    with connect(own) as dom0:
        made = introduce(dom0, FakeGuest(own.rundir))
        silent = introduce(dom0, FakeGuest(own.rundir))
        assert made.ask(XS_WATCH, b"data", b"t") == b"OK\0"
        assert made.event() == (b"data", b"t")
        # Half a request is in the ring, and an answer that does not fit waits for the other one.
        request = HEADER.pack(XS_READ, 7, 0, 5) + b"name\0"
        made.put(request[:9])
        value = b"v" * 2000
        assert silent.ask(XS_WRITE, b"data/big", value=value) == b"OK\0"
        silent.send(XS_READ, b"data/big")
        wait_until(lambda: silent.words[xs_ring.RSP_PROD] > 1024, "no answer begins")
        ports = status(own)["ports"]
        assert update(own, other_image).returncode == 0
        assert status(own)["domain"]["version"] == "9.9.9"
        assert status(own)["ports"] == ports
        made.put(request[9:])
        assert made.next(event=False).payload == b"guest %d" % made.domid
        assert silent.next(event=False).payload == value
        dom0.write(f"/local/domain/{made.domid}/data/n", "1")
        assert made.event() == (b"data/n", b"t")
        assert made.ask(XS_DIRECTORY, b"data") == b"n\0"
        assert dom0.is_domain_introduced(silent.domid)
        made.close()
        wait_until(lambda: not dom0.is_domain_introduced(made.domid), "its end was not noticed")
        silent.close()


def test_what_is_rung_in_the_middle_of_an_update_is_heard_after_it(own: XenliveServer) -> None:
    with connect(own) as dom0:
        made = introduce(dom0, FakeGuest(own.rundir))
        command = [sys.executable, "-m", "xenlive", "update", "--rundir", str(own.rundir)]
        for _ in range(3):
            process = subprocess.Popen(command)
            asked = 0
            while process.poll() is None:
                assert made.ask(XS_WRITE, b"data/n", value=b"%d" % asked) == b"OK\0"
                assert made.ask(XS_READ, b"data/n") == b"%d" % asked
                asked += 1
            assert process.returncode == 0
            assert asked > 10
        assert status(own)["updates_done"] == 3
        made.close()


def test_who_is_ignored_stays_so_and_who_went_meanwhile_is_missed(
    own: XenliveServer, tmp_path: Path
) -> None:
    slow = make_image(tmp_path / "slow", "import time; time.sleep(0.5)")
    with connect(own) as dom0:
        bad, gone = (introduce(dom0, FakeGuest(own.rundir)) for _ in range(2))
        bad.words[xs_ring.REQ_PROD] = 5000
        bad.ring()
        assert bad.wait_for_error() == xs_ring.XENSTORE_ERROR_RINGIDX
        dom0.watch("@releaseDomain", "w")
        assert dom0.next_event(10) == WatchEvent("@releaseDomain", "w")
        command = [
            sys.executable,
            "-m",
            "xenlive",
            "update",
            "--rundir",
            str(own.rundir),
            str(slow),
        ]
        with subprocess.Popen(command) as process:
            wait_until(lambda: os.path.exists(own.rundir / "9pfs" / "xenstore-state"), "no update")
            gone.close()
        assert process.returncode == 0
        assert dom0.next_event(20) == WatchEvent("@releaseDomain", "w")
        assert not dom0.is_domain_introduced(gone.domid)
        assert dom0.is_domain_introduced(bad.domid)
        before = bad.words[xs_ring.RSP_PROD]
        bad.ring()
        assert dom0.read("/tool") == b"", "the store has looked by now"
        assert bad.words[xs_ring.ERROR] == xs_ring.XENSTORE_ERROR_RINGIDX
        assert bad.words[xs_ring.RSP_PROD] == before
        bad.close()


def test_a_kernel_that_comes_back_has_its_rings_back(own: XenliveServer, tmp_path: Path) -> None:
    fails = "if sys.argv[1] != '--preflight': kernel.Kernel.run = lambda self: None"
    bad = make_image(tmp_path / "bad", "", fails)
    with connect(own) as dom0:
        made = introduce(dom0, FakeGuest(own.rundir))
        made.ask(XS_WATCH, b"data", b"t")
        made.event()
        made.put(HEADER.pack(XS_READ, 7, 0, 5))
        assert update(own, bad).returncode == 1
        made.put(b"name\0")
        assert made.next(event=False).payload == b"guest %d" % made.domid
        dom0.write(f"/local/domain/{made.domid}/data/n", "1")
        assert made.event() == (b"data/n", b"t")
        made.close()
