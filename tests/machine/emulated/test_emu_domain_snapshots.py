"""Going back to how a domain was: memory, what stands where, ports, grants, timers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from machine.emulated.grantcalls import HOLE, grant, map_ref, set_version, unmap
from machine.emulated.guests import Guest, World
from machine.emulated.test_emu_space import Recorder

from xenlive.abi.hypercalls import hvm
from xenlive.abi.hypercalls import memory as memory_abi
from xenlive.abi.hypercalls import vcpu as vcpu_abi
from xenlive.abi.hypercalls.xen import DOMID_SELF, VIRQ_TIMER
from xenlive.machine.emulated.stop import GuestStop


@pytest.fixture
def world() -> Iterator[World]:
    made = World(2)
    yield made
    made.close()


def facts(guest: Guest) -> dict[str, object]:
    """What a guest can find out, and what Xen knows."""
    domain = guest.domain
    ports = range(1, 70)
    return {
        "pages": [(g, n, w) for g, n, _, w in domain.space.runs()],
        "memory": domain.space.read(0, 4 << 20),
        "shared": bytes(domain.space.xen_frame(0).view),
        "grants": [bytes(page) for page in domain.grants.shared_view()],
        "total": domain.space.total_pages,
        "ports": [domain.events.status(p) for p in ports if domain.events.is_valid(p)],
        "active": {r: (a.domid, a.readers, a.writers) for r, a in domain.grants.active().items()},
        "mapped": domain.mappings.mapped(),
        "version": domain.grants.version,
        "timer": domain.timer_deadline_ns(),
        "params": [domain.params.peek(i) for i in range(hvm.HVM_NR_PARAMS)],
        "vector": domain.callback_vector(),
        "pending": domain.pending_upcall(),
        "reason": domain.shutdown_reason,
        "console": bytes(domain.console_io),
    }


def change_everything(ours: Guest, theirs: Guest) -> None:
    """As many changes as a guest can make to itself and another."""
    domain = ours.domain
    ours.write_virtual(0x3000, b"changed")
    layout = memory_abi.XEN_MEMORY_RESERVATION
    ours.write_virtual(0x9000, (0x40).to_bytes(8, "little"))
    fields = {"extent_start": 0x9000, "nr_extents": 1, "domid": DOMID_SELF}
    assert ours.op("memory_op", memory_abi.XENMEM_decrease_reservation, layout, **fields) == 1
    add = memory_abi.XEN_ADD_TO_PHYSMAP
    place = {"domid": DOMID_SELF, "space": memory_abi.XENMAPSPACE_shared_info, "gpfn": 0x3000}
    assert ours.op("memory_op", memory_abi.XENMEM_add_to_physmap, add, **place) == 0
    param = {"domid": DOMID_SELF, "index": hvm.HVM_PARAM_CALLBACK_IRQ, "value": 2 << 56 | 0x70}
    assert ours.op("hvm_op", hvm.HVMOP_set_param, hvm.XEN_HVM_PARAM, **param) == 0
    offered = theirs.domain.events.alloc_unbound(1)
    domain.events.bind_interdomain(theirs.domain.events, offered)
    domain.events.bind_virq(VIRQ_TIMER, 0)
    domain.events.send(1)
    info = ours.put(vcpu_abi.VCPU_REGISTER_VCPU_INFO, mfn=0x50, offset=0x80)
    assert ours.call("vcpu_op", vcpu_abi.VCPUOP_register_vcpu_info, 0, info) == 0
    ours.call("set_timer_op", 77_000)
    ref = grant(theirs, 1, ref=30)
    assert map_ref(ours, 2, ref, host_addr=HOLE + 0x9000)["status"] == 0
    domain.has_console_io = True
    domain.write_console_io(b"said")


def test_back_and_back_again(world: World) -> None:
    ours, theirs = world.guests
    handle = map_ref(ours, 2, grant(theirs, 1))["handle"]
    recorder = Recorder()
    ours.domain.space.attach(recorder)
    before = facts(ours), facts(theirs)
    seen = dict(recorder.pages)
    saved = ours.domain.save(), theirs.domain.save()
    for _ in range(2):
        change_everything(ours, theirs)
        with pytest.raises(GuestStop):
            ours.domain.vcpu_down()
        after = facts(ours)
        assert [name for name in after if after[name] == before[0][name]] == [
            "grants",
            "active",
            "version",
        ]
        ours.domain.restore(saved[0])
        theirs.domain.restore(saved[1])
        assert (facts(ours), facts(theirs)) == before
        assert recorder.pages == seen
    # What was mapped before is mapped, and can be unmapped.
    assert unmap(ours, handle) == 0
    assert theirs.domain.grants.active() == {}


def test_versions_go_back(world: World) -> None:
    guest = world.guests[0]
    saved = guest.domain.save()
    before = facts(guest)
    assert set_version(guest, 2) == (0, 2)
    guest.domain.restore(saved)
    assert facts(guest) == before


def test_a_snapshot_is_as_large_as_what_is_used(world: World) -> None:
    space = world.guests[0].domain.space
    space.write(0x200000, b"one page")
    used = sum(len(data) for _, data in space.save().pieces)
    assert used < 256 << 10
