"""The files of a host: what it makes, what it removes, and what it never touches."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conformance.servers import XenliveServer, answers
from machine.hosts import make_image, status, update, xenlive

from xenlive.client.blocking import Xenstore
from xenlive.errors import ConfigError
from xenlive.machine.hosted.host import Host
from xenlive.machine.hosted.ninepfs import EXPORT_MAX_BYTES
from xenlive.machine.hosted.places import EXPORT_MARK, ExportDir

TIMEOUT_S = 20.0


def refused(*words: str | Path) -> str:
    """The one line in which `xenlive up` refuses to start."""
    answer = xenlive("up", *words)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.count("\n") == 1, answer.stderr
    return answer.stderr


def wait_for_end(pid: int) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline_s, f"process {pid} is still there"
        time.sleep(0.01)


# -- files that are in the way -----------------------------------------------------------------


def test_a_file_where_the_socket_should_go_stays(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("data")
    said = refused("--rundir", tmp_path / "run", "--socket", precious)
    assert "is not a socket" in said
    assert "--socket" in said
    assert precious.read_text() == "data"
    assert not (tmp_path / "run").exists()


def test_a_link_to_a_socket_is_no_socket_of_ours(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(tmp_path / "foreign"))
        (tmp_path / "link").symlink_to(tmp_path / "foreign")
        assert "is not a socket" in refused(
            "--rundir", tmp_path / "run", "--socket", tmp_path / "link"
        )
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "foreign").exists()


def test_a_socket_that_somebody_serves_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(tmp_path / "foreign"))
        foreign.listen()
        said = refused("--rundir", tmp_path / "run", "--socket", tmp_path / "foreign")
    assert "somebody serves this socket" in said
    assert (tmp_path / "foreign").exists()


@pytest.mark.parametrize("name", ["control", "ram", "socket", "9pfs"])
def test_a_file_in_the_run_directory_is_not_taken_for_a_leftover(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("data")
    assert f"{name}: is there, but is not" in refused("--rundir", tmp_path)
    assert (tmp_path / name).read_text() == "data"
    assert os.listdir(tmp_path) == [name]


def test_a_link_named_ram_that_leads_to_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "ram").symlink_to("/etc/hostname")
    assert "ram: is there" in refused("--rundir", tmp_path)
    assert (tmp_path / "ram").is_symlink()


@pytest.mark.parametrize("linked", [False, True])
def test_a_users_own_folder_named_9pfs_stays(tmp_path: Path, linked: bool) -> None:
    own = tmp_path / ("elsewhere" if linked else "9pfs")
    (own / "deep").mkdir(parents=True)
    (own / "deep" / "file").write_text("data")
    if linked:
        (tmp_path / "9pfs").symlink_to(own)
    said = refused("--rundir", tmp_path)
    assert "9pfs: is there, but is not a directory" in said
    assert (own / "deep" / "file").read_text() == "data"


def test_an_exported_directory_is_removed_with_all_that_the_domain_made(tmp_path: Path) -> None:
    (tmp_path / "9pfs").mkdir()  # an empty one is nobody's loss
    export = ExportDir(str(tmp_path / "9pfs"))
    (tmp_path / "9pfs" / "a").mkdir()
    (tmp_path / "9pfs" / "a" / "b").write_text("made by the domain")
    ExportDir(str(tmp_path / "9pfs"))
    assert os.listdir(tmp_path / "9pfs") == [EXPORT_MARK]
    export.remove()
    assert not (tmp_path / "9pfs").exists()


def test_a_directory_that_took_the_exports_place_stays_if_it_has_files(tmp_path: Path) -> None:
    export = ExportDir(str(tmp_path / "9pfs"))
    (tmp_path / "9pfs" / EXPORT_MARK).unlink()
    (tmp_path / "9pfs" / "own").write_text("data")
    export.remove()
    assert (tmp_path / "9pfs" / "own").read_text() == "data"


# -- options -----------------------------------------------------------------------------------


def test_the_smallest_memory_works_and_less_is_refused_with_its_size(tmp_path: Path) -> None:
    assert "from 1160K to 3840M" in refused("--rundir", tmp_path / "run", "--memory", "1156K")
    assert "from 1160K to 3840M" in refused("--rundir", tmp_path / "run", "--memory", "1M")
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "xenlive", "up", "--rundir", str(tmp_path / "run")]
        host = subprocess.Popen([*command, "--memory", "1160K"], stdout=file, stderr=file)
    try:
        while not answers(tmp_path / "run" / "socket"):
            assert host.poll() is None, log.read_text()
            time.sleep(0.02)
        for _ in range(2):
            answer = xenlive("update", "--rundir", tmp_path / "run")
            assert answer.returncode == 0, answer.stderr
    finally:
        host.terminate()
        assert host.wait(TIMEOUT_S) == 0


def test_a_configuration_is_a_small_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_bytes(b"#" * 65537)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name, why in {
        "/dev/zero": "is no regular file",
        str(tmp_path): "Is a directory",
        "fifo": "is no regular file",
        "long": "more than 64 KiB",
        "binary": "is no UTF-8 text",
        "nothing": "can't be read: No such file",
    }.items():
        assert why in refused("--rundir", tmp_path / "run", "--config", tmp_path / name)
    assert not (tmp_path / "run").exists()


# -- the exported directory, while it is in use ------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> XenliveServer:
    return XenliveServer(tmp_path / "run")


def test_an_exported_directory_that_is_removed_is_made_again(server: XenliveServer) -> None:
    server.start()
    export = server.rundir / "9pfs"
    try:
        for remade in (False, True):
            for path in export.iterdir():
                path.unlink()
            export.rmdir()
            if remade:
                export.mkdir()
            answer = update(server)
            assert answer.returncode == 0, answer.stderr
        assert status(server)["ninepfs_losses"] == 0
    finally:
        server.stop()
    assert not server.rundir.exists()


@pytest.mark.parametrize("room_bytes", [0, 20])
def test_a_full_disk_stops_an_update_cleanly_until_there_is_room(
    tmp_path: Path, room_bytes: int
) -> None:
    # A file with a hole counts with its length; all that the export may hold is this file's.
    export = tmp_path / "run" / "9pfs"
    filler = export / "filler"
    before = f"""
import os
if sys.argv[1] != "--preflight" and not os.path.exists({str(tmp_path / "once")!r}):
    open({str(tmp_path / "once")!r}, "x").close()
    used = os.path.getsize({str(export / EXPORT_MARK)!r})
    open({str(filler)!r}, "x").close()
    os.truncate({str(filler)!r}, {EXPORT_MAX_BYTES} - used - {room_bytes})
"""
    server = XenliveServer(tmp_path / "run", image=make_image(tmp_path / "image", before=before))
    server.start()
    try:
        with Xenstore.connect(server.socket_path, timeout_s=TIMEOUT_S) as store:
            store.write("/kept", "value")
            for _ in range(2):
                answer = update(server)
                assert answer.returncode == 1
                assert "No space left on device" in answer.stderr
                assert store.read("/kept") == b"value"
            told = status(server)
            assert told["updates_failed"] == 2
            assert "No space left on device" in told["updates"][0]["reason"]
            filler.unlink()
            assert update(server).returncode == 0
            assert store.read("/kept") == b"value"
    finally:
        server.stop()


# -- the end -----------------------------------------------------------------------------------


def test_a_killed_hosts_domain_ends_and_the_next_host_starts_over_its_leavings(
    server: XenliveServer,
) -> None:
    server.start()
    domain = status(server)["domain"]["pid"]
    (server.rundir / "9pfs" / "state").write_text("left")
    os.kill(server.pid, signal.SIGKILL)
    wait_for_end(domain)
    with pytest.raises(RuntimeError, match="ended with -9"):
        server.stop()
    assert sorted(os.listdir(server.rundir)) == ["9pfs", "control", "domains", "ram", "socket"]
    next_one = XenliveServer(server.rundir)
    next_one.start()
    assert not (server.rundir / "9pfs" / "state").exists()
    assert update(next_one).returncode == 0
    next_one.stop()
    # It did not make the directory, so it leaves it; nothing else is left.
    assert os.listdir(server.rundir) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_a_host_in_order_however_many(server: XenliveServer, number: int) -> None:
    server.start()
    domain = status(server)["domain"]["pid"]
    for _ in range(5):
        os.kill(server.pid, number)
    wait_for_end(domain)
    server.stop()
    assert not server.rundir.exists()


def test_a_signal_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    for step in ("control", "9pfs", "ram", "socket"):
        run = tmp_path / step
        host = subprocess.Popen(
            [sys.executable, "-m", "xenlive", "up", "--rundir", str(run)],
            stdout=subprocess.DEVNULL,
        )
        while not os.path.lexists(run / step):
            assert host.poll() is None
        host.terminate()
        assert host.wait(TIMEOUT_S) == 0
        assert not run.exists()


def test_a_domain_that_ignores_signals_ends_with_its_children(tmp_path: Path) -> None:
    before = (
        "import os, signal, subprocess\n"
        "if sys.argv[1] != '--preflight':\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"    child = subprocess.Popen(['sleep', '600'])\n"
        f"    open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
    )
    server = XenliveServer(tmp_path / "run", image=make_image(tmp_path / "image", before=before))
    server.start()
    try:
        os.kill(status(server)["domain"]["pid"], signal.SIGKILL)
        wait_for_end(int((tmp_path / "child").read_text()))
    finally:
        with pytest.raises(RuntimeError, match="ended by itself: signal 9"):
            server.stop()
    assert not server.rundir.exists()


def test_a_host_that_is_not_entered_has_acquired_nothing(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    Host(str(tmp_path / "run"))
    assert os.listdir("/proc/self/fd") == before
    assert not (tmp_path / "run").exists()


def test_a_start_that_fails_gives_all_back(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    (tmp_path / "ram").write_text("a user's")
    for _ in range(2):
        with pytest.raises(ConfigError, match="ram: is there"), Host(str(tmp_path)):
            pass
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(tmp_path) == ["ram"]
