"""How a guest ended, for people and for programs: why, where, how it got there, what it last asked.

    guest ended: triple fault: #PF, then #PF error 0x0, then no #DF handler
      rip 0000000000100123  rsp 000000000010affc  …
      backtrace
        0x100123  do_work+0x13
      last hypercalls
        38.029610 ms  event_channel_op.send(0x11b17c) = 0  from notify_remote+0x1c

Exit codes of `xenlive boot` are here, so that all who end a guest mean the same:

| code | the guest |
|---|---|
| 0 | powered off |
| 11 | asked for a reboot |
| 12 | was suspended |
| 13 | crashed: it said so itself, or it did what Xen kills a domain for |
| 14 | did not feed its watchdog |
| 15 | asked for a soft reset |
| 19 | shut down for another reason |
| 20 | triple fault |
| 21 | spun: nothing but its own code, for too long |
| 22 | hung: it waited for what could not come |
| 23 | asked for what the emulator can't do |
| 24 | ran for as long as it was allowed |
| 26 | was killed by the debugger |

**Invariants.** Making a report changes nothing and raises nothing, whatever state the guest left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated import stop as stops
from xenlive.machine.emulated.hypervisor.hypercalls.table import operation_name
from xenlive.machine.emulated.lens.faults import error_in
from xenlive.machine.emulated.lens.symbols import name_in_chain
from xenlive.machine.emulated.processor.paging import NonCanonical, PageFault

if TYPE_CHECKING:
    from xenlive.machine.emulated.processor.handling import HypercallRecord
    from xenlive.machine.emulated.stop import GuestStop
    from xenlive.machine.emulated.world import Guest

EXIT_POWEROFF = 0
EXIT_OF_REASON = 10  # plus the shutdown reason
EXIT_OTHER_REASON = 19
EXIT_TIME = 24
_EXIT_OF_KIND = {
    stops.TRIPLE_FAULT: 20,
    stops.SPIN: 21,
    stops.STUCK: 22,
    stops.UNSUPPORTED: 23,
    stops.KILLED: 26,
}
_REASONS = ("poweroff", "reboot", "suspend", "crash", "watchdog", "soft reset")
_KINDS = {
    stops.TRIPLE_FAULT: "triple fault",
    stops.SPIN: "spin",
    stops.STUCK: "hung",
    stops.UNSUPPORTED: "not supported",
    stops.KILLED: "killed",
}

_HYPERCALL_BYTES = 3  # VMCALL, VMMCALL

_GENERAL_64 = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
_GENERAL_32 = _GENERAL_64[:8]
_OTHERS = ("rip", "eflags", "cr0", "cr2", "cr3", "cr4", "efer")
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")

_FRAMES_MAX = 32
_FRAMES_SURE = 2  # with fewer names than this the stack is searched
_SCANNED_BYTES = 2048
_CALL_MAX = 7
_CALLS_SHOWN = 10
_PER_LINE = 4


@dataclass(frozen=True, slots=True)
class Frame:
    """One level of a backtrace: the address, and its name if it has one.

    A guess is what lies on the stack and looks like a return address: it may be an old one.
    """

    address: int
    name: str
    is_guess: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be said of a guest."""

    stop: GuestStop | None
    is_64bit: bool
    registers: dict[str, int]
    backtrace: list[Frame]
    calls: list[str]


def exit_code(stop: GuestStop | None) -> int:
    """The exit code for a guest's end; None is one that ran into the limit of time."""
    if stop is None:
        return EXIT_TIME
    if stop.kind != stops.SHUTDOWN:
        return _EXIT_OF_KIND[stop.kind]
    if stop.code == stops.SHUTDOWN_POWEROFF:
        return EXIT_POWEROFF
    return EXIT_OF_REASON + stop.code if stop.code < len(_REASONS) else EXIT_OTHER_REASON


def end_name(stop: GuestStop | None) -> str:
    """A guest's end in a word or two: `poweroff`, `triple fault`."""
    if stop is None:
        return "time limit"
    if stop.kind != stops.SHUTDOWN:
        return _KINDS[stop.kind]
    return _REASONS[stop.code] if stop.code < len(_REASONS) else f"shutdown reason {stop.code}"


def is_failure(stop: GuestStop | None) -> bool:
    """Whether an end is one that somebody has to look into."""
    if stop is None or stop.kind == stops.KILLED:
        return False
    return stop.kind != stops.SHUTDOWN or stop.code in (
        stops.SHUTDOWN_CRASH,
        stops.SHUTDOWN_WATCHDOG,
    )


def describe(guest: Guest) -> Report:
    """All that is known of a guest as it is now."""
    engine = guest.vcpu.engine
    is_64bit = engine.code_bits == 64
    names = (*(_GENERAL_64 if is_64bit else _GENERAL_32), *_OTHERS)
    registers = {name: engine.reg(name) for name in names}
    registers |= {name: engine.segment(name).selector for name in _SEGMENTS}
    now = guest.vcpu.clock.now_ns
    frames = [Frame(at, name_at(guest, at, now)) for at in _return_addresses(guest)]
    if sum(bool(frame.name) for frame in frames) < _FRAMES_SURE:
        frames += _guesses(guest, {frame.address for frame in frames})
    caller = _caller_of_page(guest)
    if caller:
        frames = [frame for frame in frames if frame.address != caller or not frame.is_guess]
        frames.insert(1, Frame(caller, name_at(guest, caller, now)))
    calls = [_call_text(guest, record) for record in guest.vcpu.recent][-_CALLS_SHOWN:]
    return Report(guest.stop, is_64bit, registers, frames, calls)


def name_at(guest: Guest, address: int, when_ns: int, *, in_code: bool = False) -> str:
    """What the code at `address` was called at `when_ns`, by the symbols of the guest's kernels.

    With `in_code` data has no name.
    """
    chain = guest.chain or [(0, guest.kernel)]
    return name_in_chain(
        chain,
        guest.files,
        address,
        when_ns,
        lambda at, size: read_virtual(guest, at, size),
        in_code=in_code,
    )


def lines(report: Report) -> list[str]:
    """The report as text."""
    text = [f"guest ended: {end_name(report.stop)}: {report.stop.what if report.stop else ''}"]
    width = 16 if report.is_64bit else 8
    cells = [
        f"{_shown_name(name, report.is_64bit):>7} {value & (1 << 4 * width) - 1:0{width}x}"
        for name, value in report.registers.items()
        if name not in _SEGMENTS
    ]
    cells += [f"{name:>7} {report.registers[name]:04x}".ljust(8 + width) for name in _SEGMENTS]
    text += ["".join(cells[at : at + _PER_LINE]).rstrip() for at in range(0, len(cells), _PER_LINE)]
    text.append("  backtrace")
    text += [
        f"    {frame.address:#x}  {'? ' if frame.is_guess else ''}{frame.name}".rstrip()
        for frame in report.backtrace
    ]
    text.append("  last hypercalls" if report.calls else "  no hypercalls")
    text += [f"    {call}" for call in report.calls]
    return text


def as_object(report: Report) -> dict[str, Any]:
    """The report for a program."""
    return {
        "end": end_name(report.stop),
        "why": report.stop.what if report.stop else "",
        "exit": exit_code(report.stop),
        "bits": 64 if report.is_64bit else 32,
        "registers": {name: f"{value:#x}" for name, value in report.registers.items()},
        "backtrace": [
            {"address": f"{f.address:#x}", "name": f.name, "guess": f.is_guess}
            for f in report.backtrace
        ],
        "hypercalls": report.calls,
    }


def _shown_name(name: str, is_64bit: bool) -> str:
    return name if is_64bit or name[0] != "r" else f"e{name[1:]}"


def _return_addresses(guest: Guest) -> list[int]:
    """RIP, and the return addresses that the chain of frame pointers leads to."""
    engine = guest.vcpu.engine
    size = 8 if engine.code_bits == 64 else 4
    frame = engine.reg("rbp")
    found = [engine.reg("rip")]
    while len(found) < _FRAMES_MAX:
        data = read_virtual(guest, frame, 2 * size)
        if frame == 0 or data is None:
            break
        above, address = (int.from_bytes(data[at : at + size], "little") for at in (0, size))
        if read_virtual(guest, address, 1) is None or address == 0:
            break
        found.append(address)
        if above <= frame:  # stacks grow down: anything else is no chain
            break
        frame = above
    return found


def _caller_of_page(guest: Guest) -> int:
    """Who called the hypercall page, if the guest is right behind its instruction; else 0.

    A function of that page has no frame.
    """
    recent, engine = guest.vcpu.recent, guest.vcpu.engine
    if not recent or recent[-1].caller == recent[-1].rip:
        return 0
    last, size = recent[-1], 8 if engine.code_bits == 64 else 4
    is_there = engine.reg("rip") == last.rip + _HYPERCALL_BYTES
    top = read_virtual(guest, engine.reg("rsp"), size)
    return last.caller if is_there and top == last.caller.to_bytes(size, "little") else 0


def _guesses(guest: Guest, known: set[int]) -> list[Frame]:
    """What on the stack could be return addresses: in a kernel's code, behind a call.

    Most kernels keep no frame pointers.
    """
    engine = guest.vcpu.engine
    size = 8 if engine.code_bits == 64 else 4
    stack = engine.reg("rsp")
    found: list[Frame] = []
    for place in range(stack, stack + _SCANNED_BYTES, size):
        data = read_virtual(guest, place, size)
        if data is None or len(found) == _FRAMES_MAX:
            break
        address = int.from_bytes(data, "little")
        code = read_virtual(guest, address - _CALL_MAX, _CALL_MAX)
        if address in known or code is None or not _ends_with_call(code):
            continue
        name = name_at(guest, address, guest.vcpu.clock.now_ns, in_code=True)
        if name:
            found.append(Frame(address, name, is_guess=True))
    return found


def _ends_with_call(code: bytes) -> bool:
    """E8 with a displacement, or FF /2: with a register, or memory in one of its forms."""
    if code[-5] == 0xE8:
        return True
    return any(code[-n] == 0xFF and code[-n + 1] >> 3 & 7 == 2 for n in (2, 3, 4, 6, 7))


def read_virtual(guest: Guest, address: int, size: int) -> bytes | None:
    """The guest's memory at a virtual address; None if it is not there."""
    try:
        return guest.vcpu.read_virtual(address, size)
    except (PageFault, NonCanonical):
        return None


def _call_text(guest: Guest, record: HypercallRecord) -> str:
    name = operation_name(record.number, record.args)
    rest = record.args[1:3] if "." in name else record.args[:3]
    arguments = ", ".join(f"{value:#x}" for value in rest)
    result = "does not return" if record.result is None else f"= {record.result}"
    error = error_in(record.result)
    if error:
        result += f" {error}"
    when = f"{record.when_ns / 1e6:.6f} ms"
    where = name_at(guest, record.caller, record.when_ns) or f"{record.caller:#x}"
    return f"{when:>16}  {name}({arguments}) {result}  from {where}"
