"""What is believed of a saved processor.

A state of the emulator's that no guest could bring about could make it reach outside of its own
memory, so a file does not get to say all of it:

    0      registers, flags, segments, control registers       free, within what they can be
    500    bounds registers                                    as they are in every guest
    604    x87: stack top, tags, control, rounding             enumerations checked
    824    XMM registers                                       free
    2944   AVX and beyond, which are not offered               as they are in every guest
    4800   model-specific registers                            those that guests have, free
    5464   addresses of this process, intercepts               as they are in every guest

Where things are is what `cpustate.py` knows, and between its lines CPUX86State of QEMU 5.0.

**Invariants.** What passes differs from the state of a running guest only where guests differ.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated.lens.snapshot_forms import Data, Form, Place
from xenlive.machine.emulated.processor.cpustate import STATE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

_DATA = Data(STATE_SIZE, STATE_SIZE)

_FLAGS_KNOWN = 0x3F7FD7
_CR0_KNOWN, _CR4_KNOWN, _CR8_KNOWN = 0xFFFFFFFF, 0x7FFFFF, 0xFF
_EFER_KNOWN = 0xD01
# CPL, inhibit, CS32, SS32, ADDSEG, PE, MP, EM, TS, TF, IOPL, LMA, CS64, RF, VM, AC, OSFXSR, SMAP.
_HFLAGS_FREE = 0xCEFEFB
_SEGMENT = struct.Struct("<IIQII")
_MSR_QUADS = (601, 602, 603, 605, 606, 607, 608, 612, 660)


def _free(_: bytes) -> bool:
    return True


def _below(limit: int) -> Callable[[bytes], bool]:
    """A check for a little-endian number."""
    return lambda data: int.from_bytes(data, "little") < limit


def _within(mask: int) -> Callable[[bytes], bool]:
    """A check for a number without other bits."""
    return lambda data: not int.from_bytes(data, "little") & ~mask


def _is_direction(data: bytes) -> bool:
    return int.from_bytes(data, "little", signed=True) in (1, -1)


def _is_segment(data: bytes) -> bool:
    selector, pad, _, _, _ = _SEGMENT.unpack(data)
    return bool(selector < 1 << 16 and not pad)


def _is_rounding(data: bytes) -> bool:
    """A float_status: rounding mode, exceptions, precision and three switches."""
    return data[0] <= 1 and data[1] <= 3 and data[3] in (0, 32, 64, 80) and max(data[4:]) <= 1


def _are_tags(data: bytes) -> bool:
    return max(data) <= 1


#: Start, end and check of all that is not the same in every guest.
_RULES: list[tuple[int, int, Callable[[bytes], bool]]] = [
    (0, 136, _free),  # general registers, RIP
    (136, 144, _within(_FLAGS_KNOWN)),
    (144, 168, _free),  # what flags are computed from
    (168, 172, _below(64)),  # how
    (172, 176, _is_direction),
    *((at, at + 24, _is_segment) for at in range(184, 424, 24)),
    (424, 432, _within(_CR0_KNOWN)),
    (432, 456, _free),  # cr1 to cr3
    (456, 464, _within(_CR4_KNOWN)),
    (488, 496, _within(_CR8_KNOWN)),
    (592, 600, _within(_EFER_KNOWN)),
    (604, 608, _below(8)),  # top of the x87 stack
    (608, 612, _free),  # status and control word
    (612, 620, _are_tags),
    (624, 776, _free),  # x87 registers and pointers
    (776, 784, _is_rounding),
    (784, 800, _free),
    (800, 808, _is_rounding),
    (808, 816, _is_rounding),
    (816, 820, _within(0xFFFF)),  # MXCSR
    (824, 2944, _free),  # XMM
    (4800, 4804, _within(0xFFFF)),
    *((8 * quad, 8 * quad + 8, _free) for quad in _MSR_QUADS),
    (5384, 5400, _free),  # the last exception
    (5400, 5464, _free),  # debug registers
]
_HFLAGS_AT = 176


class ProcessorState(Form):
    """What `Engine.save` gives."""

    def save(self, value: Any) -> Any:
        return _DATA.save(value)

    def load(self, plain: Any, at: Place) -> Any:
        data: bytes = _DATA.load(plain, at)
        validate_cpu(data, at.names.any_processor(), at)
        return data


def validate_cpu(data: bytes, other: bytes, at: Place) -> None:
    """ImageError unless a state is one that a guest could be in, `other` being such a one."""
    expected = bytearray(other)
    for start, end, check in _RULES:
        if not check(data[start:end]):
            raise at.down(start).fail("what a guest can have there", data[start:end].hex())
        expected[start:end] = data[start:end]
    for index in range(_HFLAGS_AT, _HFLAGS_AT + 4):
        free = _HFLAGS_FREE >> 8 * (index - _HFLAGS_AT) & 0xFF
        expected[index] = expected[index] & ~free | data[index] & free
    if data != expected:
        wrong = next(i for i in range(len(data)) if data[i] != expected[i])
        raise at.down(wrong).fail("what all guests have there", data[wrong])
