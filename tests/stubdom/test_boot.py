"""Boot of a stub domain: what is made, what is taken over, and what stops it before any state."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xenlive.abi.grant_table import GRANT_ENTRY_V1
from xenlive.abi.xen9pfs import OUT_PROD, REF0, RING_ORDER
from xenlive.errors import BootError
from xenlive.kexec.start_info import build_start_info
from xenlive.memory.address import PhysAddr
from xenlive.ninep.tree import MemoryTree
from xenlive.sim.machine import LOAD_END, Hypervisor, SimMachine
from xenlive.stubdom.boot import STATE_FILE, StubDomain, boot
from xenlive.xenstore.stream import encode_state


@pytest.fixture
def hypervisor() -> Hypervisor:
    return Hypervisor()


def first_boot(hypervisor: Hypervisor, cmdline: str = "") -> StubDomain:
    return boot(SimMachine(hypervisor), hypervisor.load(cmdline))


def hand_over(hypervisor: Hypervisor, domain: StubDomain, cmdline: str = "-U") -> PhysAddr:
    """Writes state and start info as an update does; the address for the next kernel."""
    assert domain.front is not None
    assert domain.module is not None
    state = encode_state(domain.server, listen_fd=3, evtchn_fd=-1, fd_of=lambda conn: 9)
    domain.front.write_file(STATE_FILE, state)
    domain.front.save()
    modules = [(domain.module.address, domain.module.size_bytes, 0)]
    block = build_start_info(LOAD_END, domain.start_info.memmap, modules, cmdline)
    hypervisor.memory.write(LOAD_END, block)
    hypervisor.events.forget_kernel()
    return LOAD_END


def test_the_first_boot_makes_module_and_device_where_the_configuration_says(
    hypervisor: Hypervisor,
) -> None:
    domain = first_boot(hypervisor)
    assert domain.module is not None
    assert domain.front is not None
    assert domain.module.address == len(hypervisor.ram) - 18 * 4096
    assert domain.module.n_pages == 17
    assert set(domain.module.owners()) == {0}
    assert domain.front.device.refs == [2047, *range(2046, 2030, -1)]
    assert not domain.is_update


def test_the_command_line_overrides_the_images_configuration(hypervisor: Hypervisor) -> None:
    domain = first_boot(hypervisor, "x CONFIG_KEXEC_MODULE_PAGES=24")
    assert domain.module is not None
    assert domain.module.n_pages == 23


@pytest.mark.parametrize(
    ("words", "module", "device"),
    [
        ("CONFIG_KEXEC=n", False, False),
        ("CONFIG_KEXEC_MODULE_PAGES=0", False, False),
        ("CONFIG_9PFRONT=n", True, False),
        ("CONFIG_KEXEC_MODULE_PAGES=17", True, False),  # a page too few for the rings
        ("CONFIG=whole", False, False),
        ("CONFIG=whole CONFIG_9PFRONT=y", False, False),
        ("CONFIG=whole CONFIG_KEXEC=y CONFIG_KEXEC_MODULE_PAGES=18", True, False),
        ("CONFIG=whole CONFIG_9PFRONT=y CONFIG_KEXEC=y CONFIG_KEXEC_MODULE_PAGES=18", True, True),
    ],
)
def test_what_is_not_configured_or_does_not_fit_stays_off(
    hypervisor: Hypervisor, words: str, module: bool, device: bool
) -> None:
    domain = first_boot(hypervisor, words)
    assert (domain.module is not None, domain.front is not None) == (module, device)


def test_a_module_larger_than_ram_stops_the_boot(hypervisor: Hypervisor) -> None:
    with pytest.raises(BootError, match="module-place"):
        first_boot(hypervisor, "CONFIG_KEXEC_MODULE_PAGES=4000")


def test_an_unreadable_configuration_stops_the_boot(hypervisor: Hypervisor) -> None:
    with pytest.raises(BootError, match="config"):
        first_boot(hypervisor, "CONFIG_KEXEC_MODULE_PAGES=lots")


def test_the_next_kernel_takes_everything_over(hypervisor: Hypervisor) -> None:
    first = first_boot(hypervisor)
    first.server.store.create(b"/a", b"1", first.server.store.nodes[b"/"].perms)
    second = boot(SimMachine(hypervisor), hand_over(hypervisor, first))
    assert second.is_update
    assert second.server.store.nodes[b"/a"].value == b"1"
    assert first.module is not None
    assert second.module is not None
    assert second.module.owners() == first.module.owners()
    assert hypervisor.backend_connects == 1


def _dead_grant(hypervisor: Hypervisor, domain: StubDomain) -> None:
    assert domain.front is not None
    ref = domain.front.device.ring_ref
    hypervisor.grant_frames[ref * 8 : ref * 8 + 8] = bytes(8)


def _grant_of_another_page(hypervisor: Hypervisor, domain: StubDomain) -> None:
    assert domain.front is not None
    ref = domain.front.device.refs[3]
    entry = GRANT_ENTRY_V1.decode(hypervisor.grant_frames, ref * 8)
    entry["frame"] = 1
    hypervisor.grant_frames[ref * 8 : ref * 8 + 8] = GRANT_ENTRY_V1.encode(**entry)


def _record(hypervisor: Hypervisor, domain: StubDomain, offset: int, value: int) -> None:
    assert domain.module is not None
    domain.module.update_record(0, value.to_bytes(4, "little"), offset)


def _interface(hypervisor: Hypervisor, domain: StubDomain, word: int, value: int) -> None:
    assert domain.module is not None
    hypervisor.memory.write(
        PhysAddr(domain.module.page_address(0) + word * 4), value.to_bytes(4, "little")
    )


@pytest.mark.parametrize(
    ("code", "damage"),
    [
        ("9pfs-dead-grant", _dead_grant),
        ("9pfs-dead-grant", lambda h, d: _record(h, d, 0, 99)),
        ("9pfs-dead-grant", lambda h, d: _record(h, d, 0, 1 << 31)),
        ("9pfs-dead-grant", lambda h, d: _interface(h, d, REF0 + 5, 0)),
        ("9pfs-foreign-page", _grant_of_another_page),
        ("9pfs-foreign-page", lambda h, d: _interface(h, d, REF0 + 5, 2046)),
        ("9pfs-wild-port", lambda h, d: _record(h, d, 4, 77)),
        ("9pfs-wild-port", lambda h, d: _record(h, d, 4, 0)),
        ("9pfs-bad-index", lambda h, d: _record(h, d, 8, 12345)),
        ("9pfs-bad-index", lambda h, d: _interface(h, d, OUT_PROD, 7)),
        ("9pfs-bad-ring-order", lambda h, d: _interface(h, d, RING_ORDER, 10)),
    ],
)
def test_a_device_that_can_not_be_taken_over_stops_the_boot_before_the_state_is_read(
    hypervisor: Hypervisor,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    damage: Callable[[Hypervisor, StubDomain], None],
) -> None:
    domain = first_boot(hypervisor)
    address = hand_over(hypervisor, domain)
    damage(hypervisor, domain)
    opened: list[object] = []
    monkeypatch.setattr(MemoryTree, "open", lambda self, path, mode: opened.append(path))
    with pytest.raises(BootError) as caught:
        boot(SimMachine(hypervisor), address)
    assert caught.value.code == code
    assert opened == []


def test_a_damaged_module_is_reported_and_stops_an_update(hypervisor: Hypervisor) -> None:
    domain = first_boot(hypervisor)
    address = hand_over(hypervisor, domain)
    assert domain.module is not None
    hypervisor.memory.write(domain.module.admin_address, b"?")
    with pytest.raises(BootError, match="no-module"):
        boot(SimMachine(hypervisor), address)
    assert "not used" in hypervisor.console[-1]


def test_a_damaged_module_is_not_used_by_a_kernel_that_is_no_update(hypervisor: Hypervisor) -> None:
    domain = first_boot(hypervisor)
    address = hand_over(hypervisor, domain, cmdline="")
    assert domain.module is not None
    hypervisor.memory.write(domain.module.admin_address, b"?")
    second = boot(SimMachine(hypervisor), address)
    assert "not used" in hypervisor.console[-1]
    assert second.module is not None
    assert second.module.owners() == bytes(17)
    assert second.module.records()[0].type == 1


@pytest.mark.parametrize("damage", [b"", b"xenstore", b"\0" * 200, None])
def test_a_damaged_state_stops_the_boot(hypervisor: Hypervisor, damage: bytes | None) -> None:
    domain = first_boot(hypervisor)
    address = hand_over(hypervisor, domain)
    assert domain.front is not None
    hypervisor.events.bind(domain.front.device.port)
    if damage is None:
        domain.front.remove(STATE_FILE)
    else:
        domain.front.write_file(STATE_FILE, [damage])
    domain.front.save()
    hypervisor.events.forget_kernel()
    with pytest.raises(BootError, match="state"):
        boot(SimMachine(hypervisor), address)


def test_an_update_without_a_device_record_stops(hypervisor: Hypervisor) -> None:
    domain = first_boot(hypervisor, "CONFIG_9PFRONT=n")
    assert domain.module is not None
    modules = [(domain.module.address, domain.module.size_bytes, 0)]
    block = build_start_info(LOAD_END, domain.start_info.memmap, modules, "-U")
    hypervisor.memory.write(LOAD_END, block)
    with pytest.raises(BootError, match="9pfs-no-record"):
        boot(SimMachine(hypervisor), LOAD_END)
