"""A guest's registers as GDB knows them: which there are, in which order, how wide.

GDB is told by a target description. There are two: registers of 64 bits for a guest whose kernel
is a 64-bit ELF, and of 32 bits for the others. The kernel's file decides and not the processor's
mode, which changes on the way (a 64-bit kernel, too, is entered in 32-bit code), while GDB keeps
the description it got first, and refuses to work on a 64-bit file with 32-bit registers. So in
32-bit code of a 64-bit kernel the upper halves are there, and 0.

Specification: GDB's manual, appendix G ("Target Descriptions"), "i386 Features"; control registers
are a feature of ours, under the names that QEMU gives them.

**Invariants.** The position in the table is the register's number in the protocol. Segments and
control registers can be read only: what belongs to them would not follow. (Writing what is there
already is no error: GDB may write all registers for the sake of one.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from xenlive.machine.emulated.processor.engine import Engine

_CORE, _SSE, _SEGMENTS = (
    "org.gnu.gdb.i386.core",
    "org.gnu.gdb.i386.sse",
    "org.gnu.gdb.i386.segments",
)
_CONTROL = "org.xenlive.control"

# How a register is read and written.
_GENERAL, _FLAGS, _SELECTOR, _FLOAT, _FIXED = "general", "flags", "selector", "float", "fixed"

_NAMES_64 = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"),
)
# The 32-bit order is that of the numbers in instructions.
_NAMES_32 = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "rip")
_FLOAT_CONTROL = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_TYPES = {"rip": "code_ptr", "rsp": "data_ptr", "rbp": "data_ptr"}
_TYPES |= {"eflags": "i386_eflags", "mxcsr": "i386_mxcsr"}

_FLAG_VM = 1 << 17

_EFLAGS_TYPE = '<flags id="i386_eflags" size="4">{}</flags>'
_EFLAGS_BITS = (
    *(("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10)),
    *(("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18), ("ID", 21)),
)
_VECTOR_TYPE = (
    '<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>'
    '<vector id="v16i8" type="int8" count="16"/><vector id="v4i32" type="int32" count="4"/>'
    '<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>'
    '<field name="v16_int8" type="v16i8"/><field name="v4_int32" type="v4i32"/>'
    '<field name="uint128" type="uint128"/></union>'
)
_MXCSR_BITS = (
    *(("IE", 0), ("DE", 1), ("ZE", 2), ("OE", 3), ("UE", 4), ("PE", 5), ("DAZ", 6), ("IM", 7)),
    *(("DM", 8), ("ZM", 9), ("OM", 10), ("UM", 11), ("PM", 12), ("FZ", 15)),
)


class Register(NamedTuple):
    """One register: our name of it, GDB's, its width, how GDB shows it, where it belongs."""

    name: str
    shown: str
    bits: int
    kind: str
    type: str
    feature: str

    @property
    def size(self) -> int:
        """Bytes in the protocol."""
        return self.bits // 8

    def read(self, engine: Engine) -> bytes:
        """Its value, the lowest byte first."""
        if self.kind == _FLOAT:
            return engine.floats.read(self.name)[: self.size]
        if self.kind == _SELECTOR:
            return engine.segment(self.name).selector.to_bytes(self.size, "little")
        value = engine.reg(self.name) & (1 << self.bits) - 1
        return value.to_bytes(self.size, "little")

    def write(self, engine: Engine, data: bytes) -> bool:
        """Sets it; False if it can't have that value."""
        if len(data) != self.size:
            return False
        if data == self.read(engine):
            return True
        if self.kind == _FLOAT:
            engine.floats.write(self.name, data)
            return True
        value = int.from_bytes(data, "little")
        if self.kind == _FLAGS:  # virtual-8086 mode comes and goes with more than a flag
            value = value & ~_FLAG_VM | engine.eflags & _FLAG_VM
        elif self.kind != _GENERAL:
            return False
        engine.set_reg(self.name, value)
        return True


@lru_cache(maxsize=2)
def registers(is_64bit: bool) -> tuple[Register, ...]:
    """All of them, in the protocol's order."""
    word = 64 if is_64bit else 32
    found = []
    for name in _NAMES_64 if is_64bit else _NAMES_32:
        shown = name if is_64bit else f"e{name[1:]}"
        kind = _TYPES.get(name, f"int{word}")
        found.append(Register(name, shown, word, _GENERAL, kind, _CORE))
    found.append(_register("eflags", 32, _FLAGS, _CORE))
    found += [
        _register(name, 32, _SELECTOR, _CORE) for name in ("cs", "ss", "ds", "es", "fs", "gs")
    ]
    found += [Register(f"st{n}", f"st{n}", 80, _FLOAT, "i387_ext", _CORE) for n in range(8)]
    found += [_register(name, 32, _FLOAT, _CORE) for name in _FLOAT_CONTROL]
    for n in range(16 if is_64bit else 8):
        found.append(Register(f"xmm{n}", f"xmm{n}", 128, _FLOAT, "vec128", _SSE))
    found.append(_register("mxcsr", 32, _FLOAT, _SSE))
    if is_64bit:
        found += [_register(name, 64, _GENERAL, _SEGMENTS) for name in ("fs_base", "gs_base")]
        found.append(Register("kernel_gs_base", "k_gs_base", 64, _FIXED, "int64", _CONTROL))
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        found.append(_register(name, word, _FIXED, _CONTROL))
    return tuple(found)


def _register(name: str, bits: int, kind: str, feature: str) -> Register:
    return Register(name, name, bits, kind, _TYPES.get(name, f"int{bits}"), feature)


@lru_cache(maxsize=2)
def target_description(is_64bit: bool) -> bytes:
    """The description, `target.xml`."""
    architecture = "i386:x86-64" if is_64bit else "i386"
    text = '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
    text += f"<architecture>{architecture}</architecture>"
    table = registers(is_64bit)
    for feature in dict.fromkeys(register.feature for register in table):
        text += f'<feature name="{feature}">{_feature_types(feature)}'
        for number, register in enumerate(table):
            if register.feature == feature:
                text += (
                    f'<reg name="{register.shown}" bitsize="{register.bits}"'
                    f' type="{register.type}" regnum="{number}"/>'
                )
        text += "</feature>"
    return (text + "</target>").encode()


def _feature_types(feature: str) -> str:
    if feature == _CORE:
        return _EFLAGS_TYPE.format(_fields(_EFLAGS_BITS))
    if feature == _SSE:
        return f'{_VECTOR_TYPE}<flags id="i386_mxcsr" size="4">{_fields(_MXCSR_BITS)}</flags>'
    return ""


def _fields(bits: tuple[tuple[str, int], ...]) -> str:
    return "".join(f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in bits)
