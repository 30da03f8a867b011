"""The nodes that a toolstack writes to Xenstore for a guest, before it runs and after it ended.

Specification: Xen 4.17, `tools/libs/light`: `libxl__domain_make` (`libxl_create.c`),
`libxl__build_post` (`libxl_dom.c`), `libxl__device_console_add` (`libxl_console.c`),
`libxl__device_generic_add` (`libxl_device.c`) and `libxl__set_xenstore_p9` (`libxl_9pfs.c`), for a
PVH guest with one processor.

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
from xenlive.abi.xenbus import XenbusStateInitialising

if TYPE_CHECKING:
    from xenlive.machine.emulated.backends.ninepfs import Share
    from xenlive.machine.emulated.backends.store import StoreClient
    from xenlive.machine.emulated.backends.xenbus import DevicePlace
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


def add_ninepfs(store: StoreClient, place: DevicePlace, share: Share) -> None:
    """A 9pfs device, not connected yet; its limits are nodes that later versions of Xen have."""
    back = (
        ("frontend", place.front),
        ("frontend-id", str(place.domid)),
        ("online", "1"),
        ("state", str(XenbusStateInitialising)),
        ("path", share.directory),
        ("security_model", "none"),
        ("max-space", str(-(-share.max_bytes >> 20))),
        ("max-files", str(share.max_files)),
        ("max-open-files", str(share.max_open_files)),
    )
    front = (
        ("backend", place.back),
        ("backend-id", "0"),
        ("state", str(XenbusStateInitialising)),
        ("tag", share.tag),
    )
    _add_device(store, place, back, front)


def _add_device(
    store: StoreClient,
    place: DevicePlace,
    back: tuple[tuple[str, str], ...],
    front: tuple[tuple[str, str], ...],
) -> None:
    """A device's nodes: the guest owns its end, may read the other, and not see libxl's own."""
    own = _libxl_path(place)
    _make(store, own, ("n0",))
    _make(store, place.front, (f"n{place.domid}", "r0"))
    _make(store, place.back, ("n0", f"r{place.domid}"))
    store.write(f"{own}/frontend", place.front)
    store.write(f"{own}/backend", place.back)
    for path, nodes in ((place.front, front), (place.back, back), (own, back[1:])):
        for name, value in nodes:
            store.write(f"{path}/{name}", value)


def _libxl_path(place: DevicePlace) -> str:
    return f"/libxl/{place.domid}/device/{place.kind}/{place.number}"


def remove_device(store: StoreClient, place: DevicePlace) -> None:
    """Removes a device's nodes, as `libxl__device_destroy` does."""
    for path in (place.front, place.back, _libxl_path(place)):
        if store.exists(path):
            store.remove(path)


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
