"""Emulated C kernels as clients of a hosted Xenstore stub domain, booted as a user boots them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.servers import XenliveServer
from kernels.asker.asker_kernel import asker_kernel
from kernels.devices.device_kernel import device_kernel
from machine.fake_guest import FakeGuest, connect, introduce, wait_until
from machine.hosts import make_image, status, update, xenlive

from xenlive.abi.xs_wire import XS_READ
from xenlive.client.blocking import Xenstore
from xenlive.client.codec import WatchEvent

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XenliveServer]:
    made = XenliveServer(tmp_path_factory.mktemp("hosted") / "run")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def dom0(server: XenliveServer) -> Iterator[Xenstore]:
    with connect(server) as store:
        yield store


class Boot:
    """`xenlive boot` of a kernel with the commands of `asker.c` or others."""

    def __init__(
        self, rundir: Path, folder: Path, script: str, *options: str, kernel: bytes | None = None
    ) -> None:
        file = folder / "kernel.elf"
        file.write_bytes(kernel or asker_kernel())
        words = ["--xenstore", str(rundir), "--cmdline", script, "--console-io", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xenlive", "boot", str(file), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, list[str], str]:
        """Its exit code, what the kernel said after its first line, and what stands on stderr."""
        said, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said.splitlines()[1:], errors


def new_home(dom0: Xenstore, known: set[str]) -> str:
    """Where the nodes of the domain are that was not `known`, once it is there."""
    found: list[str] = []

    def is_there() -> bool:
        found[:] = domains(dom0) - known - {"0"}
        return len(found) == 1

    wait_until(is_there, "no domain comes")
    return f"/local/domain/{found[0]}"


def domains(dom0: Xenstore) -> set[str]:
    return set(dom0.directory("/local/domain")) if dom0.exists("/local/domain") else set()


def number(dom0: Xenstore, path: str) -> int:
    """A node's value as a number, -1 if there is none."""
    return int(dom0.read(path)) if dom0.exists(path) and dom0.read(path) else -1


@pytest.mark.parametrize("bits", [64, 32])
def test_it_is_its_own_domain(
    server: XenliveServer, dom0: Xenstore, tmp_path: Path, bits: int
) -> None:
    dom0.write("/secret", "x")
    script = "node domid;write data/x hello;node data/x;node /secret;write name other"
    boot = Boot(server.rundir, tmp_path, script, kernel=asker_kernel(bits))
    code, said, errors = boot.end()
    assert (code, errors) == (0, "")
    domid = said[0].partition("domid = ")[2]
    assert int(domid) >= 2
    assert said[1:] == [
        *(f"> {len(domid)} 0", "> 0 0", "data/x = hello", "> 5 0"),
        *("> -2 0", "> -22 0", "done"),
    ]
    assert not dom0.exists(f"/local/domain/{domid}")
    assert not dom0.is_domain_introduced(int(domid))


def test_it_goes_on_asking_while_the_stub_domain_is_updated(
    server: XenliveServer, dom0: Xenstore, tmp_path: Path
) -> None:
    image = make_image(tmp_path / "next", "", "kernel.__version__ = '7.7.7'")
    known = domains(dom0)
    script = "watch data/y;event;chat data/n data/stop;event;node data/y"
    boot = Boot(server.rundir, tmp_path, script)
    home = new_home(dom0, known)
    wait_until(lambda: number(dom0, f"{home}/data/n") > 10, "it does not ask")

    def asks_on() -> bool:
        return number(dom0, f"{home}/data/n") > before + 10

    for version in (image, Path(server.image)):
        before = number(dom0, f"{home}/data/n")
        assert update(server, version).returncode == 0
        wait_until(asks_on, "it asks no more")
    dom0.write(f"{home}/data/y", "yes")
    dom0.write(f"{home}/data/stop", "")
    code, said, errors = boot.end()
    assert (code, errors) == (0, "")
    assert said[:3] == ["> 0 0", "event data/y", "> 0 0"]
    assert int(said[3].split()[1]) > 20
    assert said[4:] == ["event data/y", "> 0 0", "data/y = yes", "> 3 0", "done"]


def test_wild_indices_are_its_own_harm(
    server: XenliveServer, dom0: Xenstore, tmp_path: Path
) -> None:
    other = introduce(dom0, FakeGuest(server.rundir))
    code, said, _ = Boot(server.rundir, tmp_path, "node domid;wild 9999").end()
    assert code == 0
    assert said[-2:] == ["> 2 0", "done"]
    assert other.ask(XS_READ, b"name") == b"guest %d" % other.domid
    other.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_who_watches_is_told_of_its_end(
    server: XenliveServer, dom0: Xenstore, tmp_path: Path, how: signal.Signals
) -> None:
    known = domains(dom0)
    dom0.watch("@introduceDomain", "came")
    assert dom0.next_event(10) == WatchEvent("@introduceDomain", "came")
    boot = Boot(server.rundir, tmp_path, "chat data/n data/stop")
    assert dom0.next_event(PATIENCE_S) == WatchEvent("@introduceDomain", "came")
    home = new_home(dom0, known)
    wait_until(lambda: number(dom0, f"{home}/data/n") > 0, "it does not ask")
    dom0.watch("@releaseDomain", "went")
    assert dom0.next_event(10) == WatchEvent("@releaseDomain", "went")
    boot.process.send_signal(how)
    code, _, errors = boot.end()
    assert dom0.next_event(10) == WatchEvent("@releaseDomain", "went")
    assert not dom0.is_domain_introduced(int(home.rsplit("/", 1)[1]))
    assert not dom0.exists(f"{home}/data"), "its own nodes go with it"
    if how == signal.SIGTERM:
        assert (code, errors) == (143, "")
        assert not dom0.exists(home), "and so do the toolstack's, if that may end in peace"


def test_a_store_that_goes_away_leaves_it_waiting_and_is_named(tmp_path: Path) -> None:
    server = XenliveServer(tmp_path / "run")
    server.start()
    boot = Boot(server.rundir, tmp_path, "chat data/n data/stop")
    with connect(server) as dom0:
        home = new_home(dom0, set())
        wait_until(lambda: number(dom0, f"{home}/data/n") > 0, "it does not ask")
    server.stop()
    code, _, errors = boot.end()
    assert code == 22
    assert "Traceback" not in errors
    gone = f"the hosted Xenstore of {server.rundir} went away"
    assert errors.splitlines()[0] == gone, "said at once, before it is known to hang"
    assert errors.count(gone) == 1


def test_its_directory_is_announced_through_the_hosted_store(
    server: XenliveServer, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("text")
    script = "rings 1 1;connect;version;attach 0;walk 0 1 file;open 1 0;get 1 0 10"
    words = ("--share", str(shared))
    boot = Boot(server.rundir, tmp_path, script, *words, kernel=device_kernel())
    code, said, errors = boot.end()
    assert (code, errors) == (0, "")
    assert any("text" in line for line in said), said


def test_several_guests_are_several_domains(
    server: XenliveServer, dom0: Xenstore, tmp_path: Path
) -> None:
    before = domains(dom0)
    other = tmp_path / "other.elf"
    other.write_bytes(asker_kernel(32))
    words = ("--with", f"{other}=node domid")
    # The run is over when the first guest is: it waits until both have said who they are.
    boot = Boot(server.rundir, tmp_path, "node domid;watch data/y;event;event", *words)
    found: set[str] = set()
    assert boot.process.stdout is not None
    for line in boot.process.stdout:
        found |= {line.split()[-1]} if "domid = " in line else set()
        if len(found) == 2:
            break
    for domid in found:
        dom0.write(f"/local/domain/{domid}/data/y", "go on")
    code, _, errors = boot.end()
    assert code == 0, errors
    assert len(found) == 2
    assert domains(dom0) - {"0"} == before - {"0"}


def test_without_a_host_it_is_one_line(tmp_path: Path) -> None:
    code, said, errors = Boot(tmp_path / "nowhere", tmp_path, "node domid").end()
    assert (code, said) == (1, [])
    assert errors.count("\n") == 1
    assert "start one with: xenlive up" in errors


def test_no_snapshot_is_made_of_what_another_process_has(
    server: XenliveServer, tmp_path: Path
) -> None:
    words = ("--save-at", "entry:0", str(tmp_path / "saved"))
    code, _, errors = Boot(server.rundir, tmp_path, "node domid", *words).end()
    assert code == 1
    assert errors.count("\n") == 1, errors
    assert "another process" in errors
    assert not (tmp_path / "saved").exists()


def test_a_world_that_was_saved_has_its_own_store(tmp_path: Path) -> None:
    words = ("boot", "--restore", "file", "--xenstore", str(tmp_path))
    refused = xenlive(*words)
    assert refused.returncode == 2
    assert "its own Xenstore" in refused.stderr


def test_nothing_is_left_on_the_other_side(server: XenliveServer) -> None:
    wait_until(lambda: not status(server)["others"], "domains are left")
    pid = status(server)["domain"]["pid"]
    assert not [line for line in os.listdir(f"/proc/{pid}/map_files") if "domain-" in line]
