"""A private Xenstore for what is not Python: Debian's tools, and a whole kernel as the guest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from kernels.asker.asker_kernel import asker_kernel
from peer.tools import client_tool

from xenlive.cli.root import run
from xenlive.testing import Guest, PrivateXenstore

PATIENCE_S = 60.0


@pytest.mark.peer
def test_debian_tools_find_it(xenstore: PrivateXenstore, xenstore_guest: Guest) -> None:
    def tool(name: str, *words: str) -> str:
        command = [str(client_tool(name)), *words]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        return ended.stdout

    tool("write", "/a/b", "hello")
    assert xenstore.client.read("/a/b") == b"hello"
    assert tool("ls", "/a") == 'b = "hello"\n'
    assert tool("list", "/local/domain") == "1\n"
    xenstore_guest.store.write("data/x", "from the guest")
    assert tool("read", "/local/domain/1/data/x") == "from the guest\n"


def test_a_kernel_is_a_guest(xenstore: PrivateXenstore, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.elf"
    kernel.write_bytes(asker_kernel())
    with xenstore.client.watching("/local/domain/1/data/x") as events:
        script = "node domid;write data/x hello;node data/x;node /secret"
        xenstore.client.write("/secret", "x")
        words = ["boot", str(kernel), "--xenstore", str(xenstore.rundir), "--cmdline", script]
        assert run(words) == 0
        assert events.next(PATIENCE_S) is not None
        assert events.next(PATIENCE_S) is not None
    assert not xenstore.client.is_domain_introduced(1)
