"""What all tests share: the peers (Debian's Xenstore), and what it means when they are missing.

A test marked `peer` needs Debian's packages and gcc. Without them it is skipped; with
`XENLIVE_REQUIRE_PEERS=1`, as in CI, it fails instead, so that a machine set up badly is no success.

A test that hangs fails after `LIMIT_S`, wherever it waits, and what it does to clean up is
interrupted too if that hangs in its turn: a run of all tests always comes to its end.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from peer.c_daemon import CDaemon
from peer.tools import INSTALL_HINT, build_xsbench, missing_peers, peers_required

from xenlive.builder.compiled import build_compiled, missing

COMPILED_VERSION = "7.7+compiled"

#: Far more than any test takes on a busy machine.
LIMIT_S = 300.0
AGAIN_S = 10.0


def pytest_configure() -> None:
    """Lets programs under test hear signals that whoever started the tests ignores (nohup, `&`)."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)


@contextmanager
def limited(what: str) -> Iterator[None]:
    """Raises in whatever takes longer than `LIMIT_S`, and again until it gives up."""

    def late(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"{what} has not ended after {LIMIT_S:.0f} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """The test itself."""
    with limited(item.nodeid):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """What its fixtures do at the end."""
    with limited(f"the end of {item.nodeid}"):
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips or fails a test marked `peer` when what it needs is not installed."""
    if item.get_closest_marker("peer") is None:
        return
    missing = missing_peers()
    if not missing:
        return
    why = f"{', '.join(missing)} missing: {INSTALL_HINT}"
    if peers_required():
        pytest.fail(why, pytrace=False)
    pytest.skip(why)


@pytest.fixture(scope="session")
def peer_build_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where programs built from C are kept for the whole run."""
    return tmp_path_factory.mktemp("peer")


@pytest.fixture(scope="session")
def compiled_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of ours that is machine code in part: built once for all processes of a run."""
    if (lacking := missing()) and not peers_required():
        pytest.skip(lacking)
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    with (shared / "compiled.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        image = shared / "compiled"
        return image if image.exists() else build_compiled(image, COMPILED_VERSION)


@pytest.fixture
def c_daemon(tmp_path: Path, peer_build_folder: Path) -> Iterator[CDaemon]:
    """Debian's C daemon, running; a fresh store for each test. Mark the test `peer`."""
    with CDaemon(tmp_path / "peer", shim_folder=peer_build_folder) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def xsbench(peer_build_folder: Path) -> Path:
    """The load client written in C, built. Mark the test `peer`."""
    return build_xsbench(peer_build_folder)
