"""The processor's state as the emulator keeps it: QEMU's CPUX86State in a saved context.

Together with `engine.py` this is all that knows Unicorn's insides. The public calls of Unicorn give
registers one at a time, and neither privilege level nor the hidden parts of segments can be set
through them; the saved context has everything, in one copy of 5.5 KiB. The tables below say
where, in release 2.1.4 (`qemu/target/i386/cpu.h`, compiled for a 64-bit host); `Engine` checks them
at its start.

    env + 0      rax rcx rdx rbx rsp rbp rsi rdi r8 .. r15 rip eflags
        + 144    lazy flags (merged into eflags between runs) and hflags
        + 184    es cs ss ds fs gs ldt tr gdt idt     24 bytes each: selector, base, limit, flags
        + 424    cr0 .. cr8             + 592 efer
        + 624    mm0 .. mm7, or x87's registers
        + 4800   sysenter, star, lstar ...
        + 5384   error code of the last exception, dr0 .. dr7, SVM intercepts

**Invariants.** What is read here is what the last run left, what is written is what the next run
starts from. `hflags`, which QEMU translates code by, always agrees with segments and privilege
level after `set_privilege`; control registers go through QEMU's own functions, which keep the rest.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from xenlive.machine.emulated.processor.exits import Segment
from xenlive.machine.emulated.processor.paging import Paging

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: General registers in QEMU's order, which is that of their numbers in instructions.
GENERAL = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr", "gdt", "idt")

# An index into the state as 64-bit words.
_QUAD = {
    **{name: index for index, name in enumerate((*GENERAL, "rip", "eflags"))},
    **{f"{name}_base": 24 + 3 * index for index, name in enumerate(SEGMENTS)},
    **{f"cr{number}": 53 + number for number in (0, 2, 3, 4, 8)},
    **{f"dr{number}": 675 + number for number in range(8)},
    "efer": 74,
    "sysenter_esp": 601,
    "sysenter_eip": 602,
    "star": 603,
    "lstar": 605,
    "cstar": 606,
    "fmask": 607,
    "kernel_gs_base": 608,
    "tsc_aux": 612,
    "pat": 660,
}
# Offsets in bytes.
_EFLAGS, _HFLAGS, _HFLAGS_2, _SEGS, _SYSENTER_CS = 136, 176, 180, 184, 4800
_HF2_NMI = 1 << 2
#: Registers of the x87 unit and a place of its arithmetic: 16 bytes each, and 10 of them used. What
#: is in the others was on the host's stack.
FLOATS = (*range(624, 752, 16), 784)
FLOAT_SIZE, FLOAT_SPACE = 10, 16
ERROR_CODE, OLD_EXCEPTION, VMCB, INTERCEPT = 5384, 5496, 5504, 5520
#: From here on there are only addresses of the host, of no use after a run.
HOST_POINTERS = 5560
STATE_SIZE = 5568

# Bits of hflags (cpu.h).
_HF_CPL, _HF_INHIBIT_IRQ, _HF_CS32, _HF_SS32 = 3, 1 << 3, 1 << 4, 1 << 5
_HF_ADDSEG, _HF_PE, _HF_LMA, _HF_CS64, _HF_GUEST = 1 << 6, 1 << 7, 1 << 14, 1 << 15, 1 << 21

_FLAGS_KNOWN, _FLAGS_VM = 0x3F7FD7, 1 << 17
_DESC_L, _DESC_B = 1 << 21, 1 << 22
_MASK64 = (1 << 64) - 1

_FLAT_CODE = Segment(0, 0, 0xFFFFFFFF, 0x00C09B00)
_FLAT_DATA = Segment(0, 0, 0xFFFFFFFF, 0x00C09300)
_NONE = Segment(0, 0, 0, 0)
# Memory types by page attributes, as after a reset: APM volume 2, section 7.8.
_PAT_AT_RESET = 0x0007040600070406

_PVH_SEGMENTS = {
    "cs": _FLAT_CODE,
    **dict.fromkeys(("ds", "es", "ss"), _FLAT_DATA),
    **dict.fromkeys(("fs", "gs", "ldt", "gdt", "idt"), _NONE),
    "tr": Segment(0, 0, 0x67, 0x00008B00),
}


class CpuState:
    """Registers over `raw`, a saved CPUX86State; whoever runs it does what needs QEMU's functions.

    Register names are a debugger's, in lower case: rax to r15, rip, eflags, cr0 to cr8, dr0 to dr7,
    efer, and others by their usual names (star, lstar, fs_base, gdt_base ...).
    """

    def __init__(self, raw: Buffer) -> None:
        self._raw = memoryview(raw).cast("B")
        self._words = self._raw.cast("I")
        self._quads = self._raw.cast("Q")
        self._dirty = False

    # What needs QEMU's own functions.

    def _write_control(self, number: int, value: int) -> None:
        raise NotImplementedError

    def _flush_translations(self) -> None:
        raise NotImplementedError

    # ---- registers -----------------------------------------------------------------------

    def reg(self, name: str) -> int:
        """A register's value, unsigned."""
        if name == "sysenter_cs":
            return self._words[_SYSENTER_CS // 4]
        return self._quads[_QUAD[name]]

    def set_reg(self, name: str, value: int) -> None:
        """Sets a register; control registers take effect as if the guest had written them."""
        if name in ("cr0", "cr3", "cr4"):
            self._write_control(int(name[2]), value & _MASK64)
            return
        self._dirty = True
        if name == "eflags":
            self._quads[_EFLAGS // 8] = value & _FLAGS_KNOWN | 2
        elif name == "sysenter_cs":
            self._words[_SYSENTER_CS // 4] = value & 0xFFFF
        else:
            self._quads[_QUAD[name]] = value & _MASK64
        if name == "efer":  # its no-execute bit changes what page tables mean
            self._flush_translations()

    def general(self, number: int) -> int:
        """The general register that instructions call `number`: 0 is rax, 1 is rcx."""
        return self._quads[number]

    def set_general(self, number: int, value: int) -> None:
        """Sets the general register that instructions call `number`; all 64 bits of it."""
        self._quads[number] = value
        self._dirty = True

    @property
    def eflags(self) -> int:
        """The flags register."""
        return self._quads[_EFLAGS // 8]

    @property
    def interrupts_on(self) -> bool:
        """Whether an interrupt would be taken now: IF, and not right after `sti` or `mov ss`."""
        on = self._quads[_EFLAGS // 8] & 0x200
        return bool(on and not self._words[_HFLAGS // 4] & _HF_INHIBIT_IRQ)

    def end_shadow(self) -> None:
        """The instruction after `sti` or `mov ss` is done."""
        self._words[_HFLAGS // 4] &= ~_HF_INHIBIT_IRQ
        self._dirty = True

    @property
    def nmi_blocked(self) -> bool:
        """Whether an NMI was taken and its handler's IRET is still to come."""
        return bool(self._words[_HFLAGS_2 // 4] & _HF2_NMI)

    def block_nmi(self) -> None:
        """An NMI is being taken: the next one waits for IRET, which ends this."""
        self._words[_HFLAGS_2 // 4] |= _HF2_NMI
        self._dirty = True

    # ---- segments and modes --------------------------------------------------------------

    def segment(self, name: str) -> Segment:
        """A segment register, or ldt, tr, gdt, idt, with its hidden part."""
        at = _SEGS // 4 + 6 * SEGMENTS.index(name)
        words = self._words
        base = words[at + 2] | words[at + 3] << 32
        return Segment(words[at], base, words[at + 4], words[at + 5])

    def set_segment(self, name: str, segment: Segment) -> None:
        """Loads it, unchecked. `set_privilege` must follow if it was cs, ss, ds or es."""
        at = _SEGS // 4 + 6 * SEGMENTS.index(name)
        words = self._words
        words[at] = segment.selector & 0xFFFF
        words[at + 2] = segment.base & 0xFFFFFFFF
        words[at + 3] = segment.base >> 32 & 0xFFFFFFFF
        words[at + 4] = segment.limit & 0xFFFFFFFF
        words[at + 5] = segment.flags & 0x00F0FF00
        self._dirty = True

    @property
    def cpl(self) -> int:
        """The current privilege level, 0 to 3."""
        return self._words[_HFLAGS // 4] & _HF_CPL

    @property
    def in_long_mode(self) -> bool:
        """Whether long mode is active (EFER.LMA), whatever the code segment."""
        return bool(self._words[_HFLAGS // 4] & _HF_LMA)

    @property
    def code_bits(self) -> int:
        """How the next instruction is decoded: 16, 32 or 64."""
        hflags = self._words[_HFLAGS // 4]
        if hflags & _HF_CS64:
            return 64
        return 32 if hflags & _HF_CS32 else 16

    @property
    def linear_rip(self) -> int:
        """The linear address of the next instruction."""
        if self._words[_HFLAGS // 4] & _HF_CS64:
            return self._quads[16]
        return self._quads[16] + self._quads[27] & 0xFFFFFFFF

    def set_privilege(self, cpl: int) -> None:
        """Sets the privilege level, and what code translation knows of the segments.

        As QEMU's `cpu_x86_load_seg_cache` would have, had it loaded them.
        """
        hflags = self._words[_HFLAGS // 4]
        hflags &= ~(_HF_CPL | _HF_CS32 | _HF_SS32 | _HF_ADDSEG | _HF_CS64)
        hflags |= cpl
        code = self.segment("cs")
        if hflags & _HF_LMA and code.flags & _DESC_L:
            hflags |= _HF_CS32 | _HF_SS32 | _HF_CS64
        else:
            hflags |= _HF_CS32 if code.flags & _DESC_B else 0
            hflags |= _HF_SS32 if self.segment("ss").flags & _DESC_B else 0
            plain = hflags & _HF_PE and not self.eflags & _FLAGS_VM and hflags & _HF_CS32
            bases = (self.reg("ds_base"), self.reg("es_base"), self.reg("ss_base"))
            hflags |= _HF_ADDSEG if not plain or any(bases) else 0
        self._words[_HFLAGS // 4] = hflags
        self._dirty = True

    def paging(self) -> Paging:
        """How virtual addresses are meant now."""
        quads = self._quads
        return Paging(quads[53], quads[56], quads[57], quads[74])

    # ---- whole states --------------------------------------------------------------------

    def _set_pvh_entry(self) -> None:
        """The state in which a PVH kernel is entered, over a pristine one: 32 bit, flat, no paging.

        docs/misc/pvh.pandoc of Xen; control registers as `vcpu_hvm` of Xen's tools sets them.
        """
        for number in range(len(GENERAL) + 1):
            self._quads[number] = 0
        for name in ("cr2", "cr3", "cr4", "efer"):
            self._quads[_QUAD[name]] = 0
        self._quads[_QUAD["cr0"]] = 0x11
        self.set_reg("pat", _PAT_AT_RESET)
        self._words[_HFLAGS // 4] = _HF_PE | _HF_GUEST
        self._quads[_EFLAGS // 8] = 2
        for name, segment in _PVH_SEGMENTS.items():
            self.set_segment(name, segment)
        self.set_privilege(0)

    def _set_intercepts(self, vmcb: int, intercept: int, cr_reads: int, cr_writes: int) -> None:
        """SVM's intercepts as VMRUN would set them; of all exceptions and debug registers."""
        self._quads[VMCB // 8] = vmcb
        values = (intercept, cr_reads, cr_writes, 0, 0xFF, 0xFFFFFFFF)
        packed = struct.pack("<QHHHHI", *values)
        self._raw[INTERCEPT : INTERCEPT + len(packed)] = packed
        self._dirty = True
