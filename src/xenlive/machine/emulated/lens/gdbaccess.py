"""GDB's packets for registers, memory, breakpoints and watchpoints: one answer to each.

Specification: GDB's manual, appendix E, "Packets".

**Invariants.** Nothing is kept here, and nothing raises: a packet that makes no sense gets an `E`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.machine.emulated.lens.gdbpackets import PAYLOAD_MAX, decode_hex, decode_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.lens.gdbtarget import Target

OK = b"OK"
NOT_KNOWN = b""
# Errors have numbers, which GDB shows and does not interpret: errno's.
NO_MEMORY_THERE, BAD_REQUEST = b"E0e", b"E16"

#: In an answer each byte of memory takes two digits.
READ_MAX = PAYLOAD_MAX // 2

_BREAKPOINT_KINDS = {b"0": "swbreak", b"1": "hwbreak"}
_WATCHPOINT_KINDS = {b"2": "watch", b"3": "rwatch", b"4": "awatch"}


def answer_access(target: Target, name: bytes, text: bytes) -> bytes:
    """The answer to a packet that begins with `name`, `text` being the rest of it."""
    handler = _HANDLERS.get(name)
    return NOT_KNOWN if handler is None else handler(target, text)


def _read_registers(target: Target, _: bytes) -> bytes:
    numbers = range(len(target.registers))
    return b"".join(target.read_register(n) or b"" for n in numbers).hex().encode()


def _write_registers(target: Target, text: bytes) -> bytes:
    data = decode_hex(text)
    sizes = [register.size for register in target.registers]
    if data is None or len(data) != sum(sizes):
        return BAD_REQUEST
    at, done = 0, True
    for number, size in enumerate(sizes):
        done = target.write_register(number, data[at : at + size]) and done
        at += size
    return OK if done else BAD_REQUEST


def _read_register(target: Target, text: bytes) -> bytes:
    number = decode_number(text)
    value = None if number is None else target.read_register(number)
    return BAD_REQUEST if value is None else value.hex().encode()


def _write_register(target: Target, text: bytes) -> bytes:
    which, _, value = text.partition(b"=")
    number, data = decode_number(which), decode_hex(value)
    if number is None or data is None or not target.write_register(number, data):
        return BAD_REQUEST
    return OK


def _read_memory(target: Target, text: bytes, is_binary: bool) -> bytes:
    where = decode_range(text)
    if where is None:
        return BAD_REQUEST
    address, size = where
    data = target.read_memory(address, min(size, READ_MAX))
    if size and not data:
        return NO_MEMORY_THERE
    return b"b" + data if is_binary else data.hex().encode()


def _write_memory(target: Target, text: bytes, is_binary: bool) -> bytes:
    head, _, body = text.partition(b":")
    where, data = decode_range(head), body if is_binary else decode_hex(body)
    if where is None or data is None or len(data) != where[1]:
        return BAD_REQUEST
    return OK if target.write_memory(where[0], data) else NO_MEMORY_THERE


def _breakpoint(target: Target, text: bytes, is_added: bool) -> bytes:
    """Z and z. A breakpoint's size says which instruction would stand there: no matter here."""
    which, _, rest = text.partition(b",")
    kind, watched = _BREAKPOINT_KINDS.get(which), _WATCHPOINT_KINDS.get(which)
    where = decode_range(rest)
    if where is None and (kind or watched):
        return BAD_REQUEST
    address, size = where or (0, 0)
    if kind is not None:
        (target.add_breakpoint if is_added else target.remove_breakpoint)(kind, address)
        return OK
    if watched is None:
        return NOT_KNOWN
    if not is_added:
        target.remove_watchpoint(watched, address, size)
        return OK
    return OK if target.add_watchpoint(watched, address, size) else NO_MEMORY_THERE


def decode_range(text: bytes) -> tuple[int, int] | None:
    """Two numbers with a comma between."""
    first, _, second = text.partition(b",")
    address, size = decode_number(first), decode_number(second)
    return None if address is None or size is None else (address, size)


_HANDLERS: dict[bytes, Callable[[Target, bytes], bytes]] = {
    b"g": _read_registers,
    b"G": _write_registers,
    b"p": _read_register,
    b"P": _write_register,
    b"m": lambda target, text: _read_memory(target, text, is_binary=False),
    b"x": lambda target, text: _read_memory(target, text, is_binary=True),
    b"M": lambda target, text: _write_memory(target, text, is_binary=False),
    b"X": lambda target, text: _write_memory(target, text, is_binary=True),
    b"Z": lambda target, text: _breakpoint(target, text, is_added=True),
    b"z": lambda target, text: _breakpoint(target, text, is_added=False),
}
