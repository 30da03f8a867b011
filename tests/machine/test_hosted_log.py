"""The log and reports of a hosted domain: files on its 9pfs device, over live updates too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conformance.servers import XenliveServer
from machine.hosts import update, xenlive

from xenlive.client.blocking import Xenstore

PATIENCE_S = 20.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[XenliveServer]:
    made = XenliveServer(tmp_path / "run")
    made.start()
    yield made
    made.stop()


def control(server: XenliveServer, *words: str) -> str:
    answer = xenlive("xs", "--socket", server.socket_path, "control", *words)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def wait_for(is_there: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not is_there():
        assert time.monotonic() < until_s, what
        time.sleep(0.01)


def test_a_log_is_a_file_that_goes_on_over_an_update(server: XenliveServer) -> None:
    file = server.rundir / "9pfs" / "trace.log"
    control(server, "logfile", "trace.log")
    control(server, "log", "+tdb")
    with Xenstore.connect(server.socket_path, timeout_s=60.0) as store:
        store.write("/before", "1")
        wait_for(lambda: "tdb: store /before" in file.read_text(), "the first kernel's line")
        assert update(server).returncode == 0
        store.write("/after", "1")
        wait_for(lambda: "tdb: store /after" in file.read_text(), "the second kernel's line")
        text = file.read_text()
        assert text.index("tdb: store /before") < text.rindex("***") < text.index("/after")
        assert control(server, "log").split()[-1] == "on"
        control(server, "log", "off")
        assert update(server).returncode == 0
        store.write("/later", "1")
        assert store.read("/later") == b"1"
    assert "/later" not in file.read_text()


def test_a_report_is_whole_when_it_is_answered(server: XenliveServer) -> None:
    control(server, "memreport", "report")
    assert "connections " in (server.rundir / "9pfs" / "report").read_text()
    control(server, "memreport")
    wait_for(lambda: "watches 0" in server.log_path.read_text(), "the console's report")


def test_a_name_outside_is_told_on_the_console(server: XenliveServer, tmp_path: Path) -> None:
    control(server, "logfile", str(tmp_path / "elsewhere"))
    wait_for(lambda: "elsewhere is not written" in server.log_path.read_text(), "the reason")
    control(server, "logfile", "../outside")
    wait_for(lambda: "../outside is not written" in server.log_path.read_text(), "the reason")
    assert not (tmp_path / "elsewhere").exists()
    assert not (server.rundir / "outside").exists()
    assert update(server).returncode == 0
