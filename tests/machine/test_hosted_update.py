"""Live update on the hosted machine: what stays, and what happens when the next kernel is no good.

Each test has one connection that is there from before to after: nothing that goes wrong with an
update may be noticed by it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.servers import XenliveServer
from machine.hosts import descriptors_of, make_image, status, update, xenlive

from xenlive.client.blocking import Xenstore
from xenlive.client.codec import WatchEvent
from xenlive.machine.hosted.image import installed_image

REAL = "sys.argv[1] != '--preflight'"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[XenliveServer]:
    made = XenliveServer(tmp_path / "run")
    made.start()
    yield made
    made.stop()
    assert not (tmp_path / "run").exists(), "something was left behind"


@pytest.fixture
def store(server: XenliveServer) -> Iterator[Xenstore]:
    with Xenstore.connect(server.socket_path, timeout_s=60.0) as connected:
        connected.write("/kept", "value")
        connected.watch("/kept", "token")
        assert connected.next_event(10) == WatchEvent("/kept", "token")
        yield connected


def serves_on(store: Xenstore) -> None:
    """The connection, its node and its watch are what they were; nothing else was sent to it."""
    assert store.read("/kept") == b"value"
    store.write("/kept/now", "1")
    assert store.next_event(10) == WatchEvent("/kept/now", "token")
    store.rm("/kept/now")
    assert store.next_event(10) == WatchEvent("/kept/now", "token")


def test_memory_and_device_stay_where_they_are(server: XenliveServer, store: Xenstore) -> None:
    before = status(server)
    for _ in range(3):
        assert update(server).returncode == 0
        serves_on(store)
    after = status(server)
    for same in ("module", "grants", "ports", "memory", "ninepfs_connects", "ninepfs_losses"):
        assert after[same] == before[same], same
    assert after["domain"]["pid"] == before["domain"]["pid"]
    assert after["updates_done"] == 3
    assert after["ninepfs"]["bytes_read"] > before["ninepfs"]["bytes_read"]
    assert all(len(done["phases"]) == 6 for done in after["updates"])


def test_updates_leave_no_descriptors_behind(server: XenliveServer, store: Xenstore) -> None:
    pid = status(server)["domain"]["pid"]
    counts = []
    for _ in range(4):
        assert update(server).returncode == 0
        update(server, "--preflight")
        serves_on(store)
        counts.append(len(os.listdir(f"/proc/{pid}/fd")))
    assert len(set(counts)) == 1, counts


def test_updates_in_a_row_without_a_pause_leave_nothing_either(
    server: XenliveServer, store: Xenstore
) -> None:
    pid = status(server)["domain"]["pid"]
    for _ in range(6):
        assert store.control("live-update", "-f", installed_image()) == "OK"
        assert store.control("live-update", "-s") == "OK"
    serves_on(store)
    until_s = time.monotonic() + 20
    while any("xenlive-state" in what for what in descriptors_of(pid)):
        assert time.monotonic() < until_s, "a copy of the state was left behind"
        time.sleep(0.05)


def test_what_an_image_runs_is_given_none_of_the_domains_descriptors(
    server: XenliveServer, store: Xenstore, tmp_path: Path
) -> None:
    tell = "import os; print(sorted(os.listdir('/proc/self/fd'))); raise SystemExit(1)"
    curious = str(make_image(tmp_path / "curious", tell))
    for image in (installed_image(), curious):  # one right after the other
        assert store.control("live-update", "-f", image) == "OK"
        answer = store.control("live-update", "-s")
    # Three streams, the memfd for its code, and the listing itself.
    assert "['0', '1', '2', '3', '4']" in answer
    serves_on(store)


def test_a_preflight_changes_nothing(server: XenliveServer, store: Xenstore) -> None:
    answer = update(server, "--preflight", "--json")
    report = json.loads(answer.stdout)
    assert report["ok"] is True
    assert {check["name"] for check in report["checks"]} >= {"module", "device", "image", "state"}
    assert status(server)["updates"] == []
    serves_on(store)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("raise SystemExit('not today')", "", "not today"),
        ("import no_such_module", "", "No module named 'no_such_module'"),
        ("print('hello'); raise SystemExit", "", "hello"),
        ("def (", "", "SyntaxError"),
        ("raise SystemExit", "", "it said nothing"),
        ("", "kernel._describe = lambda: 'xenlive-kernel version=9 streams=9'", "streams of"),
        ("", "kernel._describe = lambda: 'xenlive-kernel version= streams=x'", "does not answer"),
    ],
)
def test_an_image_that_is_no_kernel_is_refused_with_its_own_words(
    server: XenliveServer, store: Xenstore, tmp_path: Path, before: str, after: str, why: str
) -> None:
    answer = update(server, make_image(tmp_path / "bad", before, after))
    assert answer.returncode == 1
    assert why in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert status(server)["updates_failed"] == 1
    serves_on(store)


@pytest.mark.parametrize("name", ["missing", "folder", "plain"])
def test_what_is_no_image_is_refused_at_once(
    server: XenliveServer, store: Xenstore, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("no program")
    answer = update(server, tmp_path / name)
    assert answer.returncode == 1
    assert any(why in answer.stderr for why in ("not accessible", "not executable", "__main__.py"))
    serves_on(store)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (f"if {REAL}: raise ValueError('late surprise')", "", "ValueError: late surprise"),
        (f"if {REAL}: raise SystemExit", "", "SystemExit"),
        ("", f"if {REAL}: kernel.boot = lambda *a: 1 / 0", "division by zero"),
        ("", f"if {REAL}: kernel.commit_entry = lambda: 1 / 0", "division by zero"),
        ("", "kernel.Kernel.run = lambda self: None", "without taking over"),
        ("", f"if {REAL}: kernel.HostedGuest.memory = None", "memory"),
    ],
    ids=["entry", "exit", "boot", "after the boot", "no take-over", "machine"],
)
def test_a_kernel_that_does_not_take_over_is_replaced_by_the_old_one(
    server: XenliveServer, store: Xenstore, tmp_path: Path, before: str, after: str, why: str
) -> None:
    bad = make_image(tmp_path / "bad", before, after)
    for failed in (1, 2):
        answer = update(server, bad)
        assert answer.returncode == 1
        assert why in answer.stderr
        assert status(server)["updates_failed"] == failed
        serves_on(store)
    assert update(server).returncode == 0
    serves_on(store)


def test_a_damaged_module_stops_the_update_before_the_freeze(
    server: XenliveServer, store: Xenstore
) -> None:
    module = status(server)["module"]
    admin = module["address"] + (module["pages"] - 1) * 4096
    ram = server.rundir / "ram"
    with ram.open("r+b") as file:
        file.seek(admin)
        kept = file.read(8)
        file.seek(admin)
        file.write(b"NotToday")
        file.flush()
        answer = update(server)
        assert answer.returncode == 1
        assert "eye" in answer.stderr
        serves_on(store)
        file.seek(admin)
        file.write(kept)
        file.flush()
    assert update(server).returncode == 0
    serves_on(store)


def test_the_next_kernel_keeps_the_module_it_was_handed(
    server: XenliveServer, store: Xenstore, tmp_path: Path
) -> None:
    config = tmp_path / "minios.cfg"
    config.write_text("CONFIG_9PFRONT=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=24\n")
    before = status(server)["module"]
    assert update(server, "--config", config).returncode == 0
    assert status(server)["module"] == before
    serves_on(store)


def test_a_bad_configuration_file_is_refused_by_line(server: XenliveServer, tmp_path: Path) -> None:
    config = tmp_path / "minios.cfg"
    config.write_text("CONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=minus one\n")
    answer = update(server, "--config", config)
    assert answer.returncode == 1
    assert "minios.cfg:2" in answer.stderr


def test_a_kernel_without_a_module_serves_and_says_why_it_can_not_be_updated(
    tmp_path: Path,
) -> None:
    config = tmp_path / "minios.cfg"
    config.write_text("CONFIG_9PFRONT=y\n")
    image = make_image(tmp_path / "image")
    (image / "minios.cfg").write_text(config.read_text())
    server = XenliveServer(tmp_path / "run", image=image)
    server.start()
    try:
        with Xenstore.connect(server.socket_path, timeout_s=30.0) as store:
            store.write("/a", "1")
            answer = update(server)
            assert answer.returncode == 1
            assert "no kexec module" in answer.stderr
            assert store.read("/a") == b"1"
    finally:
        server.stop()


def test_a_second_host_leaves_the_first_alone(server: XenliveServer, store: Xenstore) -> None:
    answer = xenlive("up", "--rundir", server.rundir)
    assert answer.returncode == 1
    assert "runs here already" in answer.stderr
    serves_on(store)


def test_status_without_a_host_says_how_to_start_one(tmp_path: Path) -> None:
    answer = xenlive("status", "--rundir", tmp_path / "nothing")
    assert answer.returncode == 1
    assert "xenlive up" in answer.stderr
    assert answer.stderr.count("\n") == 1
