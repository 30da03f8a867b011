"""Every tool of xenstore-utils with every option, on the C daemon and on ours: the same bytes.

What `xenstore-control` prints is compared where both know the verb in the same words.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conformance.conftest import SERVERS, TOOL_TIMEOUT_S, running, tool_runner
from conformance.servers import Server
from peer.tools import versioned_bin

pytestmark = pytest.mark.peer

COMMANDS = (
    "write -s /t/a 1 /t/b 2",
    "write /t/odd",
    "write /t//x 1",
    "write rel v",
    r"write -R /t/raw \x41\000\t",
    "read -s /t/a",
    "read -p /t/a /t/b",
    "read /t/a /t/none",
    "read /t/raw",
    "read -R /t/raw",
    "read rel",
    "list -s /t",
    "list -p /t /local",
    "list /none",
    "ls",
    "ls -s /t",
    "ls -f /t",
    "ls -p /t",
    "ls -f -p /",
    "ls /none",
    "exists -s /t/a",
    "exists -p /t/a /t/none",
    "chmod -s /t/raw n0 b1",
    "chmod -u -r /t/raw r0",
    "chmod -r / r0",
    "chmod /t/raw x0",
    "chmod /t/raw n77",
    "chmod /none n0",
    "chmod /t/raw n0 r1 w2 b3",
    "ls -p -f /t",
    "rm -s /t/b",
    "rm /t/a /t/none",
    "rm /t/none/below",
    "rm -t /local/domain/0/rel",
    "rm /",
    "ls -f",
    "watch -n 1 /t",
    "watch -n 2 /t @releaseDomain",
    "control check",
    "control print hello",
    "control log on",
    "control log off",
    "control quota set nodes 1000",
    "control quota 77",
    "control live-update -s",
    "control",
)


def said(server: Server, command: str) -> tuple[int, str, str]:
    """What a tool returns and prints."""
    done = tool_runner(server)(*command.split(" "))
    return done.returncode, done.stdout, done.stderr


def test_every_option_gives_the_same(tmp_path: Path, peer_build_folder: Path) -> None:
    heard = []
    for name in SERVERS[:2]:
        (tmp_path / name).mkdir()
        with running(name, tmp_path / name, peer_build_folder) as server:
            heard.append([said(server, command) for command in COMMANDS])
    for command, theirs, ours in zip(COMMANDS, *heard, strict=True):
        assert ours == theirs, f"xenstore-{command}"


def test_xens_own_test_of_a_store(own_server: Server) -> None:
    folder = versioned_bin()
    if folder is None or not (folder / "test-xenstore").exists():
        pytest.skip("this Xen has no test-xenstore")
    done = subprocess.run(
        [str(folder / "test-xenstore"), "--iterations", "20"],
        env=own_server.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(": avg: ") == 12  # each test gives its time, or says what failed
