"""The exception tree: what can go wrong, by who caused it.

Every error this package raises on purpose is a `XenliveError`. Anything else that escapes is a bug
and is meant to crash. The message says what was wrong and, where there is something to do, what to
do next; `offset` and `value` say where and what, when a byte or a number is to blame.

    XenliveError
    ├── PeerError        bytes or an index from a peer broke the protocol (ring, 9P, Xenstore wire)
    ├── PeerTimeout      a peer did not answer in time
    ├── ImageError       memory, a file or a stream from an earlier kernel is not sound
    ├── OutOfSpace       running out is an answer: pages, records, table, grants, ring
    ├── ModuleError      a kexec module was asked for what its format can't hold or doesn't have
    ├── BadAddress       guest physical memory that is not there, or not ours
    ├── HypercallError   the hypervisor refused; carries its errno
    ├── NinePError       a 9P server's Rerror answer; carries its errno
    ├── XenstoreError    a Xenstore server's ERROR answer; carries its name, such as "ENOENT"
    ├── ConfigError      a configuration or an option that can't be used
    ├── BuildError       an image can't be built here
    ├── BootError        a kernel can't boot, and which check stopped it
    └── UpdateError      a live update was refused or undone, and at which step

**Invariants.** A peer's bytes cause `PeerError` and nothing else; a bad image causes `ImageError`
and nothing else. Whoever raises one of these has left its state as it was.
"""

from __future__ import annotations


class XenliveError(Exception):
    """Root of the tree; `str()` of it is one line, fit for a terminal."""


class PeerError(XenliveError):
    """A peer's bytes broke a protocol.

    `offset` is in bytes from the start of what the peer sent or shares, `value` what stood there.
    """

    def __init__(self, what: str, offset: int | None = None, value: object = None) -> None:
        self.what = what
        self.offset = offset
        self.value = value
        super().__init__(_located(what, offset, value))


class PeerTimeout(XenliveError):
    """A peer did not answer within `timeout_s` seconds; it may still be alive."""

    def __init__(self, what: str, timeout_s: float) -> None:
        self.what = what
        self.timeout_s = timeout_s
        super().__init__(f"{what}: no answer within {timeout_s:g} s")


class ImageError(XenliveError):
    """Handed-over memory, a dump or a state stream that is not sound.

    `code` is a short stable name of the problem (`bad-eye-catcher`), `offset` is in bytes from
    the start of the structure the code names.
    """

    def __init__(
        self, code: str, what: str, offset: int | None = None, value: object = None
    ) -> None:
        self.code = code
        self.what = what
        self.offset = offset
        self.value = value
        super().__init__(f"{code}: {_located(what, offset, value)}")


class OutOfSpace(XenliveError):
    """Something ran out; nothing was changed. `wanted` and `available` count in units of `what`."""

    def __init__(self, what: str, wanted: int, available: int) -> None:
        self.what = what
        self.wanted = wanted
        self.available = available
        super().__init__(f"out of {what}: {wanted} wanted, {available} available")


class ModuleError(XenliveError):
    """A caller asked a kexec module for a record, type, size or page it can't have; no change.

    `value` is the number that was refused.
    """

    def __init__(self, what: str, value: int) -> None:
        self.what = what
        self.value = value
        super().__init__(f"{what} (value {value})")


class BadAddress(XenliveError):
    """An access of `size` bytes at guest physical `address` that the memory behind it lacks."""

    def __init__(
        self, address: int, size: int, why: str = "outside of the domain's memory"
    ) -> None:
        self.address = address
        self.size = size
        self.why = why
        super().__init__(f"{size} bytes at {address:#x}: {why}")


class HypercallError(XenliveError):
    """The hypervisor refused `call`; `errno` is the positive number, as in `errno.h`."""

    def __init__(self, call: str, errno: int, why: str = "") -> None:
        self.call = call
        self.errno = errno
        self.why = why
        super().__init__(f"{call}: error {errno}" + (f" ({why})" if why else ""))


class NinePError(XenliveError):
    """The 9P server answered Rerror: its text, and the errno that 9P2000.u adds to it."""

    def __init__(self, text: str, errno: int) -> None:
        self.text = text
        self.errno = errno
        super().__init__(f"9P: {text} (error {errno})")


class XenstoreError(XenliveError):
    """The Xenstore server answered ERROR; `name` is the errno's name, such as `ENOENT`."""

    def __init__(self, name: str, request: str = "") -> None:
        self.name = name
        self.request = request
        super().__init__(f"{request}: {name}" if request else name)


class ConfigError(XenliveError):
    """A configuration file or option that can't be used; `line` counts from 1, 0 is the whole."""

    def __init__(self, source: str, line: int, why: str) -> None:
        self.source = source
        self.line = line
        self.why = why
        super().__init__(f"{source}:{line}: {why}" if line else f"{source}: {why}")


class BuildError(XenliveError):
    """An image can't be built on this machine; the message says what that takes."""


class BootError(XenliveError):
    """A kernel can't boot; `code` names the check that stopped it (`9pfs-dead-grant`)."""

    def __init__(self, code: str, why: str) -> None:
        self.code = code
        self.why = why
        super().__init__(f"{code}: {why}")


class UpdateError(XenliveError):
    """A live update was refused or undone at `step`; the old kernel serves on."""

    def __init__(self, step: str, why: str) -> None:
        self.step = step
        self.why = why
        super().__init__(f"{step}: {why}")


def _located(what: str, offset: int | None, value: object) -> str:
    where = "" if offset is None else f" at offset {offset}"
    shown = "" if value is None else f" (value {value!r})"
    return f"{what}{where}{shown}"
