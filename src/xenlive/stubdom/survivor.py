"""Which of the modules that survived in RAM is believed: the one that Xen's grant table bears out.

    sound, by itself ─▶ its 9pfs device is granted ─▶ no other one as good overlaps it ─▶ ours again
     any 14 bytes        17 grants, to the backend,
                         each to a page of the record

Nobody hands a survivor over, so nobody vouches for it. Its bytes are no witness: what clients store
passes through pages of the module's, of the kernels' heaps and of the rings, and any of it can look
like a module. The grant table is Xen's, and clients' bytes don't get there. So a module counts only
if its device's references are alive, to the backend, and all lead to pages that it says are the
device's. One that covers a part of the device only can't pass.

A page above the module, or a page of it that is not the device's, could hold one that covers the
whole device as well. Which of the two is the real one, nothing tells: then neither is used. A
search has a bound (`find.py`). If it is reached inside of one, another could be where nobody
looked: that one is in doubt as well.

**Invariants.** Nothing is written to what is not accepted. What was refused is told once, in a few
lines at most, and so is a search that was cut short; neither stops the boot. What was not looked
at never counts as harmless.
"""

from __future__ import annotations

from xenlive.domain.ninepdevice import find_granted_device
from xenlive.errors import BootError, OutOfSpace
from xenlive.kexec.find import find_surviving_module, surviving_modules
from xenlive.memory.address import PAGE_SIZE, frame_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.kexec.module import KexecModule
    from xenlive.memory.address import Frame
    from xenlive.stubdom.boot import StubDomain

# How many refused ones are told of by name.
_TOLD = 3


def find_survivor(
    domain: StubDomain, reserved: list[tuple[int, int]]
) -> tuple[KexecModule, int] | None:
    """The surviving module that counts, and the record of its device; None if there is none.

    `reserved` is what is in use since: address and size in bytes of each run.
    """
    machine, judge = domain.machine, _Judge(domain, reserved)
    cut_short = ""
    try:
        module = find_surviving_module(
            machine.memory,
            domain.start_info.memmap,
            reserved,
            machine.populated_memory(),
            judge.accepts,
        )
    except OutOfSpace as error:
        module, cut_short = None, str(error)
    judge.tell()
    if cut_short:
        machine.console(f"the search for a kexec module was cut short: {cut_short}")
    return None if module is None else (module, judge.record)


class _Judge:
    """Says of each candidate whether it is believed, highest first; `record` is of the last one."""

    __slots__ = ("_domain", "_doubtful", "_granted", "_refused", "_reserved", "record")

    def __init__(self, domain: StubDomain, reserved: list[tuple[int, int]]) -> None:
        self._domain = domain
        self._reserved = reserved
        self._granted: set[Frame] = domain.grants.frames()
        self._refused: list[str] = []
        # first and last address of modules that are not to be told apart
        self._doubtful: list[tuple[int, int]] = []
        self.record = 0

    def accepts(self, module: KexecModule) -> bool:
        """Whether it is the one."""
        try:
            self.record = self._device(module)
            self._validate_alone(module)
        except BootError as error:
            self._refused.append(f"the one at {module.address:#x}: {error}")
            return False
        return True

    def tell(self) -> None:
        """Tells of those that were refused, if there were any."""
        if self._refused:
            more = len(self._refused) - _TOLD
            named = "; ".join(self._refused[:_TOLD]) + (f"; {more} more" if more > 0 else "")
            self._domain.machine.console(f"looks like a kexec module, not used: {named}")

    def _device(self, module: KexecModule) -> int:
        if frame_of(module.admin_address) in self._granted:
            raise BootError("survivor-granted", "its last page is granted to somebody")
        domain = self._domain
        return find_granted_device(domain.machine.memory, module, domain.grants)

    def _validate_alone(self, module: KexecModule) -> None:
        low, high = int(module.address), int(module.admin_address)
        doubt = ""
        if any(low <= last and first <= high for first, last in self._doubtful):
            doubt = "it shares pages with another one in doubt"
        else:
            try:
                if self._has_another_inside(module):
                    doubt = "another one has the same device"
            except OutOfSpace as error:
                doubt = f"the search for others inside of it was cut short: {error}"
        if doubt:
            self._doubtful.append((low, high))
            raise BootError("survivor-in-doubt", doubt)

    def _has_another_inside(self, module: KexecModule) -> bool:
        """Whether one whose last page is a page of the module's has the device, too.

        OutOfSpace if none has that was looked at, and not all were.
        """
        inside = [(int(module.address), module.n_pages * PAGE_SIZE)]
        domain = self._domain
        for other in surviving_modules(
            domain.machine.memory, domain.start_info.memmap, self._reserved, inside
        ):
            try:
                self._device(other)
            except BootError:
                continue
            return True
        return False
