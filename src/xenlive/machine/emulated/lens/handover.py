"""What one kernel hands to the next: looked at while the next one is at its entry.

    kernel A leaves ── `Before`: all pages ──▶ ... ──▶ kernel B at its entry: `Handover`
                                                        │ what it was handed, what it can reach,
                                                        │ what changed on the way, what is wrong
                                                        └──▶ poison for everything else

A handover is one object, for people (`handovertext.py`) and for programs; `describe_handover` has
its keys. Kernel 0 was put there by who built the domain: it is poisoned around, not reported.

**Invariants.** Looking changes nothing. Whatever the kernels left, there is an object, in which
`problems` says what is wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xenlive.abi.hypercalls.event_channel import EVTCHNSTAT_interdomain, EVTCHNSTAT_unbound
from xenlive.abi.kexec_module import EYE_CATCHER
from xenlive.dump.describe import describe as describe_module
from xenlive.dump.image import Image
from xenlive.errors import ImageError
from xenlive.kexec.start_info import StartInfo, parse_start_info
from xenlive.machine.emulated.lens.arguments import CHANNEL_NAMES, VIRQ_NAMES
from xenlive.machine.emulated.lens.pages import (
    Pages,
    changed_between,
    moved_between,
    pages_of,
    runs_of,
)
from xenlive.machine.emulated.lens.poison import poison_all_but
from xenlive.machine.emulated.lens.report import name_at
from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.lens.entries import Entries, Entry, Left
    from xenlive.machine.emulated.world import Guest

_CMDLINE_MAX = 4096
# A chain of kernels may have no end.
_FOUND_MAX = 256
_BLOCK_ALIGN = 8
# As docs/misc/pvh.pandoc has them: flat, accessed, present.
_FLAT = {"cs": 0x00C09B00, "ds": 0x00C09300, "es": 0x00C09300, "ss": 0x00C09300}
_SEGMENT_FLAGS = 0x00F0FF00
_FLAGS_OFF = {"TF": 1 << 8, "IF": 1 << 9, "VM": 1 << 17}


class Handovers:
    """Watches the chain of a guest's kernels; `entries` says when."""

    def __init__(self, guest: Guest, entries: Entries, poison: int | None = None) -> None:
        self._guest = guest
        self._poison = poison
        self._before: Pages | None = None
        self._last: Entry | None = None
        #: What was found at each, as `describe_handover` has it; of many, at the last ones.
        self.found: list[dict[str, Any]] = []
        #: How many handovers before those are not kept.
        self.left_out = 0
        self.on_handover: list[Callable[[dict[str, Any]], object]] = []
        entries.on_left.append(self._on_left)
        entries.on_entry.append(self._on_entry)

    def _on_left(self, _: Left) -> None:
        self._before = pages_of(self._guest.domain.space)

    def _on_entry(self, entry: Entry) -> None:
        info, problem = read_start_info(self._guest, entry.start_info)
        said = describe_handover(self._guest, entry, info, problem, self._last, self._before)
        if self._poison is not None:
            said["poisoned_bytes"] = 0
            if entry.known.image is not None and info is not None:
                kept = [*entry.known.image.touched(), *handed_over(self._guest, info, entry)]
                said["poisoned_bytes"] = poison_all_but(self._guest.domain, kept, self._poison)
            else:
                said["problems"].append("not poisoned: nobody knows what has to be kept")
        self._before, self._last = None, entry
        if entry.n:
            self.found.append(said)
            if len(self.found) > _FOUND_MAX:
                del self.found[0]
                self.left_out += 1
            for heard in self.on_handover:
                heard(said)


def read_start_info(guest: Guest, address: int) -> tuple[StartInfo | None, str]:
    """The start info at an address; or none, and what is wrong with it."""
    try:
        return parse_start_info(guest.domain.space.memory(), PhysAddr(address)), ""
    except ImageError as error:
        return None, error.what


def handed_over(guest: Guest, info: StartInfo, entry: Entry) -> list[tuple[int, int]]:
    """Address and size of all that is handed over: the start info's block, and the modules.

    Who built the domain may have put the parts of a start info anywhere; a kernel hands one block
    over. What a pointer in it leads to elsewhere is memory that nobody kept for this.
    """
    block, others = block_of(guest, info, entry.start_info)
    modules = [(address, size) for address, size, _ in info.modules]
    return [block, *modules, *(others if entry.n == 0 else [])]


def block_of(
    guest: Guest, info: StartInfo, address: int
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Address and size of the start info's block, and of the parts that are not in it.

    The block is one run of bytes from `address` on, but for alignment.
    """
    parts = info.block
    for _, _, cmdline in info.modules:
        if cmdline:
            line, _, _ = guest.domain.space.read(cmdline, _CMDLINE_MAX).partition(b"\0")
            parts.append((cmdline, len(line) + 1))
    end, others = address, []
    for at, size in sorted(parts):
        if end <= at < end + _BLOCK_ALIGN:
            end = at + size
        else:
            others.append((at, size))
    return (address, end - address), others


def describe_handover(
    guest: Guest,
    entry: Entry,
    info: StartInfo | None,
    problem: str,
    last: Entry | None,
    before: Pages | None,
) -> dict[str, Any]:
    """All that is to be said, the guest being at the entry.

    `n time_ns entry start_info name file bits`; `from`: inside or outside, with `left` (when, where
    in which function) and `last`, the kernel before; `cmdline`; `modules` with what is in them;
    `changed` and `unchanged_modules` since the kernel before left; `memory_map`; `grants` in use;
    `ports`; `problems`.
    """
    changed = _changes(guest, entry, info, last, before)
    image = entry.known.image
    problems = [*processor_problems(guest), *([problem] if problem else [])]
    problems += _block_problems(guest, entry, info)
    return {
        "n": entry.n,
        "time_ns": entry.when_ns,
        "entry": f"{entry.address:#x}",
        "start_info": f"{entry.start_info:#x}",
        "name": name_at(guest, entry.address, entry.when_ns),
        "file": entry.known.name,
        "bits": image.bits if image is not None else None,
        "image": [_range(*part) for part in image.touched()] if image is not None else [],
        "from": "outside" if entry.from_outside else "inside",
        "last": last.known.name if last is not None else "",
        "left": _left(guest, entry),
        "cmdline": info.cmdline if info is not None else "",
        "modules": _modules(guest, info, changed) if info is not None else [],
        "changed": changed,
        "memory_map": _memory_map(info),
        "grants": _grants(guest, info),
        "ports": _ports(guest),
        "problems": problems + _map_problems(guest, info),
    }


def processor_problems(guest: Guest) -> list[str]:
    """What of the processor is not as `docs/misc/pvh.pandoc` wants it at an entry."""
    engine = guest.vcpu.engine
    problems = []
    if engine.reg("cr0") & ~0x10 != 1:
        problems.append(f"cr0 is {engine.reg('cr0'):#x}, and should have PE alone")
    if engine.reg("cr4"):
        problems.append(f"cr4 is {engine.reg('cr4'):#x}, and should be 0")
    if engine.reg("efer") & 0x500:
        problems.append("long mode is on in EFER")
    on = [name for name, bit in _FLAGS_OFF.items() if engine.eflags & bit]
    if on:
        problems.append(f"eflags has {' and '.join(on)} set")
    for name, flags in _FLAT.items():
        segment = engine.segment(name)
        found = (segment.base, segment.limit, segment.flags & _SEGMENT_FLAGS)
        if found != (0, 0xFFFFFFFF, flags):
            base, limit, kind = found
            problems.append(f"{name} is not flat: base {base:#x}, limit {limit:#x}, {kind:#x}")
    return problems


def _range(address: int, size: int) -> dict[str, Any]:
    return {"address": f"{address:#x}", "size_bytes": size}


def _left(guest: Guest, entry: Entry) -> dict[str, Any] | None:
    left = entry.left
    if left is None:
        return None
    if left.why:
        return {"time_ns": left.when_ns, "why": left.why}
    name = name_at(guest, left.rip, left.when_ns)
    return {"time_ns": left.when_ns, "rip": f"{left.rip:#x}", "name": name}


# ---- modules ------------------------------------------------------------------------------------


def _modules(
    guest: Guest, info: StartInfo, changed: list[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    found = []
    for address, size, cmdline in info.modules:
        said: dict[str, Any] = _range(address, size)
        line, _, _ = guest.domain.space.read(cmdline, _CMDLINE_MAX).partition(b"\0")
        said["cmdline"] = line.decode("utf-8", "backslashreplace") if cmdline else ""
        said["is_memory"] = guest.domain.space.is_backed(address, size)
        said["kexec"] = _kexec_module(guest, address, size)
        said["changed_pages"] = _changed_pages(address, size, changed)
        found.append(said)
    return found


def _changed_pages(
    address: int, size: int, changed: list[dict[str, Any]] | None
) -> list[str] | None:
    """Which of a module's pages are not what they were when the kernel before left."""
    if changed is None:
        return None
    found = []
    for run in changed:
        start = int(run["address"], 16)
        for page in range(start, start + run["size_bytes"], PAGE_SIZE):
            if page < address + size and address < page + PAGE_SIZE:
                found.append(f"{page:#x}")
    return found


def _kexec_module(guest: Guest, address: int, size: int) -> dict[str, Any] | None:
    """What `xenlive inspect` says of a module of ours; None for a stranger."""
    space = guest.domain.space
    last = address + size - PAGE_SIZE
    if size < PAGE_SIZE or space.read(last, len(EYE_CATCHER)) != EYE_CATCHER:
        return None
    if space.contiguous(address, size) != address:
        return None  # its pages were moved, in a way that an image does not show
    with Image(Path(f"/proc/self/fd/{space.fd}"), "memory") as image:
        modules = image.modules_that_end_at([last])
        return describe_module(image, modules[0]) if modules else None


# ---- what changed -------------------------------------------------------------------------------


def _changes(
    guest: Guest, entry: Entry, info: StartInfo | None, last: Entry | None, before: Pages | None
) -> list[dict[str, Any]] | None:
    """Runs of changed pages, each with what it is now; None if nobody saw the kernel leave."""
    if before is None:
        return None
    after = pages_of(guest.domain.space)
    frames = changed_between(before, after)
    what = {frame: _what(frame, entry, info, last) for frame in frames}
    others = [frame for frame in frames if what[frame] in ("", _LAST)]
    moved = moved_between(before, after, others)
    runs: list[dict[str, Any]] = []
    for first, count in runs_of(frames):
        for frame in range(first, first + count):
            source = moved.get(frame)
            step = source - frame if source is not None else None
            said = what[frame] or "other memory"
            at = frame << PAGE_SHIFT
            if (
                runs
                and (runs[-1]["what"], runs[-1]["_step"]) == (said, step)
                and int(runs[-1]["address"], 16) + runs[-1]["size_bytes"] == at
            ):
                runs[-1]["size_bytes"] += PAGE_SIZE
                continue
            runs.append({**_range(at, PAGE_SIZE), "what": said, "_step": step})
            runs[-1]["from"] = f"{source << PAGE_SHIFT:#x}" if source is not None else None
    for run in runs:
        del run["_step"]
    return runs


_LAST = "the kernel before"


def _what(frame: int, entry: Entry, info: StartInfo | None, last: Entry | None) -> str:
    """What is in a page at the entry of a kernel."""
    page = frame << PAGE_SHIFT

    def is_in(ranges: list[tuple[int, int]]) -> bool:
        return any(at < page + PAGE_SIZE and page < at + size for at, size in ranges)

    if info is not None:
        for n, (address, size, _) in enumerate(info.modules):
            if is_in([(address, size)]):
                return f"module {n}"
    if entry.known.image is not None and is_in(entry.known.image.touched()):
        return "the kernel"
    if info is not None and is_in(info.block):
        return "start info"
    if last is not None and last.known.image is not None and is_in(last.known.image.touched()):
        return _LAST
    return ""


# ---- what can be reached ------------------------------------------------------------------------


def _memory_map(info: StartInfo | None) -> list[dict[str, Any]]:
    ranges = info.memmap.ranges() if info is not None else []
    return [{**_range(part.addr, part.size), "type": part.type} for part in ranges]


def _block_problems(guest: Guest, entry: Entry, info: StartInfo | None) -> list[str]:
    others = block_of(guest, info, entry.start_info)[1] if info is not None else []
    return [
        f"{size} bytes that the start info points to lie at {at:#x}, outside of its block: "
        "nobody keeps them"
        for at, size in others
    ]


def _map_problems(guest: Guest, info: StartInfo | None) -> list[str]:
    """What the kernel is told of memory that is not so."""
    if info is None:
        return []
    problems = []
    own = MemoryMap(MemoryRange(*part) for part in guest.domain.boot_map)
    for part in info.memmap.ranges():
        if part.type == E820_RAM and not own.is_ram(PhysAddr(part.addr), part.size):
            problems.append(f"the memory map has RAM at {part.addr:#x} where there is none")
    if not info.memmap.ranges():
        problems.append("the start info has no memory map")
    for n, (address, size, _) in enumerate(info.modules):
        if not guest.domain.space.is_backed(address, max(size, 1)):
            problems.append(f"module {n} at {address:#x} is not in memory")
    return problems


def _grants(guest: Guest, info: StartInfo | None) -> list[dict[str, Any]]:
    modules = [(at, size) for at, size, _ in info.modules] if info is not None else []
    found = []
    for ref, active in sorted(guest.domain.grants.active().items()):
        gfn = guest.domain.space.gfn_of(active.frame)
        page = None if gfn is None else gfn << PAGE_SHIFT
        found.append(
            {
                "ref": ref,
                "page": None if page is None else f"{page:#x}",
                "domid": active.domid,
                "readers": active.readers,
                "writers": active.writers,
                "in_ram": page is not None
                and any(kind == 1 and a <= page < a + s for a, s, kind in guest.domain.boot_map),
                "handed_over": page is not None
                and any(at <= page < at + size for at, size in modules),
            }
        )
    return found


def _ports(guest: Guest) -> list[dict[str, Any]]:
    found = []
    for port, channel in guest.domain.events.in_use():
        said: dict[str, Any] = {"port": port, "state": CHANNEL_NAMES.get(channel.state, "")}
        if channel.state == EVTCHNSTAT_interdomain and channel.remote is not None:
            said |= {"domid": channel.remote.domid, "remote_port": channel.remote_port}
        elif channel.state == EVTCHNSTAT_unbound:
            said |= {"domid": channel.remote_domid}
        elif said["state"] == "virq":
            said |= {"virq": VIRQ_NAMES.get(channel.number, str(channel.number))}
        found.append(said)
    return found
