"""The kexec module of a booting stub domain: found, found again, or made; later fitted.

    start info names a sound one ─▶ that one
    none, and CONFIG_KEXEC        ─▶ one that survived in RAM ─▶ else a new one at the top of RAM

A kernel that knows nothing of modules may have run in between: it hands none on, and may have left
all of it in place. So before a new one is made, RAM is searched from 4 GiB downward for the eye
catcher of one (`kexec/find.py`), and what is found has to be borne out by the grant table
(`survivor.py`). Only whole pages that were ever written to are looked at, one word of each: on a
machine that gives a domain its memory page by page, reading the others would cost what they don't
take yet. What is searched on a first boot is a page or two.

Size: `CONFIG_KEXEC_MODULE_PAGES` is that of a new module; a kernel keeps the one it was handed, as
the posted code does. With `CONFIG_KEXEC_MODULE_RESIZE`, which is ours, `fit_module` then grows or
shrinks it at its lower end, as far as the memory there is free.

**Invariants.** A module that is not sound is never used, nor one that reaches into the running
kernel's image or into the start info; a survivor also stays out of what that names, and of the
place of the next kernel's. What is made new takes no page that somebody is still granted: a device
may be writing to it. A module is fitted only when no earlier kernel can come back any more: its
start info names the size of before.
"""

from __future__ import annotations

from xenlive.abi.kexec_module import MAX_MODULE_PAGES, PAGE_FREE
from xenlive.errors import BadAddress, BootError, ModuleError, OutOfSpace
from xenlive.kexec.find import find_kexec_module
from xenlive.kexec.module import KexecModule
from xenlive.memory.address import PAGE_SIZE, address_of
from xenlive.stubdom.survivor import find_survivor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.stubdom.boot import StubDomain

#: What is kept free for start infos behind the end of a kernel's image.
LOAD_RESERVE_BYTES = 0x10000


def find_or_make_module(domain: StubDomain) -> None:
    """Gives `domain` its module, if it is to have one. BootError if there is no place for it."""
    machine, start_info = domain.machine, domain.start_info
    domain.module, domain.module_note = find_kexec_module(
        start_info, machine.memory, [(0, int(machine.load_end))]
    )
    if domain.module_note or (start_info.modules and domain.module is None):
        why = domain.module_note or "none of them begins its last page with KexecMem"
        machine.console(f"handed-over module not used: {why}")
    if domain.module is not None or domain.came_back:
        return
    if domain.is_update:
        raise BootError("no-module", domain.module_note or "the start info names no kexec module")
    if domain.config.flag("KEXEC"):
        domain.module = _survivor(domain) or _new_module(domain)


def fit_module(domain: StubDomain) -> None:
    """Grows or shrinks the module to what is configured, if that is configured too.

    What can't be had is said on the console, and the module keeps what it has.
    """
    module, wanted = domain.module, domain.config.number("KEXEC_MODULE_PAGES")
    if module is None or wanted == 0 or not domain.config.flag("KEXEC_MODULE_RESIZE"):
        return
    before = module.n_pages + 1
    try:
        if wanted > before:
            _grow(domain, module, wanted - before)
        elif wanted < before:
            _shrink(domain, module, before - wanted)
    except OutOfSpace as error:
        domain.machine.console(f"kexec module keeps its {before} pages, {wanted} wanted: {error}")
    now = module.n_pages + 1
    if now != before:
        short = f", {wanted} wanted" if now != wanted else ""
        domain.machine.console(f"kexec module has {now} pages now, {before} before{short}")


def _survivor(domain: StubDomain) -> KexecModule | None:
    found = find_survivor(domain, _in_use(domain))
    if found is None:
        return None
    module, domain.survivor_record = found
    domain.machine.console(
        f"kexec module at {module.address:#x} has survived, {module.n_pages + 1} pages: "
        "used, though the kernel before did not hand it over"
    )
    return module


def _new_module(domain: StubDomain) -> KexecModule | None:
    """A module in free RAM, where no grant leads; None if such grants leave no room for one."""
    pages, memmap = domain.config.number("KEXEC_MODULE_PAGES"), domain.start_info.memmap
    if pages == 0:
        return None
    domain.grants.end_unused()
    domain.has_new_module = True
    try:
        place = memmap.place_module(pages, _in_use(domain))
        try:
            place = memmap.place_module(pages, [*_in_use(domain), *_granted(domain)])
        except OutOfSpace as error:
            domain.machine.console(f"no kexec module: it would lie in granted pages: {error}")
            return None
        return KexecModule.create(domain.machine.memory, place, pages)
    except (OutOfSpace, ModuleError, BadAddress) as error:
        raise BootError("module-place", str(error)) from error


def _in_use(domain: StubDomain) -> list[tuple[int, int]]:
    """What a module must stay out of: the start info, what it names, and what lies below.

    That is the running kernel's image, as the machine has it, and the place of the next one's.
    """
    below = (0, int(domain.machine.load_end) + LOAD_RESERVE_BYTES)
    return [*domain.start_info.reserved(), below]


def _granted(domain: StubDomain) -> list[tuple[int, int]]:
    """Address and size of the runs of pages that anybody was given access to."""
    runs: list[tuple[int, int]] = []
    for frame in sorted(domain.grants.frames()):
        address = int(address_of(frame))
        if runs and sum(runs[-1]) == address:
            runs[-1] = (runs[-1][0], runs[-1][1] + PAGE_SIZE)
        else:
            runs.append((address, PAGE_SIZE))
    return runs


def _grow(domain: StubDomain, module: KexecModule, wanted: int) -> None:
    memmap, in_use = domain.start_info.memmap, [*_in_use(domain), *_granted(domain)]
    room = memmap.room_below(module.address, in_use)
    pages = min(wanted, room, MAX_MODULE_PAGES - 1 - module.n_pages)
    if pages < 1:
        raise OutOfSpace("free pages below the kexec module", wanted, room)
    module.grow(pages, memmap, in_use)
    _shift_indices(domain, pages)


def _shrink(domain: StubDomain, module: KexecModule, wanted: int) -> None:
    owners = module.owners()
    free = len(owners) - len(owners.lstrip(bytes([PAGE_FREE])))
    if free == 0:
        raise OutOfSpace("free pages at the lower end of the kexec module", wanted, 0)
    pages = min(wanted, free)
    module.shrink(pages)
    _shift_indices(domain, -pages)


def _shift_indices(domain: StubDomain, by: int) -> None:
    """The pages of the device stay where they are, their indices follow the module's lower end."""
    if domain.front is not None:
        domain.front.device.shift_pages(by)
