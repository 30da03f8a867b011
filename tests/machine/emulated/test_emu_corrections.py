"""Exceptions as a processor raises them, where the emulator says something else.

AMD64 Architecture Programmer's Manual, volume 2, sections 8.2.8, 8.2.13 and 8.2.14.
"""

from __future__ import annotations

import random

import pytest

from xenlive.machine.emulated.processor.corrections import corrected, may_be_wrong
from xenlive.machine.emulated.processor.engine import Engine
from xenlive.machine.emulated.processor.exits import EngineHooks, Segment

UD, NM, SS, GP, PF = 6, 7, 12, 13, 14
HIGH = 0x8000000040000000
EM, TS, OSFXSR = 1 << 2, 1 << 3, 1 << 9
DATA, DOWN = 0xC09300, 0xC09700


class Cpu:
    """What `corrected` asks of a processor."""

    def __init__(self, bits: int, **registers: int) -> None:
        self.code_bits = bits
        self.registers = registers
        self.segments = dict.fromkeys(
            ("cs", "ds", "es", "ss", "fs", "gs"), Segment(0x10, 0, 0xFFFFFFFF, DATA)
        )

    def reg(self, name: str) -> int:
        return self.registers.get(name, 0)

    def segment(self, name: str) -> Segment:
        return self.segments[name]


def right(cpu: Cpu, code: str, vector: int, error: int = 0, address: int = 0) -> tuple[int, int]:
    return corrected(cpu, bytes.fromhex(code), vector, error, address)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        ("8b0424", SS),  # mov (%rsp), %eax
        ("8b4500", SS),  # mov 0(%rbp), %eax
        ("418b0424", GP),  # (%r12)
        ("418b4500", GP),  # 0(%r13)
        ("8b00", GP),  # (%rax)
        ("64 8b0424", GP),  # %fs:(%rsp)
        ("2e 8b0424", SS),  # %cs:(%rsp): the prefix is not heard
        ("36 8b00", GP),  # %ss:(%rax)
        ("0fb60424", SS),  # movzbl (%rsp), %eax
        ("8b04d4", SS),  # (%rsp,%rdx,8)
        ("8b04dd 00000000", GP),  # 0(,%rbx,8)
        ("f4", GP),
        ("", GP),
    ],
)
def test_an_address_by_the_stack_that_is_none(code: str, vector: int) -> None:
    cpu = Cpu(64, **dict.fromkeys(("rax", "rsp", "rbp", "r12", "r13"), HIGH))
    assert right(cpu, code, GP) == (vector, 0)
    assert right(cpu, code, GP, 0x18) == (GP, 0x18)


def test_a_stack_that_is_good_gets_what_it_got() -> None:
    assert right(Cpu(64, rsp=0x1000), "8b0424", GP) == (GP, 0)


@pytest.mark.parametrize(
    ("code", "segment", "vector"),
    [
        ("65 8b02", "gs", GP),
        ("8b02", "ds", GP),
        ("8b0424", "ss", SS),
        ("8b4500", "ss", SS),
        ("36 8b02", "ss", SS),
        ("a1 00000080", "ds", GP),
        ("26 a1 00000080", "es", GP),
    ],
)
def test_a_limit_that_was_passed(code: str, segment: str, vector: int) -> None:
    cpu = Cpu(32, rdx=0xC0000000, rsp=0xC0000000, rbp=0xC0000000)
    assert right(cpu, code, PF, 2, 0xC0000000) == (PF, 2)
    for wrong in (Segment(0x10, 0, 0x7FFFFFFF, DATA), Segment(0, 0, 0, 0)):
        cpu.segments[segment] = wrong
        assert right(cpu, code, PF, 2, 0xC0000000) == (vector, 0)
    assert right(cpu, code, PF, 0x10, 0xC0000000) == (PF, 0x10)  # its own bytes are missing


def test_a_segment_that_grows_down() -> None:
    cpu = Cpu(32)
    cpu.segments["ds"] = Segment(0x10, 0x1000, 0xFFF, DOWN)
    assert right(cpu, "8b02", PF, 0, 0x2000) == (PF, 0)
    assert right(cpu, "8b02", PF, 0, 0x1FFF) == (GP, 0)


@pytest.mark.parametrize(
    ("code", "cr0", "cr4", "vector"),
    [
        ("0f6fc0", TS, 0, NM),  # movq %mm0, %mm0
        ("0f6fc0", TS | EM, 0, UD),
        ("0f10c0", TS, OSFXSR, NM),  # movups
        ("0f10c0", TS | EM, OSFXSR, UD),
        ("0f10c0", TS, 0, UD),
        ("f30f10c0", TS, 0, UD),  # movss
        ("660f6fc0", TS, 0, UD),  # movdqa
        ("0fae00", TS | EM, 0, NM),  # fxsave
        ("0fae10", TS | EM, OSFXSR, UD),  # ldmxcsr
        ("d9d0", TS | EM, 0, NM),  # fnop
        ("9b", TS, 0, NM),  # wait
        ("0f", TS | EM, 0, NM),
    ],
)
def test_what_is_switched_off_is_no_instruction(code: str, cr0: int, cr4: int, vector: int) -> None:
    assert right(Cpu(64, cr0=cr0, cr4=cr4), code, NM) == (vector, 0)


def test_any_bytes_give_an_exception() -> None:
    random_bytes = random.Random(4)
    for _ in range(3000):
        bits = random_bytes.choice((16, 32, 64))
        cpu = Cpu(bits, rsp=HIGH, cr0=random_bytes.choice((TS, TS | EM)))
        code = random_bytes.randbytes(random_bytes.randrange(16))
        for vector in (NM, GP, PF):
            found = corrected(cpu, code, vector, 0, 0xDEAD0000)  # type: ignore[arg-type]
            assert found[0] in (UD, NM, SS, GP, PF)


def test_most_exceptions_are_not_looked_at() -> None:
    engine = Engine(EngineHooks())
    try:
        assert [v for v in range(32) if may_be_wrong(engine, v)] == [NM, GP, PF]
        assert not may_be_wrong(Cpu(64), PF)  # type: ignore[arg-type]
    finally:
        engine.close()
