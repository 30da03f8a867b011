"""The processor by itself: runs, exits, budgets, holes, hooks, saved states."""

from __future__ import annotations

import ctypes
import mmap
import signal
import sys
from collections.abc import Iterator

import pytest

from xenlive.machine.emulated.processor import counter, exits, library
from xenlive.machine.emulated.processor.cpustate import FLOAT_SIZE, FLOAT_SPACE, FLOATS
from xenlive.machine.emulated.processor.engine import Engine
from xenlive.machine.emulated.processor.exits import EmulatorError, EngineHooks, Exit, Segment

RAM_BYTES = 1 << 20
CODE = 0x1000


class Asked(EngineHooks):
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def read_tsc(self) -> int:
        return 0x1_2345_6789

    def read_port(self, port: int, size: int) -> int:
        self.asked.append(("in", port, size))
        return 0x42

    def write_port(self, port: int, size: int, value: int) -> None:
        self.asked.append(("out", port, size, value))

    def read_hole(self, address: int, size: int) -> int:
        self.asked.append(("load", address, size))
        return super().read_hole(address, size)

    def write_hole(self, address: int, size: int, value: int) -> None:
        self.asked.append(("store", address, size, value))


class Bench:
    """An engine with a MiB of RAM at address 0."""

    def __init__(self) -> None:
        self.hooks = Asked()
        self.engine = Engine(self.hooks)
        self.ram = mmap.mmap(-1, RAM_BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        self.engine.map(0, RAM_BYTES, self.address)

    def put(self, code: str, at: int = CODE) -> None:
        """Puts instructions in memory, and the processor before them."""
        data = bytes.fromhex(code)
        self.ram[at : at + len(data)] = data
        self.engine.wrote(at, len(data))
        self.engine.reset()
        self.engine.set_reg("rip", at)

    def run(self, code: str, budget: int = 1000, **registers: int) -> Exit:
        """Runs instructions with some registers set."""
        self.put(code)
        for name, value in registers.items():
            self.engine.set_reg(name, value)
        return self.engine.run(budget)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.engine.close()


@pytest.mark.parametrize(
    ("code", "expected", "offset"),
    [
        ("90 f4", Exit(exits.HALT), 1),
        ("90 0fa2", Exit(exits.CPUID), 1),
        ("0f32", Exit(exits.READ_MSR), 0),
        ("90 0f30", Exit(exits.WRITE_MSR), 1),
        ("0f22c0", Exit(exits.WRITE_CR, 0), 0),
        ("0f22e0", Exit(exits.WRITE_CR, 4), 0),
        ("0f06", Exit(exits.WRITE_CR, 0), 0),
        ("0f01f0", Exit(exits.WRITE_CR, 0), 0),
        ("0f23f8", Exit(exits.WRITE_DR, 7), 0),
        ("cc", Exit(exits.SOFT_INTERRUPT), 0),
        ("90 cd80", Exit(exits.SOFT_INTERRUPT), 1),
        ("0f0b", Exit(exits.EXCEPTION, 6), 0),
        ("0f01d9", Exit(exits.EXCEPTION, 6), 0),
        ("0f01c1", Exit(exits.EXCEPTION, 6), 0),
        ("31c9 f7f1", Exit(exits.EXCEPTION, 0), 2),
        ("b810000000 8ed8", Exit(exits.EXCEPTION, 13, 0x10), 5),
        ("0f01c8", Exit(exits.EXCEPTION, 6), 0),  # monitor
        ("0f01c9", Exit(exits.EXCEPTION, 6), 0),  # mwait
        ("f1", Exit(exits.EXCEPTION, 6), 0),  # icebp
        ("0f01d8", Exit(exits.EXCEPTION, 6), 0),  # vmrun: the SVM is ours
    ],
)
def test_an_exit_is_exact(bench: Bench, code: str, expected: Exit, offset: int) -> None:
    found = bench.run(code)
    assert found._replace(address=0) == expected
    assert bench.engine.reg("rip") == CODE + offset


@pytest.mark.parametrize(
    ("code", "kind"), [("90 0f05", exits.SYSCALL), ("90 0f34", exits.SYSENTER)]
)
def test_system_calls_are_exits_before_they_happen(bench: Bench, code: str, kind: str) -> None:
    assert bench.run(code).kind == kind
    assert bench.engine.reg("rip") == CODE + 1


def test_into_sees_the_overflow_flag(bench: Bench) -> None:
    assert bench.run("ce f4", eflags=0x2).kind == exits.HALT
    assert bench.run("ce f4", eflags=0x802).kind == exits.SOFT_INTERRUPT
    assert bench.engine.eflags == 0x802


def test_flags_come_back_computed(bench: Bench) -> None:
    bench.run("31c0 83e801 f4")
    assert bench.engine.eflags == 0x97  # borrow, parity, adjust, sign


def test_a_budget_is_exact(bench: Bench) -> None:
    found = bench.run("41 ebfd", budget=777, rcx=0)  # inc ecx; jmp back
    assert found.kind == exits.BUDGET
    assert bench.engine.executed == 777
    assert bench.engine.reg("rcx") == 777
    assert bench.engine.run(3).kind == exits.BUDGET
    assert bench.engine.reg("rcx") == 780


def test_counting_in_python_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "b905000000 e806000000 49 75f8 0f31 ebfc c3"
    seen = []
    for native in (True, False):
        if not native:
            monkeypatch.setattr(counter, "_executable_page", lambda: None)
        bench = Bench()
        bench.put(code)
        bench.engine.set_reg("rsp", 0x8000)
        exits_seen = [bench.engine.run(budget) for budget in (1, 2, 7, 30)]
        seen.append((exits_seen, bench.engine.save()))
        bench.engine.close()
    assert seen[0] == seen[1]


def test_single_instructions(bench: Bench) -> None:
    bench.put("40 40 40 f4")
    for count in (1, 2):
        assert bench.engine.run(1000, is_step=True).kind == exits.STOPPED
        assert (bench.engine.reg("rip"), bench.engine.reg("rax")) == (CODE + count, count)
    assert bench.engine.run(1000).kind == exits.HALT
    assert bench.engine.reg("rax") == 3


def test_a_breakpoint_stops_before_it(bench: Bench) -> None:
    bench.put("40 40 40 ebfb")
    bench.engine.breaks.add(CODE + 1)
    assert bench.engine.run(1000) == Exit(exits.BREAKPOINT, address=CODE + 1)
    assert (bench.engine.reg("rip"), bench.engine.reg("rax")) == (CODE + 1, 1)
    bench.engine.breaks.remove(CODE + 1)
    assert bench.engine.run(10).kind == exits.BUDGET


def test_ports_ask(bench: Bench) -> None:
    bench.run("e470 e671 66e570 f4", rax=5)
    assert bench.hooks.asked == [("in", 0x70, 1), ("out", 0x71, 1, 0x42), ("in", 0x70, 2)]


def test_the_counter_of_time_asks(bench: Bench) -> None:
    bench.run("0f31 f4")
    assert (bench.engine.reg("rax"), bench.engine.reg("rdx")) == (0x23456789, 1)
    bench.run("0f01f9 f4")
    assert (bench.engine.reg("rax"), bench.engine.reg("rcx")) == (0x23456789, 0)


def test_holes_ask_and_can_be_filled(bench: Bench) -> None:
    code = "a100002000 a304002000 f4"
    assert bench.run(code).kind == exits.HALT
    assert bench.engine.reg("rax") == 0xFFFFFFFF
    assert bench.hooks.asked == [("load", 0x200000, 4), ("store", 0x200004, 4, 0xFFFFFFFF)]
    bench.engine.map(0x200000, 0x1000, bench.address + 0x5000)
    bench.ram[0x5000:0x5004] = b"abcd"
    bench.run(code)
    assert bench.ram[0x5000:0x5008] == b"abcdabcd"
    bench.engine.unmap(0x200000, 0x1000)
    bench.hooks.asked.clear()
    bench.run(code)
    assert len(bench.hooks.asked) == 2


def test_what_can_only_be_read_swallows_stores(bench: Bench) -> None:
    bench.engine.map(0x200000, 0x1000, bench.address + 0x5000, writable=False)
    bench.ram[0x5000:0x5004] = b"abcd"
    bench.run("a100002000 a304002000 a104002000 f4")
    assert bench.ram[0x5000:0x5008] == b"abcd\0\0\0\0"
    assert bench.hooks.asked == [("store", 0x200004, 4, int.from_bytes(b"abcd", "little"))]
    assert bench.engine.reg("rax") == 0


def test_a_page_out_of_the_middle(bench: Bench) -> None:
    bench.engine.unmap(0x80000, 0x1000)
    bench.run("a100000800 a30000080f 8b0dfcff0700 8b1500100800 f4")
    assert bench.hooks.asked[0] == ("load", 0x80000, 4)
    assert bench.engine.reg("rcx") == bench.engine.reg("rdx") == 0


def test_touching_many_holes_goes_on(bench: Bench) -> None:
    # mov esi, 16M; 1: mov eax, [esi]; add esi, 4096; cmp esi, 32M; jb 1b; hlt
    bench.put("be00000001 8b06 81c600100000 81fe00000002 72f0 f4")
    found = bench.engine.run(1 << 20)
    while found.kind == exits.BUDGET:  # each time there were too many
        found = bench.engine.run(1 << 20)
    assert found.kind == exits.HALT
    assert len(bench.hooks.asked) == 4096


def test_a_jump_into_a_hole_is_an_invalid_opcode(bench: Bench) -> None:
    assert bench.run("b800003000 ffe0")[:2] == (exits.EXCEPTION, 6)
    assert bench.engine.reg("rip") == 0x300000


def test_what_a_hook_raises_leaves_through_run(bench: Bench) -> None:
    def refuse(port: int, size: int) -> int:
        raise LookupError("no port")

    bench.hooks.read_port = refuse  # type: ignore[method-assign]
    with pytest.raises(LookupError, match="no port"):
        bench.run("e470 f4")
    assert bench.run("90 f4").kind == exits.HALT


def test_an_interrupt_from_the_keyboard_leaves_through_run(bench: Bench) -> None:
    bench.hooks.read_port = lambda port, size: signal.raise_signal(signal.SIGINT) or 0  # type: ignore
    with pytest.raises(KeyboardInterrupt):
        bench.run("e470 ebfc", budget=1000)


def test_a_saved_state_goes_on(bench: Bench) -> None:
    bench.run("41 ebfd", budget=10, rcx=0)
    saved = bench.engine.save()
    bench.engine.run(10)
    later = bench.engine.save()
    bench.engine.restore(saved)
    assert bench.engine.reg("rcx") == 10
    bench.engine.run(10)
    assert bench.engine.save() == later
    other = Bench()
    other.put("41 ebfd")
    other.engine.restore(saved)
    other.engine.run(10)
    assert other.engine.save() == later
    other.engine.close()


def test_a_saved_state_has_nothing_of_the_hosts_stack(bench: Bench) -> None:
    """Behind the 10 bytes of a register of the x87 unit: arithmetic leaves addresses there."""
    bench.engine.floats.write("st0", b"\x11" * FLOAT_SIZE)
    before = bench.engine.save()
    assert before[FLOATS[0] :][:FLOAT_SPACE] == b"\x11" * FLOAT_SIZE + bytes(6)
    stained = bytearray(before)
    for at in FLOATS:
        stained[at + FLOAT_SIZE : at + FLOAT_SPACE] = b"\xee" * (FLOAT_SPACE - FLOAT_SIZE)
    bench.engine.restore(bytes(stained))
    assert bench.engine.save() == before


def test_control_registers_take_effect_when_set(bench: Bench) -> None:
    bench.put("f4")
    bench.engine.set_reg("cr4", 0x20)
    bench.engine.set_reg("efer", 0x100)
    bench.engine.set_reg("cr0", 0x80000011)
    assert bench.engine.in_long_mode
    assert bench.engine.reg("efer") == 0x500
    assert bench.engine.paging().levels == 4


def test_segments_and_privilege(bench: Bench) -> None:
    bench.put("0f20c0 f4")  # mov eax, cr0: not for users
    bench.engine.set_segment("cs", Segment(0x33, 0, 0xFFFFFFFF, 0x00CFFB00))
    bench.engine.set_privilege(3)
    assert bench.engine.cpl == 3
    assert bench.engine.run(10)[:3] == (exits.EXCEPTION, 13, 0)
    assert bench.engine.segment("cs") == Segment(0x33, 0, 0xFFFFFFFF, 0x00C0FB00)


def test_a_hostile_page_table_does_not_reach_the_engines_own_page(bench: Bench) -> None:
    # Long mode with its tables where the VMCB is: no entry is present there, and none changes.
    bench.put("f4")
    bench.engine.set_reg("cr4", 0x20)
    bench.engine.set_reg("efer", 0x100)
    bench.engine.set_reg("cr3", 1 << 44)
    bench.engine.set_reg("cr0", 0x80000011)
    found = bench.engine.run(10)
    assert (found.kind, found.vector, found.address) == (exits.EXCEPTION, 14, CODE)
    bench.engine.set_reg("cr3", (1 << 44) + 0x1000)
    found = bench.engine.run(10)
    assert (found.kind, found.vector) == (exits.EXCEPTION, 14)
    assert bench.run("90 0f32").kind == exits.READ_MSR


def test_the_missing_emulator_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unicorn", None)
    with pytest.raises(EmulatorError, match=r"pip install 'xenlive\[emulator\]'"):
        Engine(EngineHooks())


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "VERSION", "9.9.9")
    with pytest.raises(EmulatorError, match=r"9\.9\.9 is needed"):
        Engine(EngineHooks())
