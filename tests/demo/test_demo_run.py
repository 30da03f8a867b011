"""The whole demo on worlds that are not ours: Debian's C daemon, and some that fail on purpose."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from demo.evidence import CONFIG, PHASES_MS, snapshot
from demo.fake_server import FakeServer
from peer.c_daemon import CDaemon
from peer.tools import c_xenstored, xenstore_control

from xenlive.demo.loadproc import DemoError
from xenlive.demo.run import Audience, Options, Outcome, failed_report, run_demo
from xenlive.demo.verdict import HANDOVER_CHECKS, LOAD_CHECKS
from xenlive.demo.world import HandoverSnapshot, Image, UpdateReport

SMALL = Options(
    nodes=300, clients=4, watchers=5, warm_up_s=0.1, lead_s=0.05, tail_s=0.05, answer_limit_s=2.0
)
VERSIONS = ("a", "b", "c")


def images() -> Sequence[Image]:
    return [Image(Path(f"/{name}"), name, CONFIG.format(pages=18)) for name in VERSIONS[1:]]


def broken(outcome: Outcome) -> set[str]:
    assert outcome.ok == all(check.ok for check in outcome.checks)
    return {check.name for check in outcome.checks if not check.ok}


class FakeWorld:
    """A world of one fake server; its updates change nothing but the version it names."""

    def __init__(self, folder: Path) -> None:
        self.socket_path = folder / "socket"
        self.running = False
        self.updates = 0

    def start(self) -> str:
        self.server = FakeServer(self.socket_path)
        self.server.__enter__()
        self.running = True
        return VERSIONS[0]

    def update(self, image: Image) -> UpdateReport:
        self.updates += 1
        return UpdateReport(True, VERSIONS[self.updates - 1], image.version, dict(PHASES_MS))

    def snapshot(self) -> HandoverSnapshot | None:
        return snapshot(VERSIONS[self.updates], 1000 * self.updates)

    def stop(self) -> None:
        if self.running:
            self.running = False
            self.server.__exit__()


class CWorld(FakeWorld):
    """Debian's C daemon, with its own live update; it has no memory to look at."""

    def __init__(self, daemon: CDaemon) -> None:
        self.socket_path = daemon.socket_path
        self.daemon = daemon
        self.updates = 0

    def start(self) -> str:
        return VERSIONS[0]

    def update(self, image: Image) -> UpdateReport:
        command = [str(xenstore_control()), "live-update", "-t", "10", str(c_xenstored())]
        done = subprocess.run(
            command, env=self.daemon.environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            return failed_report(VERSIONS[self.updates], done.stderr or done.stdout)
        return super().update(image)

    def snapshot(self) -> HandoverSnapshot | None:
        return None

    def stop(self) -> None:
        pass


def test_a_world_in_which_all_goes_well(tmp_path: Path) -> None:
    world = FakeWorld(tmp_path)
    outcome = run_demo(SMALL, world, images, Audience())
    assert broken(outcome) == set(), outcome.checks
    assert not world.running
    assert world.updates == 2


@pytest.mark.peer
def test_the_c_daemon_loses_nothing_but_has_nothing_to_hand_over(c_daemon: CDaemon) -> None:
    options = replace(SMALL, nodes=2000, clients=20, watchers=50, warm_up_s=0.3, lead_s=0.2)
    outcome = run_demo(options, CWorld(c_daemon), images, Audience())
    assert broken(outcome) == set(HANDOVER_CHECKS), outcome.checks
    load = outcome.evidence.load
    assert load is not None
    assert (load.nodes_read, load.nodes_lost, load.failed_requests) == (2000, 0, 0)
    gaps = [update.gap for update in outcome.evidence.updates]
    assert all(gap is not None and gap.silence_ms > 1 and gap.clients == 20 for gap in gaps)


class Refusing(FakeWorld):
    def update(self, image: Image) -> UpdateReport:
        return failed_report(VERSIONS[0], "not\nnow")


def test_a_refused_update_ends_the_updates_but_not_the_load(tmp_path: Path) -> None:
    outcome = run_demo(SMALL, Refusing(tmp_path), images, Audience())
    assert "updates" in broken(outcome)
    assert not broken(outcome) & set(LOAD_CHECKS)
    [update] = outcome.evidence.updates
    assert update.report.reason == "not now"
    assert update.gap is not None


class Dying(FakeWorld):
    def update(self, image: Image) -> UpdateReport:
        self.stop()
        return failed_report(VERSIONS[0], "dead")


def test_a_server_that_dies_is_a_verdict_not_a_hang(tmp_path: Path) -> None:
    outcome = run_demo(SMALL, Dying(tmp_path), images, Audience())
    assert {"updates", "requests", "nodes", "watches", "connections"} <= broken(outcome)
    load = outcome.evidence.load
    assert load is not None
    assert load.connections_lost == load.connections
    assert (load.nodes_lost, load.watches_lost) == (300, 5)


class Hanging(FakeWorld):
    def update(self, image: Image) -> UpdateReport:
        self.server.fault = "silent"
        self.server.armed = True
        return super().update(image)


def test_a_server_that_falls_silent_is_a_verdict_not_a_hang(tmp_path: Path) -> None:
    options = replace(SMALL, answer_limit_s=0.2)
    outcome = run_demo(options, Hanging(tmp_path), images, Audience())
    assert {"requests", "nodes", "watches", "connections"} <= broken(outcome)
    assert outcome.seconds < 20


class Stillborn(FakeWorld):
    def start(self) -> str:
        raise DemoError("kernel A does not serve")


def test_a_kernel_that_does_not_boot(tmp_path: Path) -> None:
    outcome = run_demo(SMALL, Stillborn(tmp_path), images, Audience())
    assert outcome.checks[0].detail == "kernel A does not serve"
    assert {"demo", "updates", *LOAD_CHECKS, *HANDOVER_CHECKS} <= broken(outcome)


class Blind(FakeWorld):
    def snapshot(self) -> HandoverSnapshot | None:
        if self.updates == 1:
            raise DemoError("the ring did not come to rest")
        return super().snapshot()


def test_a_memory_that_cannot_be_read(tmp_path: Path) -> None:
    outcome = run_demo(SMALL, Blind(tmp_path), images, Audience())
    assert {"demo", "updates", *HANDOVER_CHECKS} <= broken(outcome)
    assert "rest" in outcome.checks[0].detail


def children() -> set[str]:
    """This process' children, zombies as well."""
    found: set[str] = set()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # another test's thread, ended since
            found.update((thread / "children").read_text().split())
    return found


class Interrupted(FakeWorld):
    def update(self, image: Image) -> UpdateReport:
        raise KeyboardInterrupt


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    # Other tests' fixtures may have children of their own.
    before = children()
    world = Interrupted(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_demo(SMALL, world, images, Audience())
    assert not world.running
    assert children() == before
