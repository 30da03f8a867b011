"""A handover in lines for people; the object is `handover.describe_handover`'s.

    handover 1 at 2.307 ms: script.elf -> next.elf, 64 bit, entry 0x100000 (entry+0x0)
      left     at 2.300 ms in leave_start+0x4f
      start    start info 0x11b000, command line "make 1"
      module 0 0xfee000, 72 KiB, kexec: 17 pages, 2 records; unchanged
      ...

**Invariants.** Nothing from a guest reaches the terminal but printable characters, and not without
bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.dump.lines import problem_line, record_lines
from xenlive.dump.words import printable
from xenlive.memory.address import PAGE_SIZE
from xenlive.memory.e820 import (
    E820_ACPI,
    E820_RAM,
    E820_RESERVED,
    E820_SOFT_RESERVED,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_LINES_MAX = 24
_TEXT_MAX = 200
_TYPES = {
    E820_RAM: "RAM",
    E820_RESERVED: "reserved",
    E820_ACPI: "ACPI",
    E820_SOFT_RESERVED: "soft reserved",
}
_MAP_WIDTH = 64


def lines_of(said: Mapping[str, Any]) -> list[str]:
    """The lines of one handover."""
    found = [_head(said), *_way(said)]
    found.append(f'  command line "{_text(said["cmdline"])}"')
    for n, module in enumerate(said["modules"]):
        found += _module_lines(n, module)
    if not said["modules"]:
        found.append("  no modules")
    found += _changed_lines(said["changed"])
    found += ["  what it can reach", *_map_lines(said), *_grant_lines(said["grants"])]
    found += _cut([_port_line(port) for port in said["ports"]])
    found += [f"  wrong: {_text(problem)}" for problem in said["problems"]]
    if "poisoned_bytes" in said:
        found.append(f"  poisoned: {_size(said['poisoned_bytes'])} that nobody handed over")
    return found


def _head(said: Mapping[str, Any]) -> str:
    bits = f", {said['bits']} bit" if said["bits"] else ""
    name = f" ({said['name']})" if said["name"] else ""
    return (
        f"handover {said['n']} at {_when(said['time_ns'])}: {_text(said['last'])} -> "
        f"{_text(said['file'])}{bits}, entry {said['entry']}{name}, start info {said['start_info']}"
    )


def _way(said: Mapping[str, Any]) -> list[str]:
    left = said["left"]
    if left is None:
        return ["  nobody saw the kernel before leave"]
    if "why" in left:
        return [
            f"  from outside: the kernel before ended at {_when(left['time_ns'])}: "
            f"{_text(left['why'])}"
        ]
    where = f" ({left['name']})" if left["name"] else ""
    return [f"  paging went off at {_when(left['time_ns'])}, at {left['rip']}{where}"]


def _module_lines(n: int, module: Mapping[str, Any]) -> list[str]:
    what = "a file or a stranger's"
    kexec = module["kexec"]
    if kexec is not None:
        records = f"{len(kexec['records'])} of {kexec['n_records']} records"
        what = f"kexec module, {kexec['n_pages']} pages, {kexec['free_pages']} free, {records}"
    changed = module["changed_pages"]
    if changed is None:
        state = ""
    elif changed:
        pages = ", ".join(changed[:8]) + (", …" if len(changed) > 8 else "")
        state = f"; CHANGED on the way: {pages}"
    else:
        state = "; unchanged"
    line = f' "{_text(module["cmdline"])}"' if module["cmdline"] else ""
    place = f"{module['address']}, {_size(module['size_bytes'])}"
    found = [f"  module {n} at {place}{line}: {what}{state}"]
    for record in kexec["records"] if kexec is not None else []:
        found += [f"    {_text(text)}" for text in record_lines(record)]
    for problem in kexec["problems"] if kexec is not None else []:
        found.append(f"    problem: {_text(problem_line(problem))}")
    return [*found[:1], *_cut(found[1:])]


def _changed_lines(changed: list[Mapping[str, Any]] | None) -> list[str]:
    if changed is None:
        return []
    if not changed:
        return ["  no page changed on the way"]
    pages = sum(run["size_bytes"] for run in changed) // PAGE_SIZE
    found = []
    for run in changed:
        moved = f", moved from {run['from']}" if run["from"] else ""
        found.append(f"    {_span(run)}  {_size(run['size_bytes']):>9}  {run['what']}{moved}")
    return [f"  changed on the way: {pages} pages", *_cut(found)]


def _map_lines(said: Mapping[str, Any]) -> list[str]:
    found = []
    for part in said["memory_map"]:
        kind = _TYPES.get(part["type"], f"type {part['type']:#x}")
        found.append(f"    {_span(part)}  {_size(part['size_bytes']):>9}  {kind}")
    return [*_picture(said), *_cut(found)]


def _picture(said: Mapping[str, Any]) -> list[str]:
    """RAM from address 0 on in one line: which part of it is whose."""
    first = [p for p in said["memory_map"] if p["type"] == E820_RAM and int(p["address"], 16) == 0]
    if not first or not first[0]["size_bytes"]:
        return []
    size = first[0]["size_bytes"]
    cells = ["."] * _MAP_WIDTH

    def mark(part: Mapping[str, Any], sign: str) -> None:
        start = int(part["address"], 16)
        if start >= size:
            return
        last = min(start + max(part["size_bytes"], 1) - 1, size - 1)
        for cell in range(start * _MAP_WIDTH // size, last * _MAP_WIDTH // size + 1):
            cells[cell] = sign

    for run in said["changed"] or []:
        mark(run, "*")
    for part in said["image"]:
        mark(part, "K")
    for n, module in enumerate(said["modules"]):
        mark(module, str(n) if n < 10 else "M")
    legend = "K the kernel, digits its modules, * changed on the way, . free"
    return [f"    |{''.join(cells)}| {_size(size)}", f"     {legend}"]


def _grant_lines(grants: list[Mapping[str, Any]]) -> list[str]:
    found = []
    for grant in grants:
        page = f"page {grant['page']}" if grant["page"] else "a page that stands nowhere"
        way = "writes" if grant["writers"] else "reads"
        alone = "" if grant["handed_over"] or not grant["in_ram"] else ", NOT handed over"
        found.append(f"    grant {grant['ref']}: {page}, domain {grant['domid']} {way} it{alone}")
    return _cut(found)


def _port_line(port: Mapping[str, Any]) -> str:
    line = f"    port {port['port']}: {port['state']}"
    if "remote_port" in port:
        line += f", domain {port['domid']} port {port['remote_port']}"
    elif "domid" in port:
        line += f", for domain {port['domid']}"
    elif "virq" in port:
        line += f" {port['virq']}"
    return line


def _cut(found: list[str]) -> list[str]:
    if len(found) <= _LINES_MAX:
        return found
    return [*found[:_LINES_MAX], f"    and {len(found) - _LINES_MAX} more"]


def _span(part: Mapping[str, Any]) -> str:
    start = int(part["address"], 16)
    return f"{start:#010x}-{start + part['size_bytes']:#010x}"


def _size(n: int) -> str:
    if n >= 1 << 20 and n % (1 << 20) == 0:
        return f"{n >> 20} MiB"
    return f"{n >> 10} KiB" if n >= 1 << 10 and n % (1 << 10) == 0 else f"{n} bytes"


def _when(when_ns: int) -> str:
    return f"{when_ns / 1e6:.6f} ms"


def _text(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _TEXT_MAX else f"{shown[:_TEXT_MAX]}…"
