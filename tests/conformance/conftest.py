"""One suite, every server: each test here runs once against each of `SERVERS`.

`server` is shared by the tests of a module; a test keeps to `place`, a path of its own. A test
that updates or loads a server takes `own_server`, which nobody else uses.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conformance.servers import CServer, Server, XenliveServer
from peer.tools import client_tool, missing_peers, peers_required, xenstore_control

from xenlive.client.blocking import Xenstore

SERVERS = ("c-daemon", "xenlive", "compiled")
TOOL_TIMEOUT_S = 30.0

_numbers = itertools.count(1)

Run = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def running(
    name: str, folder: Path, build_folder: Path, image: Path | None = None
) -> Iterator[Server]:
    """The server `name`, of `image` if that is given, started in `folder` and ended afterwards."""
    if missing_peers() and not peers_required():
        pytest.skip("Debian's Xenstore tools are missing")
    server: Server
    if name == "c-daemon":
        server = CServer(folder / "run", shim_folder=build_folder)
    else:
        server = XenliveServer(folder / "run", image)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def image_of(request: pytest.FixtureRequest) -> Path | None:
    """The image that the server which `request` names is to run; None is its own."""
    return request.getfixturevalue("compiled_image") if request.param == "compiled" else None


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    peer_build_folder: Path,
) -> Iterator[Server]:
    """A server that the module's tests share."""
    folder = tmp_path_factory.mktemp(str(request.param))
    with running(request.param, folder, peer_build_folder, image_of(request)) as started:
        yield started


@pytest.fixture(params=SERVERS)
def own_server(
    request: pytest.FixtureRequest, tmp_path: Path, peer_build_folder: Path
) -> Iterator[Server]:
    """A server for one test alone."""
    with running(request.param, tmp_path, peer_build_folder, image_of(request)) as started:
        yield started


@pytest.fixture
def place() -> str:
    """A path that no other test uses; the node is not made."""
    return f"/place/{next(_numbers)}"


@pytest.fixture
def store(server: Server) -> Iterator[Xenstore]:
    """Our client, connected to the shared server."""
    with Xenstore.connect(server.socket_path, timeout_s=TOOL_TIMEOUT_S) as connected:
        yield connected


@pytest.fixture
def run(server: Server) -> Run:
    """Runs one of Debian's tools against the shared server: `run("ls", "/a")`."""
    return tool_runner(server)


def tool_runner(server: Server) -> Run:
    """A function that runs Debian's `xenstore-NAME` with arguments against `server`."""

    def run_tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        program = xenstore_control() if name == "control" else client_tool(name)
        return subprocess.run(
            [str(program), *arguments],
            env=server.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            check=False,
        )

    return run_tool
