"""The load against a server that is right, and against one with each fault: none goes unseen."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from demo.fake_server import FAULTS, FakeServer

from xenlive.demo.load import Load, Plan, Result
from xenlive.demo.loadproc import DemoError, LoadProcess
from xenlive.demo.tree import make_tree

SMALL = {"nodes": 260, "clients": 3, "watchers": 4, "pace_ms": 1.0}


def run_load(server: FakeServer, answer_limit_s: float = 5.0, requests: int = 150) -> Result:
    """The whole life of a load in this process; the fault is armed when the clients are at work."""
    plan = Plan(str(server.path), answer_limit_s=answer_limit_s, stage_limit_s=20, **SMALL)  # type: ignore[arg-type]
    commands, control = os.pipe()
    answers: list[dict[str, object]] = []

    def say(answer: dict[str, object]) -> None:
        answers.append(answer)
        if "loaded" in answer:
            os.write(control, b'{"do": "run"}\n')
        elif "running" in answer:
            server.arm()
            os.write(control, b'{"do": "progress"}\n')
        elif "requests" in answer:
            enough = load._tally.requests >= started[0] + requests
            broken = load._tally.connections_lost or server.fault in ("silent", "no-newcomers")
            more = b'{"do": "progress"}\n' if not (enough or broken) else b'{"do": "finish"}\n'
            os.write(control, more)
        if "running" in answer:
            started[0] = load._tally.requests

    started = [0]
    load = Load(plan, commands, say)
    try:
        load.run()
    finally:
        os.close(commands)
        os.close(control)
    result = answers[-1]["result"]
    assert isinstance(result, dict)
    return Result(**result)


def faults_of(result: Result) -> set[str]:
    """Which parts of a result say that something is wrong."""
    bad = {
        "failed_requests": result.failed_requests,
        "nodes_lost": result.nodes_lost,
        "nodes_extra": result.nodes_extra,
        "values_different": result.values_different,
        "perms_different": result.perms_different,
        "elsewhere_different": result.elsewhere_different,
        "watches_lost": result.watches_lost,
        "events_missing": result.events_missing,
        "events_unexpected": result.events_unexpected,
        "tokens_wrong": result.tokens_wrong,
        "connections_lost": result.connections_lost,
        "new_connection": not result.new_connection,
    }
    return {name for name, count in bad.items() if count}


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_a_server_without_a_fault_passes(socket_path: Path) -> None:
    with FakeServer(socket_path) as server:
        result = run_load(server)
    assert faults_of(result) == set(), result
    assert result.nodes == result.nodes_read == 260
    assert result.requests > 150
    assert result.events_due == result.events_received >= 2 * result.watches == 8
    assert result.connections == 3 + 4 + 2
    assert result.details == result.node_details == result.watch_details == []


EXPECTED = {
    "wrong-value": {"failed_requests"},
    "error-answer": {"failed_requests"},
    "other-req-id": {"connections_lost"},
    "lost-node": {"nodes_lost"},
    "extra-node": {"nodes_extra"},
    "changed-value": {"values_different"},
    "changed-perms": {"perms_different"},
    "changed-elsewhere": {"elsewhere_different"},
    "lost-event": {"watches_lost", "events_missing"},
    "double-event": {"watches_lost", "events_unexpected"},
    "wrong-token": {"watches_lost", "tokens_wrong"},
    "event-to-all": {"watches_lost", "tokens_wrong", "connections_lost"},
    "close-client": {"connections_lost"},
    "close-watcher": {"connections_lost", "watches_lost"},
    "silent": {"failed_requests", "connections_lost", "nodes_lost", "watches_lost"},
    "no-newcomers": {"new_connection"},
    "lost-commit": {"values_different"},
    "nonsense": {"connections_lost"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen(socket_path: Path, fault: str) -> None:
    with FakeServer(socket_path, fault) as server:
        result = run_load(server, answer_limit_s=0.2 if fault == "silent" else 5.0)
    assert faults_of(result) >= EXPECTED[fault], result


def test_a_fault_says_where(socket_path: Path) -> None:
    with FakeServer(socket_path, "changed-perms") as server:
        result = run_load(server)
    last = make_tree(260, 3, 4).leaves[-1].decode()
    assert result.node_details == [f"other permissions: {last}"]


def test_the_process_reports_and_ends_with_its_input(socket_path: Path) -> None:
    with FakeServer(socket_path) as server, LoadProcess() as load:
        loaded = load.start(Plan(str(server.path), **SMALL))  # type: ignore[arg-type]
        assert loaded["loaded"] == 260
        assert load.ask("run") == {"running": 3}
        load.ask("window")
        before_s = time.monotonic()
        gap = load.gap()
        assert gap.clients == 3
        assert gap.answers > 0
        assert 0 < gap.wait_ms <= gap.silence_ms
        assert gap.start_s < gap.end_s <= time.monotonic()
        assert gap.end_s > before_s - 5
        with pytest.raises(DemoError, match="no such command now: dance"):
            load.ask("dance")
        pid = load.pid
        assert pid is not None
        load.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(DemoError, match="does not run"):
            load.ask("progress")


def test_no_server_is_an_error_not_a_hang(tmp_path: Path) -> None:
    with LoadProcess() as load, pytest.raises(DemoError, match="the load stopped"):
        load.start(Plan(str(tmp_path / "nobody"), **SMALL))  # type: ignore[arg-type]


def test_too_few_nodes_is_an_error(tmp_path: Path) -> None:
    with LoadProcess() as load, pytest.raises(DemoError, match="need at least"):
        load.start(Plan(str(tmp_path / "nobody"), nodes=100))


def test_gap_is_measured_to_its_end(socket_path: Path) -> None:
    """A server that rests: the silence of every client covers the rest, even if asked before."""
    with FakeServer(socket_path) as server, LoadProcess() as load:
        load.start(Plan(str(server.path), **SMALL))  # type: ignore[arg-type]
        load.ask("run")
        load.ask("window")
        resting, rested = threading.Event(), threading.Event()
        real = server._answer

        def rest(*arguments: object) -> tuple[int, bytes]:
            if not resting.is_set():
                resting.set()
                time.sleep(0.2)
                rested.set()
            return real(*arguments)  # type: ignore[arg-type]

        server._answer = rest  # type: ignore[method-assign,assignment]
        assert resting.wait(5)
        gap = load.gap()
        assert rested.is_set()
    # One asked when the rest began and not measured to its end would be near 0. A request's time is
    # taken after it was written, so the server may have rested a little before.
    assert min(gap.silence_ms, gap.wait_ms, gap.median_ms) >= 150
