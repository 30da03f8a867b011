"""A real Mini-OS mounts a directory, watches nodes and enters itself by kexec.

Runs only where somebody has built one: XENLIVE_MINIOS names the file. It is Mini-OS' own source
with `tests/kernels/minios/mounts.c` as its application, which says how; none of it is kept here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenlive.machine.emulated.backends.ninepfs import Share
from xenlive.machine.emulated.world import WORLD_PAUSED, Guest, World

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif("XENLIVE_MINIOS" not in os.environ, reason="XENLIVE_MINIOS is not set"),
]

MADE = "".join(f"line {n} that Mini-OS wrote\n" for n in range(1000))
MOUNTED = [
    "app: read 12 of 12 bytes: from outside",
    "app: wrote and read back: line 0 that Mini-OS wrote",
]


class MiniOs:
    """A Mini-OS that was booted with `cmdline`, and what its application said."""

    def __init__(self, directory: Path) -> None:
        self.image = Path(os.environ["XENLIVE_MINIOS"]).read_bytes()
        self.directory = directory
        (directory / "hello").write_text("from outside")
        (directory / "kernel").write_bytes(self.image)
        self.said = bytearray()
        self.world = World()
        self.guest: Guest = self.world.add_guest("mini-os", 32 << 20, self.said.extend)
        self.guest.share(Share(str(directory), "share0"))

    def boot(self, cmdline: str = "") -> None:
        """Stands at its entry."""
        self.guest.boot(self.image, cmdline)

    def run_until(self, there: Callable[[], bool]) -> None:
        """Runs until it has said something."""
        assert self.world.run(until=there) == WORLD_PAUSED, self.said.decode()

    @property
    def lines(self) -> list[str]:
        """What its application said."""
        return re.findall("^app: .*", self.said.decode().replace("\r", ""), re.MULTILINE)


@pytest.fixture
def minios(tmp_path: Path) -> Iterator[MiniOs]:
    made = MiniOs(tmp_path)
    yield made
    made.world.close()


def test_it_mounts_a_directory_and_powers_off(minios: MiniOs) -> None:
    minios.boot()
    minios.world.run()
    stop = minios.guest.stop
    assert stop is not None
    assert (stop.kind, stop.code) == ("shutdown", 0), minios.said.decode()
    assert minios.lines == [*MOUNTED, "app: done"]
    assert (minios.directory / "made").read_text() == MADE


def test_it_watches_a_node(minios: MiniOs) -> None:
    minios.boot("watch")
    commands = ["app: no command yet"]
    for command in ("sing", "dance", "stop"):
        minios.run_until(lambda: minios.lines == [*MOUNTED, *commands])
        minios.world.toolstack.write("/local/domain/1/data/command", command)
        commands.append(f"app: command {command}")
    minios.world.run()
    assert minios.lines == [*MOUNTED, *commands, "app: done"]


def test_it_enters_itself(minios: MiniOs) -> None:
    minios.boot("kexec 3")
    minios.run_until(lambda: b"app: done" in minios.said)
    entered = [*MOUNTED, f"app: kexec of {len(minios.image)} bytes"]
    assert minios.lines == [*entered * 3, *MOUNTED, "app: done"]
    assert minios.said.count(b"Xen Minimal OS") == 4
    assert (minios.directory / "made").read_text() == MADE
