"""The 9pfs device of a booting stub domain: taken over from its record, started over, or made.

    handed-over module   its device is taken over as it is; if that can't be, the boot stops
    survivor             tried in turn: as it is, with its rings started over; if neither can be,
                         it is given up, and a new one is made in its pages
    coming back          rings started over; else the device stays off, clients come first

A survivor's device (`survivor.py`) is granted, but may be as the last kernel left it or as nobody
can go on from: the kernel in between had no idea of it. It is given up only when the backend does
not use its pages. Beside a new module, grants that are left over from others are taken back as soon
as the backend uses the new device.

**Invariants.** A module has at most one connected device: no new one is made beside one that could
not be given up. Pages that a backend can still reach are given to nobody else.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import RECORD_9PFS
from xenlive.domain.ninepdevice import discard_device
from xenlive.domain.ninepfront import TIMEOUT_S, NinePFront
from xenlive.errors import BootError, OutOfSpace, XenliveError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.kexec.module import KexecModule
    from xenlive.stubdom.boot import StubDomain

#: Seconds that the backend of a survivor's device has to answer.
SURVIVOR_TIMEOUT_S = 3.0

_OFF = "9pfs device stays off, no live update"

# What can be mended by starting the rings over.
_AT_ODDS = ("9pfs-bad-index", "9pfs-no-answer", "9pfs-broken-backend", "9pfs-refused")


def take_over_or_make_device(domain: StubDomain) -> None:
    """Gives `domain` its front end, if it can have one. BootError for a device that must be had."""
    machine, module = domain.machine, domain.module
    if module is None:
        if domain.config.flag("9PFRONT"):
            machine.console("no kexec module: the 9pfs device stays off, no live update")
        return
    if domain.came_back:
        _start_device_over(domain, module)
        return
    survivor, record = domain.survivor_record, _connected_record(module)
    if survivor is not None:
        domain.front = _surviving_device(domain, module, survivor)
        if domain.front is not None or not _give_up(domain, module, survivor):
            return
    elif record is not None:
        domain.front = NinePFront.resume(machine.memory, module, record, domain.grants, machine)
        return
    elif domain.is_update:
        raise BootError("9pfs-no-record", "the handed-over module has no 9pfs device")
    if domain.config.flag("9PFRONT"):
        try:
            domain.front = NinePFront.create(
                machine.memory, module, domain.grants, machine, machine.connect_ninepfs
            )
        except OutOfSpace as error:
            # A module that is too small for the rings still works as one; the device stays off.
            machine.console(f"{_OFF}: {error}")
        else:
            if domain.has_new_module:
                # The backend has let go of what it had before, if it had anything.
                domain.grants.end_unused(domain.front.device.refs)


def _start_device_over(domain: StubDomain, module: KexecModule) -> None:
    """For a kernel that comes back: another one has died on the device, so its rings begin anew.

    Whatever became of the device, the clients come first: it stays off if it can't be had.
    """
    machine = domain.machine
    record = _connected_record(module)
    try:
        if record is None:
            raise BootError("9pfs-no-record", "the module has no 9pfs device any more")
        domain.front = NinePFront.resume(
            machine.memory,
            module,
            record,
            domain.grants,
            machine,
            reconnect=machine.connect_ninepfs,
        )
    except XenliveError as error:
        machine.console(f"{_OFF}: {error}")


def _surviving_device(domain: StubDomain, module: KexecModule, record: int) -> NinePFront | None:
    """A survivor's device: as it is, else with its rings started over, else None."""
    machine = domain.machine
    for reconnect in (None, machine.connect_ninepfs):
        try:
            front = NinePFront.resume(
                machine.memory,
                module,
                record,
                domain.grants,
                machine,
                timeout_s=SURVIVOR_TIMEOUT_S,
                reconnect=reconnect,
            )
        except BootError as error:
            machine.console(f"9pfs device of record {record} can't be taken over: {error}")
            if error.code not in _AT_ODDS:
                break
        else:
            front.timeout_s = TIMEOUT_S
            return front
    return None


def _give_up(domain: StubDomain, module: KexecModule, record: int) -> bool:
    """Makes a survivor's device nobody's; whether that could be done."""
    if discard_device(module, record, domain.grants):
        domain.machine.console(f"its record {record} is deleted, its pages are free")
        return True
    domain.machine.console(f"its pages are still granted and in use: {_OFF}")
    return False


def _connected_record(module: KexecModule) -> int | None:
    """The record of the handed-over device; one that was never connected has no grant in it."""
    record = module.find_record(RECORD_9PFS)
    while record is not None and not any(module.read_record(record)):
        record = module.find_record(RECORD_9PFS, record + 1)
    return record
