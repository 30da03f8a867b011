"""Scripts for the probing kernel: calls with what they are given, and reading what it says.

    Script ──encode──▶ module of the kernel ──▶ lines on its console ──answers──▶ name: result

A script is the same for callers of 64 and of 32 bits but for the width of words, so one table is
both. Addresses are plain numbers: the kernel maps memory one to one, and has 32 MiB.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from xenlive.abi.hypercalls import xen

#: Where arguments are put, a second place for what they point to, and frames to play with.
ARG = 0x1000000
MORE = 0x1002000
FRAME = 0x1100
MEMORY_BYTES = 32 << 20
#: Addresses without memory: mapped and with nothing behind, not mapped, not an address.
HOLE = 0xD0000000
UNMAPPED = 0xFFFF800000000000
NO_ADDRESS = 0x8000000000000000

SELF = xen.DOMID_SELF
#: The id of no domain.
NOBODY = 0x500
NUMBERS = {
    name.removeprefix("HYPERVISOR_"): value
    for name, value in vars(xen).items()
    if name.startswith("HYPERVISOR_")
}
_ERRNO_NAMES = {
    value: name.removeprefix("XEN_") for name, value in vars(xen).items() if name[:5] == "XEN_E"
}

_STORE, _CALL, _LOAD, _CPUID, _READ_MSR, _WRITE_MSR, _END, _FLUSH = range(1, 9)
_STEP = struct.Struct("<II6Q")


class Asked(NamedTuple):
    """A question of the script: its name, how many lines answer it, and where Xen's answer is."""

    name: str
    lines: int
    source: str


class Script:
    """Steps for a kernel of `bits` that runs as domain `domid`."""

    def __init__(self, bits: int, domid: int = 1) -> None:
        self.bits = bits
        self.me = domid
        self.asked: list[Asked] = []
        self.source = ""
        self._steps = bytearray()
        self._names: set[str] = set()

    @property
    def word(self) -> int:
        """Bytes of a pointer."""
        return self.bits // 8

    def domids(self) -> list[tuple[str, int]]:
        """Domains that a call may name: each with what it is called in the answers."""
        return [
            *(("self", SELF), ("itself", self.me), ("the host", 0), ("nobody", NOBODY)),
            *(("io", xen.DOMID_IO), ("xen", xen.DOMID_XEN), ("invalid", xen.DOMID_INVALID)),
        ]

    def read_in(self, source: str) -> None:
        """What follows is decided in this function of Xen's."""
        self.source = source

    def _step(self, kind: int, number: int = 0, args: Sequence[int] = (), size: int = 0) -> None:
        padded = [value & (1 << 64) - 1 for value in (*args, *(0,) * (5 - len(args)))]
        self._steps += _STEP.pack(kind, size, number, *padded)

    def _ask(self, name: str, lines: int = 1) -> None:
        assert name not in self._names, name
        self._names.add(name)
        self.asked.append(Asked(name, lines, self.source))

    def store(self, address: int, data: bytes) -> int:
        """Puts bytes into memory; the address again."""
        self._step(_STORE, address, size=len(data))
        self._steps += data.ljust((len(data) + 7) // 8 * 8, b"\0")
        return address

    def put(self, form: str, *values: int, at: int = ARG) -> int:
        """Puts a structure into memory: `form` as `struct` has it, packed, W being a word."""
        form = form.replace("W", "Q" if self.bits == 64 else "I")
        masked = [v & (1 << 64) - 1 if v >= 0 else v for v in values]
        if self.bits == 32:
            masked = _narrow(form, masked)
        return self.store(at, struct.pack("<" + form, *masked))

    def call(self, name: str, number: int | str, *args: int, out: int = 0, at: int = ARG) -> None:
        """Makes a hypercall; with `out` it tells so many bytes at `at` afterwards."""
        found = NUMBERS[number] if isinstance(number, str) else number
        self._ask(name, 2 if out else 1)
        self._step(_CALL, found, args)
        if out:
            self._step(_LOAD, at, size=out)

    def quietly(self, number: int | str, *args: int) -> None:
        """Makes a hypercall for what follows; its result is told under a name of its own."""
        self.call(f"({len(self.asked)})", number, *args)

    def load(self, name: str, address: int, size: int) -> None:
        """Tells bytes in memory."""
        self._ask(name)
        self._step(_LOAD, address, size=size)

    def wipe(self, address: int, size: int) -> None:
        """Zeroes what is this machine's alone, so that it is not told."""
        self.store(address, bytes(size))

    def cpuid(self, leaf: int, subleaf: int = 0) -> None:
        """Tells a leaf."""
        self._ask(f"leaf {leaf:#x}.{subleaf:#x}")
        self._step(_CPUID, leaf, (subleaf,))

    def read_msr(self, number: int) -> None:
        """Tells a register's value."""
        self._ask(f"rdmsr {number:#x}{self.again(f'rdmsr {number:#x}')}")
        self._step(_READ_MSR, number)

    def write_msr(self, number: int, value: int) -> None:
        """Sets a register."""
        name = f"wrmsr {number:#x} = {value:#x}"
        self._ask(f"{name}{self.again(name)}")
        self._step(_WRITE_MSR, number, (value,))

    def again(self, name: str) -> str:
        count = sum(1 for known in self._names if known.split(" (")[0] == name)
        return f" ({count + 1})" if count else ""

    def flush(self) -> None:
        """Writes to the console what was told so far: the next step may be the last."""
        self._step(_FLUSH)

    def encode(self) -> bytes:
        """The module for the kernel."""
        return bytes(self._steps) + _STEP.pack(_END, 0, *(0,) * 6)

    def answers(self, console: str) -> dict[str, str]:
        """What was answered to each question, by its name, as `EINVAL` or `0 00f07f00`.

        Questions that were not come to are not there.
        """
        lines = iter(console.splitlines())
        found = {}
        for asked in self.asked:
            told = [line for _, line in zip(range(asked.lines), lines, strict=False)]
            if len(told) == asked.lines and all(_is_answer(line) for line in told):
                found[asked.name] = " ".join(self._readable(line) for line in told)
        return found

    def _readable(self, line: str) -> str:
        word, _, rest = line.strip().partition(" ")
        if word != "call":
            return rest
        top = 1 << self.bits
        value = int(rest, 16) % top
        value -= top if value >= top - 4096 else 0
        return _ERRNO_NAMES.get(-value, str(value)) if value < 0 else f"{value:#x}"


def _is_answer(line: str) -> bool:
    return line.split(" ")[0] in ("call", "load", "cpuid", "rdmsr", "wrmsr")


def _narrow(form: str, values: list[int]) -> list[int]:
    """Cuts what is a pointer of 64 bits in a structure of 32 to its width."""
    codes: list[str] = []
    for count, code in re.findall(r"(\d*)([a-zA-Z])", form):
        codes += code * int(count or 1) if code != "x" else ""
    return [v & 0xFFFFFFFF if c == "I" else v for c, v in zip(codes, values, strict=True)]


#: A topic: what its script asks.
Topic = Callable[[Script], None]
