"""GRUB's PVH image from Debian: a 32-bit kernel that nobody here wrote, by `xenlive boot`."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from kernels.debian import packages

from xenlive.machine.emulated.lens import report
from xenlive.machine.emulated.world import WORLD_ENDED, WORLD_PAUSED, World

pytestmark = pytest.mark.peer

SECOND_NS = 1_000_000_000


def test_it_takes_typed_commands_and_halts() -> None:
    image = packages.require(packages.GRUB, "grub-xen-host")
    seen = bytearray()
    with World() as world:
        guest = world.add_guest("grub", 128 << 20, seen.extend)
        guest.boot(image.read_bytes())

        def wait_for(text: bytes) -> str:
            limit_ns = world.clock.now_ns + 60 * SECOND_NS
            assert world.run(until=lambda: text in seen, until_ns=limit_ns) == WORLD_PAUSED, seen
            found = seen.decode("latin-1")
            seen.clear()
            return found

        wait_for(b"grub> ")
        # The key's echo comes with it; what a command writes, after it.
        guest.console.type(b"echo it says $grub_cpu $grub_platform\r")
        assert "\nit says i386 xen_pvh" in wait_for(b"grub> ").replace("\r", "\n")
        guest.console.type(b"ls\r")
        assert "(memdisk)" in wait_for(b"grub> ")
        guest.console.type(b"no-such-command\r")
        assert "can't find command" in wait_for(b"grub> ")
        guest.console.type(b"halt\r")
        assert world.run(until_ns=world.clock.now_ns + 60 * SECOND_NS) == WORLD_ENDED
        assert guest.stop is not None
        assert report.exit_code(guest.stop) == 0


def test_the_command_boots_it() -> None:
    image = packages.require(packages.GRUB, "grub-xen-host")
    command = [sys.executable, "-m", "xenlive", "boot", str(image), "--memory", "128M"]
    typed = b"echo typed $grub_platform\nhalt\n"
    done = subprocess.run(command, input=typed, capture_output=True, timeout=120)
    assert re.search(rb"[\r\n]typed xen_pvh", done.stdout), done
    assert (done.returncode, done.stderr) == (0, b"")


def test_two_runs_are_the_same() -> None:
    image = packages.require(packages.GRUB, "grub-xen-host")

    def boot() -> tuple[bytes, int, int, list[object]]:
        seen = bytearray()
        with World() as world:
            guest = world.add_guest("grub", 128 << 20, seen.extend)
            guest.boot(image.read_bytes())
            world.run(until=lambda: b"grub> " in seen, until_ns=60 * SECOND_NS)
            return bytes(seen), world.clock.now_ns, guest.vcpu.blocks, list(guest.vcpu.recent)

    assert boot() == boot()
