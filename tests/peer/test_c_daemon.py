"""The peers themselves: they start, answer Debian's tools, and are gone afterwards."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from peer.c_daemon import CDaemon, accepts
from peer.tools import client_tool, missing_peers, xenstore_control

pytestmark = pytest.mark.peer


def test_debian_tools_talk_to_the_daemon(c_daemon: CDaemon) -> None:
    environment = c_daemon.environment
    subprocess.run([client_tool("write"), "/a", "b"], env=environment, check=True)
    answer = subprocess.run(
        [client_tool("read"), "/a"], env=environment, check=True, capture_output=True, text=True
    )
    assert answer.stdout == "b\n"


def test_control_works_without_a_hypervisor(c_daemon: CDaemon) -> None:
    answer = subprocess.run(
        [xenstore_control(), "help"],
        env=c_daemon.environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "live-update" in answer.stdout


def test_stop_leaves_nothing_behind(tmp_path: Path, peer_build_folder: Path) -> None:
    daemon = CDaemon(tmp_path / "peer", shim_folder=peer_build_folder)
    daemon.start()
    pid = daemon.pid
    assert accepts(daemon.socket_path)
    daemon.stop()
    assert not daemon.socket_path.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_daemon_that_ends_at_once_says_why(tmp_path: Path, peer_build_folder: Path) -> None:
    daemon = CDaemon(tmp_path / "peer", shim_folder=peer_build_folder)
    with pytest.raises(RuntimeError, match="the daemon ended"):
        daemon.start(prefix=("false",))


def test_nothing_is_missing_here() -> None:
    assert missing_peers() == []
