"""Guests and debuggers that make their host busy: there is a bound, and who ends it is heard."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from kernels.building import build_kernel
from machine.emulated import small_guests

from xenlive.kexec.elf import analyse_kernel
from xenlive.machine.emulated.lens import entries
from xenlive.machine.emulated.lens.entries import Entries
from xenlive.machine.emulated.lens.gdbpackets import encode_packet
from xenlive.machine.emulated.lens.gdbserver import GdbServer
from xenlive.machine.emulated.world import World

pytestmark = pytest.mark.peer


def test_memory_full_of_beginnings_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0

    def count(elf: memoryview) -> object:
        nonlocal looked_at
        looked_at += 1
        return analyse_kernel(elf)

    with World() as world:
        guest = world.add_guest(memory_bytes=16 << 20)
        guest.boot(build_kernel(small_guests.SPINS).read_bytes())
        seen = Entries(guest)
        guest.domain.space.load(8 << 20, b"\x7fELF" * (1 << 16))
        monkeypatch.setattr(entries, "analyse_kernel", count)
        seen._search()
    assert 0 < looked_at <= 4096


def test_a_slice_ends_when_a_signal_has_come() -> None:
    source = small_guests.kernel("1: hypercall 29, $0, $0\n jmp 1b")
    with World() as world:
        guest = world.add_guest(memory_bytes=16 << 20)
        guest.boot(build_kernel(source).read_bytes())
        world.pause()
        world.step()
        assert 0 < guest.vcpu.blocks < 1000


class Interrupted(Exception):
    """Somebody pressed Ctrl-C."""


class Impatient:
    """Waits for no debugger that takes nothing."""

    def watch(self, fd: int, function: Callable[[], object]) -> None:
        """Nothing runs."""

    def unwatch(self, fd: int) -> None:
        """Nothing runs."""

    def wait_for(self, fd: int, to_write: bool = False) -> None:
        """Whoever would wait until something can be written is interrupted."""
        if to_write:
            raise Interrupted


def test_a_debugger_that_takes_no_answers_can_be_interrupted() -> None:
    with World() as world:
        guest = world.add_guest(memory_bytes=16 << 20)
        guest.boot(build_kernel(small_guests.SPINS).read_bytes())
        server = GdbServer(guest, 0, Impatient())
        with socket.create_connection(("127.0.0.1", server.port)) as debugger:
            debugger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            debugger.sendall(encode_packet(b"m100000,1000") * 2000)
            with pytest.raises(Interrupted):
                server.wait_for_debugger()
        server.close()
