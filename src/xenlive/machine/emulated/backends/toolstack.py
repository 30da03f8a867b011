"""The nodes that a toolstack writes to Xenstore for a guest, before it runs and after it ended.

Specification: Xen 4.17, `tools/libs/light`: `libxl__domain_make` (`libxl_create.c`),
`libxl__build_post` (`libxl_dom.c`), `libxl__device_console_add` (`libxl_console.c`) and
`libxl__device_generic_add` (`libxl_device.c`), for a PVH guest with one processor.

**Invariants.** A guest owns what libxl lets it own and nothing else: the rest it may only read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls.hvm import (
    HVM_PARAM_CONSOLE_EVTCHN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_STORE_EVTCHN,
    HVM_PARAM_STORE_PFN,
)

if TYPE_CHECKING:
    from xenlive.machine.emulated.backends.xenstore import StoreClient
    from xenlive.machine.emulated.hypervisor.domain import Domain

# What the C console daemon may keep of a guest's output, as libxl says.
_CONSOLE_LIMIT = 1048576

_READ_ONLY = ("cpu", "memory", "device", "control")
_OWN = (
    *("device/suspend/event-channel", "control/shutdown", "control/feature-poweroff"),
    *("control/feature-reboot", "control/feature-suspend", "control/sysrq"),
    *("data", "drivers", "feature", "attr", "error"),
)


def start_store(store: StoreClient) -> None:
    """What is in the store before the first guest (`xen-init-dom0`)."""
    store.write("/local/domain/0/domid", "0")
    store.write("/local/domain/0/name", "Domain-0")


def add_guest(store: StoreClient, domain: Domain, name: str, memory_kib: int) -> None:
    """Writes the nodes of a new guest, before it is introduced."""
    guest, home, handle = domain.domid, home_of(domain), uuid_text(domain.handle)
    read_only = ("n0", f"r{guest}")
    vm = f"/vm/{handle}"
    _make(store, home, read_only)
    _make(store, vm, read_only)
    _make(store, f"/libxl/{guest}", ("n0",))
    _make(store, f"/libxl/{guest}/device", ("n0",))
    store.write(f"{home}/vm", vm)
    store.write(f"{home}/name", name)
    for path in _READ_ONLY:
        _make(store, f"{home}/{path}", read_only)
    for path in _OWN:
        _make(store, f"{home}/{path}", (f"n{guest}",))
    store.write(f"{vm}/uuid", handle)
    store.write(f"{vm}/name", name)
    store.write(f"{home}/control/platform-feature-multiprocessor-suspend", "1")
    store.write(f"{home}/control/platform-feature-xs_reset_watches", "1")
    store.write(f"/libxl/{guest}/type", "pvh")
    params = domain.params
    for path, value in (
        ("memory/static-max", memory_kib),
        ("memory/target", memory_kib),
        ("memory/videoram", 0),
        ("domid", guest),
        ("store/port", params.peek(HVM_PARAM_STORE_EVTCHN)),
        ("store/ring-ref", params.peek(HVM_PARAM_STORE_PFN)),
        ("cpu/0/availability", "online"),
    ):
        store.write(f"{home}/{path}", str(value))
    _add_console(store, domain)


def _add_console(store: StoreClient, domain: Domain) -> None:
    """The first console, which has no state machine: the guest may only read about it."""
    guest, front = domain.domid, f"{home_of(domain)}/console"
    back = f"/local/domain/0/backend/console/{guest}/0"
    read_only = ("n0", f"r{guest}")
    _make(store, front, read_only)
    _make(store, back, read_only)
    for path, value in (
        ("backend", back),
        ("backend-id", "0"),
        ("limit", _CONSOLE_LIMIT),
        ("type", "xenconsoled"),
        ("output", "pty"),
        ("tty", ""),
        ("port", domain.params.peek(HVM_PARAM_CONSOLE_EVTCHN)),
        ("ring-ref", domain.params.peek(HVM_PARAM_CONSOLE_PFN)),
    ):
        store.write(f"{front}/{path}", str(value))
    for path, value in (
        ("frontend", front),
        ("frontend-id", guest),
        ("online", "1"),
        ("state", "1"),
        ("protocol", "vt100"),
    ):
        store.write(f"{back}/{path}", str(value))


def remove_guest(store: StoreClient, domain: Domain) -> None:
    """Removes them again, once the guest is no more."""
    guest = domain.domid
    for path in (
        home_of(domain),
        f"/vm/{uuid_text(domain.handle)}",
        f"/libxl/{guest}",
        f"/local/domain/0/backend/console/{guest}",
    ):
        if store.exists(path):
            store.remove(path)


def home_of(domain: Domain) -> str:
    """Where a guest's relative paths begin."""
    return f"/local/domain/{domain.domid}"


def uuid_text(handle: bytes) -> str:
    """Sixteen bytes in the usual notation."""
    text = handle.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _make(store: StoreClient, path: str, perms: tuple[str, ...]) -> None:
    store.write(path, "")
    store.set_perms(path, *perms)
