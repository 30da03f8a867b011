"""Guests and debuggers that make their host busy: there is a bound, and who ends it is heard."""

from __future__ import annotations

import resource
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from kernels.building import build_kernel
from machine.emulated import small_guests

from xenlive.kexec.elf import analyse_kernel
from xenlive.machine.emulated.lens import entries
from xenlive.machine.emulated.lens.entries import Entries
from xenlive.machine.emulated.lens.gdbpackets import encode_packet
from xenlive.machine.emulated.lens.gdbserver import GdbServer
from xenlive.machine.emulated.processor import vcpu
from xenlive.machine.emulated.stop import SPIN
from xenlive.machine.emulated.world import SLICE_BLOCKS, World

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

    def wait_for(self, *fds: int, to_write: bool = False) -> list[int]:
        """Whoever would wait until something can be written is interrupted."""
        if to_write:
            raise Interrupted
        return select.select(fds, [], [])[0]


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


COSTLY = {
    "stores into its own code": "1: incl 2f+1\n2: movl $0, %eax\n jmp 1b",
    "a port": "1: inb $0x70\n jmp 1b",
    "a hole": "1: movl 0xf0000000, %eax\n jmp 1b",
    "many holes": "1: movl (%ebx), %eax\n addl $4096, %ebx\n andl $0xf7ffffff, %ebx\n jmp 1b",
    "its local APIC": "1: movl 0xfee00020, %eax\n jmp 1b",
    "CPUID": "1: cpuid\n jmp 1b",
}


@pytest.mark.parametrize("what", COSTLY)
def test_what_costs_more_than_a_block_counts_for_more(what: str) -> None:
    limit = 200_000_000 if "code" in what else 3_000_000
    begin = "movl $0xf0000000, %ebx\n"
    with World() as world:
        guest = world.add_guest(memory_bytes=16 << 20, spin_limit=limit)
        guest.boot(build_kernel(small_guests.kernel(begin + COSTLY[what])).read_bytes())
        world.run()
        assert guest.stop is not None
        assert guest.stop.kind == SPIN
        assert guest.vcpu.blocks < limit / 50


def test_a_guest_of_costly_blocks_leaves_its_turn_to_others() -> None:
    zeros = small_guests.kernel("jmp 0x400000")  # two bytes an instruction, none of them a jump
    with World() as world:
        guest = world.add_guest(memory_bytes=64 << 20)
        guest.boot(build_kernel(zeros).read_bytes())
        world.step()
        assert guest.stop is None
        assert 0 < guest.vcpu.blocks < SLICE_BLOCKS // 2


def test_so_does_one_of_many_short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an interrupt waited that it does not take: its runs are of some blocks each."""
    monkeypatch.setattr(vcpu, "_RUN_MAX", 10)
    zeros = small_guests.kernel("jmp 0x400000")
    with World() as world:
        guest = world.add_guest(memory_bytes=64 << 20)
        guest.boot(build_kernel(zeros).read_bytes())
        guest.vcpu.run(4000)
        assert 0 < guest.vcpu.blocks < 3000


def test_what_is_translated_has_a_bound() -> None:
    """Code that runs once, for ever: its host's memory does not grow with it."""
    zeros = small_guests.kernel("jmp 0x400000")
    with World() as world:
        guest = world.add_guest(memory_bytes=64 << 20)
        guest.boot(build_kernel(zeros).read_bytes())
        before_pages = resident_pages()
        for _ in range(3):
            world.step()
        assert (resident_pages() - before_pages) * resource.getpagesize() < 220 << 20


def resident_pages() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_a_signal_ends_the_middle_of_a_run() -> None:
    with World() as world:
        guest = world.add_guest(memory_bytes=16 << 20)
        guest.boot(build_kernel(small_guests.kernel(COSTLY["a port"])).read_bytes())
        before = signal.signal(signal.SIGUSR1, lambda *_: world.pause())
        hooks = guest.vcpu.engine._hooks
        read = hooks.read_port

        def read_port(port: int, size: int) -> int:
            signal.raise_signal(signal.SIGUSR1)
            return read(port, size)

        hooks.read_port = read_port  # type: ignore[method-assign]
        try:
            world.step()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert 0 < guest.vcpu.blocks < 20


def test_changes_of_a_scattered_memory_map_end_a_turn() -> None:
    """A shared page that moves around costs milliseconds each time, in memory of many parts."""
    moves = small_guests.kernel("1: share\n addl $16, %esp\n jmp 1b")
    with World() as world:
        guest = world.add_guest(memory_bytes=16 << 20)
        guest.boot(build_kernel(moves).read_bytes())
        world.step()
        blocks = guest.vcpu.blocks
        assert blocks > 10_000
        for _ in range(200):
            guest.vcpu.engine.effort.add_map_change(1600)
        world.step()
        assert guest.stop is None
        assert 0 < guest.vcpu.blocks - blocks < 10
