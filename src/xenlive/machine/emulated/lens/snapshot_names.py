"""What the names in a snapshot mean: parts of the domains of one world, by domain id.

**Invariants.** A frame that a name gives is one that its domain has. Nothing is made and nothing
changed here.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller
from xenlive.machine.emulated.hypervisor.hypercalls.vcpu import RunstateArea, TimeArea
from xenlive.machine.emulated.hypervisor.sharedinfo import VCPU_INFO_SIZE
from xenlive.machine.emulated.lens.snapshot_forms import Form, Place
from xenlive.machine.emulated.space import N_XEN_FRAMES, MachineFrame
from xenlive.memory.address import PAGE_SIZE

if TYPE_CHECKING:
    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.processor.vcpu import Vcpu

_U64 = (1 << 64) - 1


class Names:
    """The domains and processors of a world by id; domain 0 has no processor."""

    def __init__(self, domains: dict[int, Domain], vcpus: dict[int, Vcpu]) -> None:
        self.domains = domains
        self.vcpus = vcpus

    def domain(self, domid: object, at: Place) -> Domain:
        """The domain that a snapshot names. ImageError if it has none of that id."""
        found = self.domains.get(domid) if type(domid) is int else None
        if found is None:
            raise at.fail("the id of a domain of this snapshot", domid)
        return found

    def any_processor(self) -> bytes:
        """The state of some processor: what all of them have in common is in it."""
        return next(iter(self.vcpus.values())).engine.save()

    def frame(self, domid: object, index: object, at: Place) -> MachineFrame:
        """A page of a domain's. ImageError if it has none of that number."""
        space = self.domain(domid, at).space
        if type(index) is not int or not 0 <= index < space.n_ram + N_XEN_FRAMES:
            raise at.fail(f"a page of domain {domid}", index)
        return MachineFrame(space, index)


class Frame(Form):
    """A page: its domain and its number there."""

    def save(self, value: Any) -> Any:
        return [value.home.domid, value.index]

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not list or len(plain) != 2:
            raise at.fail("a domain and a page", plain)
        return at.names.frame(plain[0], plain[1], at)


class Events(Form):
    """The event channels of a domain."""

    def save(self, value: Any) -> Any:
        return value.domid

    def load(self, plain: Any, at: Place) -> Any:
        return at.names.domain(plain, at).events


class Grants(Form):
    """The grant table of a domain."""

    def save(self, value: Any) -> Any:
        return value.domid

    def load(self, plain: Any, at: Place) -> Any:
        return at.names.domain(plain, at).grants


class Processor(Form):
    """The processor of a domain."""

    def save(self, value: Any) -> Any:
        return value.domid

    def load(self, plain: Any, at: Place) -> Any:
        at.names.domain(plain, at)
        if plain not in at.names.vcpus:
            raise at.fail("the id of a domain with a processor", plain)
        return at.names.vcpus[plain]


class InfoPlace(Form):
    """Where the vcpu_info is: live bytes of a page, by their offset in its domain's memory.

    A view does not say of what it is one, so the domain has to be given.
    """

    def save(self, value: Any) -> Any:
        space, view = value
        return [space.domid, address_of(view) - space.base_address]

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not list or len(plain) != 2 or type(plain[1]) is not int:
            raise at.fail("a domain and an offset", plain)
        frame = at.names.frame(plain[0], plain[1] // PAGE_SIZE, at)
        offset = plain[1] % PAGE_SIZE
        if offset % 4 or offset > PAGE_SIZE - VCPU_INFO_SIZE:
            raise at.fail("a place for a vcpu_info", plain[1])
        return frame.home, frame.view[offset : offset + VCPU_INFO_SIZE]


def address_of(view: memoryview) -> int:
    """Where the bytes of a view are in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class Area(Form):
    """A place that a guest registered: for its running state, or for the time."""

    def __init__(self, kind: type[RunstateArea] | type[TimeArea]) -> None:
        self._kind = kind

    def save(self, value: Any) -> Any:
        return [value.caller.domain.domid, value.caller.is_64bit, value.address]

    def load(self, plain: Any, at: Place) -> Any:
        if type(plain) is not list or len(plain) != 3 or type(plain[1]) is not bool:
            raise at.fail("a domain, its width and an address", plain)
        domain, address = at.names.domain(plain[0], at), plain[2]
        if type(address) is not int or not 0 <= address <= _U64:
            raise at.fail("an address", address)
        if plain[0] not in at.names.vcpus:
            raise at.fail("the id of a domain with a processor", plain[0])
        return self._kind(Caller(domain, at.names.vcpus[plain[0]], plain[1]), address)
