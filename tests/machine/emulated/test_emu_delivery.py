"""Delivery where kernels seldom go: real mode, virtual-8086 mode, broken gates, stacks, tasks."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from xenlive.machine.emulated.processor.decode import (
    INT,
    MOV_TO_CR,
    RDMSR,
    SYSCALL,
    Instruction,
    decode,
)
from xenlive.machine.emulated.processor.delivery import Delivery, Event, inject
from xenlive.machine.emulated.processor.engine import Engine
from xenlive.machine.emulated.processor.exits import EngineHooks, Segment
from xenlive.machine.emulated.processor.faults import Fault
from xenlive.machine.emulated.stop import TRIPLE_FAULT, GuestStop

IDT, GDT, TSS, STACK, INNER = 0x1000, 0x2000, 0x3000, 0x8000, 0x9000
CODE32, DATA, CODE16 = 0x08, 0x10, 0x18


class Memory:
    """64 KiB of physical memory, and holes."""

    def __init__(self) -> None:
        self.bytes = bytearray(0x10000)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.bytes[address : address + size]).ljust(size, b"\xff")

    def read_u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def write(self, address: int, data: bytes) -> None:
        if address + len(data) <= len(self.bytes):
            self.bytes[address : address + len(data)] = data


class Kernel:
    """A processor in 32-bit protected mode with tables in memory."""

    def __init__(self) -> None:
        self.cpu = Engine(EngineHooks())
        self.memory = Memory()
        for index, high in enumerate((0, 0xCF9B00, 0xCF9300, 0x8F9B00, 0xCFF300)):
            low = 0xFFFF if high else 0
            self.memory.write(GDT + 8 * index, struct.pack("<II", low, high))
        self.cpu.set_segment("gdt", Segment(0, GDT, 39, 0))
        self.cpu.set_segment("idt", Segment(0, IDT, 0x7FF, 0))
        self.cpu.set_segment("tr", Segment(0x28, TSS, 0x67, 0x8B00))
        self.memory.write(TSS + 4, struct.pack("<II", INNER, DATA))
        self.cpu.set_segment("cs", Segment(CODE32, 0, 0xFFFFFFFF, 0xCF9B00))
        self.cpu.set_segment("ss", Segment(DATA, 0, 0xFFFFFFFF, 0xCF9300))
        self.cpu.set_privilege(0)
        self.cpu.set_reg("rsp", STACK)
        self.cpu.set_reg("rip", 0x1234)
        self.cpu.set_reg("eflags", 0x302)

    def gate(self, vector: int, kind: int, selector: int = CODE32, offset: int = 0x5678) -> None:
        """An entry of the IDT."""
        raw = struct.pack("<HHBBH", offset & 0xFFFF, selector, 0, kind, offset >> 16)
        self.memory.write(IDT + 8 * vector, raw)

    def frame(self, count: int, size: int = 4) -> list[int]:
        """The words on top of the stack."""
        at = self.cpu.reg("rsp") + self.cpu.reg("ss_base")
        raw = self.memory.read(at, count * size)
        return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]

    def deliver(self, event: Event) -> None:
        """One attempt."""
        Delivery(self.cpu, self.memory, event).deliver()

    def fault(self, event: Event) -> tuple[int, int]:
        """Vector and error of the fault that delivering ends with; nothing else changes."""
        before = self.cpu.save()
        with pytest.raises(Fault) as caught:
            self.deliver(event)
        assert self.cpu.save() == before
        return caught.value.vector, caught.value.error


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.cpu.close()


def test_an_interrupt_gate_turns_interrupts_off_and_a_trap_gate_does_not(kernel: Kernel) -> None:
    kernel.gate(32, 0x8E)
    kernel.deliver(Event(32, is_external=True))
    assert kernel.frame(3) == [0x1234, CODE32, 0x302]
    assert kernel.cpu.eflags == 0x2
    kernel.gate(33, 0x8F)
    kernel.cpu.set_reg("eflags", 0x202)
    kernel.deliver(Event(33, is_external=True))
    assert kernel.cpu.eflags == 0x202
    assert kernel.cpu.reg("rip") == 0x5678


def test_a_16_bit_gate_pushes_words_of_two_bytes(kernel: Kernel) -> None:
    kernel.gate(13, 0x86, CODE16)
    kernel.deliver(Event(13, 0x55))
    assert kernel.frame(4, 2) == [0x55, 0x1234, CODE32, 0x302]
    assert kernel.cpu.code_bits == 16


@pytest.mark.parametrize(
    ("kind", "selector", "expected"),
    [
        (0x0E, CODE32, (11, 32 * 8 + 3)),  # not present
        (0x8C, CODE32, (13, 32 * 8 + 3)),  # a call gate
        (0x00, CODE32, (13, 32 * 8 + 3)),
        (0x8E, 0, (13, 1)),  # a null selector
        (0x8E, DATA, (13, DATA + 1)),
        (0x8E, 0x100, (13, 0x101)),  # beyond the GDT
        (0x8E, 0x0C, (13, 0x0D)),  # in an LDT that is not there
    ],
)
def test_a_broken_gate_is_a_fault_and_changes_nothing(
    kernel: Kernel, kind: int, selector: int, expected: tuple[int, int]
) -> None:
    kernel.gate(32, kind, selector)
    assert kernel.fault(Event(32, is_external=True)) == expected


def test_a_software_interrupt_is_not_external(kernel: Kernel) -> None:
    kernel.gate(32, 0x0E)
    assert kernel.fault(Event(32, is_software=True)) == (11, 32 * 8 + 2)


def to_user(kernel: Kernel) -> None:
    kernel.cpu.set_segment("cs", Segment(0x2B, 0, 0xFFFFFFFF, 0xCFFB00))
    kernel.cpu.set_segment("ss", Segment(0x23, 0, 0xFFFFFFFF, 0xCFF300))
    kernel.cpu.set_privilege(3)


def test_the_inner_stack_comes_from_the_tss(kernel: Kernel) -> None:
    kernel.gate(14, 0x8E)
    to_user(kernel)
    kernel.deliver(Event(14, 7))
    assert kernel.cpu.reg("rsp") == INNER - 24
    assert kernel.frame(6) == [7, 0x1234, 0x2B, 0x302 | 1 << 16, STACK, 0x23]
    assert kernel.cpu.cpl == 0
    assert kernel.cpu.segment("ss").selector == DATA


@pytest.mark.parametrize(
    ("selector", "expected"),
    [(0, (10, 1)), (CODE32, (10, 9)), (0x20, (10, 0x21)), (0x100, (10, 0x101))],
)
def test_a_bad_inner_stack_is_an_invalid_tss(
    kernel: Kernel, selector: int, expected: tuple[int, int]
) -> None:
    kernel.gate(14, 0x8E)
    kernel.memory.write(TSS + 8, struct.pack("<I", selector))
    to_user(kernel)
    assert kernel.fault(Event(14, 7)) == expected


def test_a_tss_that_is_too_short(kernel: Kernel) -> None:
    kernel.gate(14, 0x8E)
    kernel.cpu.set_segment("tr", Segment(0x28, TSS, 8, 0x8B00))
    to_user(kernel)
    assert kernel.fault(Event(14, 7)) == (10, 0x29)


def test_virtual_8086_mode_leaves_its_segments_on_the_stack(kernel: Kernel) -> None:
    kernel.gate(13, 0x8E)
    to_user(kernel)
    kernel.cpu.set_reg("eflags", 0x20202)
    for value, name in enumerate(("es", "cs", "ss", "ds", "fs", "gs"), start=0x100):
        kernel.cpu.set_segment(name, Segment(value, value << 4, 0xFFFF, 0xF300))
    kernel.deliver(Event(13, 0))
    frame = kernel.frame(10)
    assert frame[:3] == [0, 0x1234, 0x101]
    assert frame[4:] == [STACK, 0x102, 0x100, 0x103, 0x104, 0x105]
    assert kernel.cpu.segment("gs") == Segment(0, 0, 0, 0)
    assert not kernel.cpu.eflags & 0x20000


def test_real_mode_has_a_table_of_its_own(kernel: Kernel) -> None:
    kernel.cpu.set_reg("cr0", 0x10)
    kernel.cpu.set_segment("idt", Segment(0, 0, 0x3FF, 0))
    kernel.cpu.set_segment("cs", Segment(0x100, 0x1000, 0xFFFF, 0x9B00))
    kernel.cpu.set_segment("ss", Segment(0x200, 0x2000, 0xFFFF, 0x9300))
    kernel.memory.write(0x21 * 4, struct.pack("<HH", 0x55, 0x700))
    kernel.deliver(Event(0x21, is_software=True, next_rip=0x1236))
    assert kernel.frame(3, 2) == [0x1236, 0x100, 0x302]
    assert (kernel.cpu.reg("rip"), kernel.cpu.reg("cs_base")) == (0x55, 0x7000)
    assert kernel.cpu.code_bits == 16


def test_a_task_gate_for_double_faults_that_leads_to_no_task(kernel: Kernel) -> None:
    kernel.gate(8, 0x85, 0x28)
    with pytest.raises(GuestStop) as caught:
        inject(kernel.cpu, kernel.memory, Event(8, 0))
    assert caught.value.kind == TRIPLE_FAULT


def test_faults_end_in_a_double_fault_or_the_guests_end(kernel: Kernel) -> None:
    kernel.gate(8, 0x8E)
    inject(kernel.cpu, kernel.memory, Event(13, 0x18))  # no gate for #GP
    assert kernel.frame(2) == [0, 0x1234]
    kernel.gate(8, 0x0E)
    with pytest.raises(GuestStop) as caught:
        inject(kernel.cpu, kernel.memory, Event(14, 2))
    assert caught.value.kind == TRIPLE_FAULT
    assert "#PF" in caught.value.what


@pytest.mark.parametrize(
    ("code", "bits", "expected"),
    [
        ("cd80", 32, Instruction(INT, 2, 0x80)),
        ("66cd80", 32, Instruction(INT, 3, 0x80)),
        ("0f32", 64, Instruction(RDMSR, 2)),
        ("480f05", 64, Instruction(SYSCALL, 3, 0, 0x48)),
        ("480f05", 32, Instruction(0, 0)),  # dec eax, and something else
        ("410f22c7", 64, Instruction(MOV_TO_CR, 4, 0xC7, 0x41)),
        ("480f", 64, Instruction(0, 0)),
        ("cd", 64, Instruction(0, 0)),
        ("", 64, Instruction(0, 0)),
        ("90", 64, Instruction(0, 0)),
        ("66" * 15, 64, Instruction(0, 0)),
    ],
)
def test_instructions_of_exits(code: str, bits: int, expected: Instruction) -> None:
    assert decode(bytes.fromhex(code), bits) == expected


def test_registers_of_instructions() -> None:
    found = decode(bytes.fromhex("410f22e7"), 64)
    assert (found.register, found.special_register) == (15, 4)
    assert decode(bytes.fromhex("0f01d9"), 64).is_hypercall
    assert decode(bytes.fromhex("0f01c1"), 32).is_hypercall
    assert not decode(bytes.fromhex("0f01f0"), 32).is_hypercall
