"""Making hypercalls fail: the third `populate_physmap` has no memory, and what does the guest do?

    --fail memory_op.populate_physmap:3=ENOMEM
           └─ call ─┘ └─ operation ─┘ │  └ errno, else one that this call has for running out
                                      └ which one of them, counted from 1

A call that fails so was never begun: nothing but its result is what it would be on a Xen that
refuses it. Calls inside of a multicall count as others do.

**Invariants.** Which call fails depends on the guest's calls alone. A name that is none is one
`ConfigError`, which has the names that look like it.
"""

from __future__ import annotations

from typing import NamedTuple

from xenlive.abi.hypercalls import xen as abi
from xenlive.errors import ConfigError
from xenlive.machine.emulated.hypervisor.hypercalls.table import (
    HYPERCALL_NAMES,
    OPERATION_NAMES,
    operation_name,
)

ERRNO_NAMES = {
    value: name.removeprefix("XEN_")
    for name, value in vars(abi).items()
    if name.startswith("XEN_E") and type(value) is int
}
_ERRNOS = {name: number for number, name in ERRNO_NAMES.items()}
_ERRNO_MAX = 4095  # below minus this nobody looks for an error

# What a call says when there is no more of what it gives; all others EINVAL.
_PLAUSIBLE = {
    abi.HYPERVISOR_memory_op: abi.XEN_ENOMEM,
    abi.HYPERVISOR_grant_table_op: abi.XEN_ENOMEM,
    abi.HYPERVISOR_event_channel_op: abi.XEN_ENOSPC,
    abi.HYPERVISOR_console_io: abi.XEN_EPERM,
    abi.HYPERVISOR_multicall: abi.XEN_EFAULT,
}
_NEAR_MAX = 4
_WHERE = "--fail"


class Fault(NamedTuple):
    """One fault to come: the `nth` call called `name` fails with `errno`."""

    name: str
    nth: int
    errno: int

    def __str__(self) -> str:
        return f"{self.name}:{self.nth}={errno_name(self.errno)}"


def errno_name(errno: int) -> str:
    """`EINVAL` for 22; a number that has no name stays one."""
    return ERRNO_NAMES.get(errno, str(errno))


def error_in(result: int | None) -> str:
    """The name of the error that a hypercall's result is: `EINVAL` for -22; empty if it is none."""
    if result is None or not -_ERRNO_MAX <= result < 0:
        return ""
    return errno_name(-result)


def call_names() -> list[str]:
    """All calls that can be made to fail, as `operation_name` prints them."""
    names = list(HYPERCALL_NAMES.values())
    for number, operations in OPERATION_NAMES.items():
        names += [f"{HYPERCALL_NAMES[number]}.{name}" for name in operations.values()]
    return names


def parse_fault(text: str) -> Fault:
    """A fault from `CALL[.OPERATION]:N[=ERRNO]`. ConfigError if it is none."""
    what, colon, rest = text.partition(":")
    count, equals, error = rest.partition("=")
    if not (colon and count.isascii() and count.isdecimal() and int(count)):
        raise ConfigError(_WHERE, 0, f"{text!r} is not CALL[.OPERATION]:N[=ERRNO], N from 1")
    known = {name.lower(): name for name in call_names()}
    name = known.get(what.lower())
    if name is None:
        raise ConfigError(_WHERE, 0, f"no hypercall {what!r}{_near(what.lower(), known)}")
    return Fault(name, int(count), _errno(error) if equals else _plausible(name))


def _errno(text: str) -> int:
    number = _ERRNOS.get(text.upper())
    if number is None and text.isascii() and text.isdecimal() and 0 < int(text) <= _ERRNO_MAX:
        number = int(text)
    if number is None:
        near = _near(text.upper(), _ERRNOS)
        raise ConfigError(_WHERE, 0, f"no errno {text!r}{near}")
    return number


def _near(word: str, names: dict[str, str] | dict[str, int]) -> str:
    import difflib

    found = difflib.get_close_matches(word, names, _NEAR_MAX, 0.5)
    found += [name for name in names if word and word in name and name not in found]
    return f"; near it: {', '.join(found[:_NEAR_MAX])}" if found else ""


def _plausible(name: str) -> int:
    call = name.partition(".")[0]
    number = next(number for number, known in HYPERCALL_NAMES.items() if known == call)
    return _PLAUSIBLE.get(number, abi.XEN_EINVAL)


class Faults:
    """The faults of one guest, to be its domain's `refuse`."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults
        self._counts = {fault.name: 0 for fault in faults}
        #: Those that have happened.
        self.happened: list[Fault] = []

    def __call__(self, number: int, args: tuple[int, ...]) -> int:
        """Called for each hypercall before it is begun: the errno that it fails with, or 0."""
        errno = 0
        name = operation_name(number, args)
        for known in dict.fromkeys((name.partition(".")[0], name)):
            if known not in self._counts:
                continue
            self._counts[known] += 1
            for fault in self._faults:
                if (fault.name, fault.nth) == (known, self._counts[known]):
                    self.happened.append(fault)
                    errno = fault.errno
        return errno

    @property
    def waiting(self) -> list[Fault]:
        """Those that have not happened: the guest never made that many calls."""
        return [fault for fault in self._faults if fault not in self.happened]
