"""What a kernel can ask of the machine it runs on, whichever machine that is.

A `GuestMachine` is what stands below a domain's code: guest memory, the grant table's pages, event
channels, a console, and kexec. `hosted/guest.py` is the one of a real process, `sim/` has one
without processes; a kernel knows neither.
"""

from __future__ import annotations

import errno

from xenlive.domain.events import EventChannels
from xenlive.errors import HypercallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenlive.errors import UpdateError
    from xenlive.memory.address import PhysAddr
    from xenlive.memory.guest import GuestMemory


class LoadedImage:
    """An image that is ready to be entered: its version, and the state streams it reads.

    `handle` is the machine's own, -1 for none; `GuestMachine.unload` gives it back.
    """

    __slots__ = ("handle", "image", "streams", "version")

    def __init__(
        self, image: str, version: str, streams: tuple[int, ...], handle: int = -1
    ) -> None:
        self.image = image
        self.version = version
        self.streams = streams
        self.handle = handle


class Loading:
    """An image on its way."""

    __slots__ = ()

    def cancel(self) -> None:
        """Stops it and leaves nothing behind; its answer never comes."""
        raise NotImplementedError


class EventLoop:
    """What a machine needs of a kernel's loop, to do work beside its serving."""

    __slots__ = ()

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Calls `callback` whenever `fd` is readable."""
        raise NotImplementedError

    def unwatch_fd(self, fd: int) -> None:
        """Forgets `fd`; it must still be open."""
        raise NotImplementedError

    def call_at(self, when_s: float, callback: Callable[[], None]) -> object:
        """Calls `callback` once, at `when_s` of the machine's clock or soon after."""
        raise NotImplementedError


class GuestMachine(EventChannels):
    """Processor and hypervisor as one domain sees them."""

    __slots__ = ("domid", "grant_frames", "load_end", "memory")

    #: The domain's own id.
    domid: int
    #: Guest physical memory.
    memory: GuestMemory
    #: The grant table's pages, live and shared with the hypervisor.
    grant_frames: memoryview
    #: Where the image of the next kernel ends in guest memory, and its start info may begin.
    load_end: PhysAddr

    def now_s(self) -> float:
        """The machine's clock in seconds: it never runs backwards, and kernels share it."""
        raise NotImplementedError

    def populated_memory(self) -> list[tuple[int, int]] | None:
        """Address and size of what was ever written to in memory; None if that is not known.

        Reading elsewhere gives zeroes, and may cost the memory that was not needed so far.
        """
        return None

    def console(self, text: str) -> None:
        """Writes one line to the domain's console."""
        raise NotImplementedError

    def milestone(self, name: str, when_ns: int = 0) -> None:
        """Tells the host that a step was reached, now or at `when_ns` of the machine's clock."""
        raise NotImplementedError

    def connect_ninepfs(self, ring_ref: int, port: int) -> None:
        """Has the 9pfs backend attach to the rings behind a granted interface page.

        A backend that was attached before lets go first, and all indices start at 0.
        """
        raise NotImplementedError

    # -- other domains: a machine has none, unless it says otherwise -------------------------------

    def map_foreign(self, domid: int, ref: int) -> memoryview:
        """A live view of a page that another domain has granted. HypercallError if it has not."""
        raise HypercallError("gnttab_map", errno.ESRCH, f"no domain {domid}")

    def bind_interdomain(self, domid: int, port: int) -> int:
        """A port of ours, bound to that of another domain. HypercallError if it has none."""
        raise HypercallError("evtchn_bind_interdomain", errno.ESRCH, f"no domain {domid}")

    def bind_virq(self, virq: int) -> int:
        """The port, ready to use, that a virtual interrupt rings. HypercallError for a wild one."""
        raise HypercallError("evtchn_bind_virq", errno.EINVAL, f"no virtual interrupt {virq}")

    def bell(self, port: int) -> int:
        """A descriptor that is readable when the other end of a port has rung."""
        raise HypercallError("evtchn_bind", errno.EINVAL, f"port {port} has no descriptor")

    def take_ring(self, port: int) -> bool:
        """Whether the other end has rung; the port is silent again then."""
        raise HypercallError("evtchn_bind", errno.EINVAL, f"port {port} has no descriptor")

    def ring_again(self, port: int) -> None:
        """Makes the own end of a port ring, as if the other one had rung."""
        raise HypercallError("evtchn_bind", errno.EINVAL, f"port {port} has no descriptor")

    def domain_state(self, domid: int) -> tuple[int, bool] | None:
        """A domain's unique id, and whether it has shut down; None if there is no such domain."""
        return None

    def validate_image(self, image: str) -> None:
        """Refuses what can't be an image: UpdateError, in the C daemon's words where it has any."""
        raise NotImplementedError

    def load_image(
        self, loop: EventLoop, image: str, on_done: Callable[[LoadedImage | UpdateError], None]
    ) -> Loading:
        """Loads `image` beside the serving, and finds out whether it is a kernel; answers later.

        UpdateError if it can't even be tried.
        """
        raise NotImplementedError

    def running_image(self, image: str, version: str) -> LoadedImage:
        """The running kernel, as it can come back: its code is kept from now on."""
        raise NotImplementedError

    def unload(self, loaded: LoadedImage) -> None:
        """Forgets an image that is not to be entered after all."""
        raise NotImplementedError

    def new_copy(self) -> int:
        """A place outside of the device where a copy of the state outlives this kernel."""
        raise NotImplementedError

    def write_copy(self, copy: int, data: bytes) -> None:
        """Appends to a copy."""
        raise NotImplementedError

    def read_copy(self, copy: int) -> bytes:
        """All of a copy; OSError if there is none."""
        raise NotImplementedError

    def drop_copy(self, copy: int) -> None:
        """Gives a copy's place back."""
        raise NotImplementedError

    def kexec(
        self,
        loaded: LoadedImage,
        start_info: PhysAddr,
        fallback: LoadedImage,
        fallback_start_info: PhysAddr,
        keep: Iterable[int],
    ) -> None:
        """Enters `loaded`; memory, grants, ports and the descriptors `keep` stay.

        If it ends before it has taken over, `fallback` is entered instead. Does not return; OSError
        if the processor can't be entered, and then all is as it was.
        """
        raise NotImplementedError
