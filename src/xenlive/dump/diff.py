"""What changed from one image of a kexec module to another, in words.

    A    | 0 | 1 | ... | 16 | admin |            record 0 (9PFS): prod_pvt_out 40342 -> 73988
    B    | 0 ... 5 | 6 | ... | 22 | admin |      page 12 (6 before): was free, now record 7

A module grows and shrinks at its lower end, and its indices shift: so pages are the same page if
they are as far from the administration page. Records are the same record if their index is, as that
is what owners go by.

**Invariants.** No change is told of images whose modules have the same bytes at the same place, and
at least one if they differ in any byte that both have, sound or not. Pages are called by their
index in the second image. The order of changes depends on the images alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from xenlive.abi.kexec_module import PAGE_FREE, PG2REC_OFFSET, RECORD
from xenlive.dump.describe import describe
from xenlive.dump.diffrecords import record_changes
from xenlive.dump.image import FoundModule, Image
from xenlive.dump.lines import problem_line
from xenlive.dump.roles import FREE, INTERFACE, Role, roles_of
from xenlive.dump.words import count, runs
from xenlive.memory.address import PAGE_SIZE

MODULE = "module"  # kinds of changes
RECORDS = "record"
OWNER = "owner"
CONTENT = "content"
PROBLEM = "problem"


@dataclass(frozen=True)
class Change:
    """One thing that changed: its kind, what it is in words, and the record and pages it is of."""

    kind: str
    text: str
    record: int | None = None
    pages: tuple[int, ...] = ()

    def as_object(self) -> dict[str, Any]:
        """The change as JSON has it: `kind` `text` `record` `pages`."""
        return {
            "kind": self.kind,
            "text": self.text,
            "record": self.record,
            "pages": list(self.pages),
        }


class Side:
    """One of the two images: what its module says, and its pages."""

    def __init__(self, image: Image, found: FoundModule) -> None:
        self.description = describe(image, found)
        self.n_pages: int = self.description["n_pages"]
        self.admin_page = found.admin_page
        self.owners = bytes.fromhex(self.description["pg2rec"])
        self.read_page: Callable[[int], bytes | None] = found.read_page


def diff(before: Side, after: Side) -> list[Change]:
    """Every change from one to the other; an empty list if there is none."""
    changes = [
        *_module_changes(before.description, after.description),
        *(
            Change(RECORDS, text, index)
            for index, text in record_changes(before.description, after.description)
        ),
        *_owner_changes(before, after),
        *_content_changes(before, after),
        *_problem_changes(before.description, after.description),
    ]
    left = list(_rest_of_admin_page(before, after))
    if before.admin_page != after.admin_page and not changes and not left:
        left = [Change(CONTENT, "the administration page differs", None, (after.n_pages,))]
    return changes + left


# The module.


def _module_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    old, new = before["admin_address"], after["admin_address"]
    if None not in (old, new) and old != new:
        yield Change(MODULE, f"module moved: administration page {old:#x} -> {new:#x}")
    more = after["n_pages"] - before["n_pages"]
    if more:
        verb = "grew" if more > 0 else "shrank"
        sizes = f"{before['n_pages'] + 1} -> {after['n_pages'] + 1} pages"
        if None not in (before["address"], after["address"]):
            sizes += f", {before['address']:#x} -> {after['address']:#x}"
        text = f"module {verb} by {count(abs(more), 'page')} at its lower end: {sizes}"
        yield Change(MODULE, text)
    for name, what in (("n_records", "record table"), ("recs_off", "record table's offset")):
        if before[name] != after[name]:
            yield Change(MODULE, f"{what}: {before[name]} -> {after[name]}")


def _problem_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    old = [problem_line(problem) for problem in before["problems"]]
    new = [problem_line(problem) for problem in after["problems"]]
    yield from (Change(PROBLEM, f"problem gone: {line}") for line in old if line not in new)
    yield from (Change(PROBLEM, f"problem new: {line}") for line in new if line not in old)


# Owners.


def _owner_changes(before: Side, after: Side) -> Iterator[Change]:
    shift = after.n_pages - before.n_pages
    gone = range(max(-shift, 0))
    yield from _of_one_side(before, gone, "gone")
    yield from _of_one_side(after, range(max(shift, 0)), "new")
    pairs = [
        (page, before.owners[page - shift], after.owners[page])
        for page in range(max(shift, 0), len(after.owners))
        if page - shift < len(before.owners)
    ]
    for (old, new), group in groupby(pairs, lambda pair: pair[1:]):
        if old != new:
            pages = [page for page, _, _ in group]
            verb = "was" if len(pages) == 1 else "were"
            text = f"{_named(pages, shift)}: {verb} {_owner(old)}, now {_owner(new)}"
            yield Change(OWNER, text, None if new == PAGE_FREE else new, tuple(pages))


def _of_one_side(side: Side, pages: range, what: str) -> Iterator[Change]:
    """Pages at the lower end that only one image has."""
    owned = ((page, side.owners[page]) for page in pages if page < len(side.owners))
    for owner, group in groupby(owned, lambda pair: pair[1]):
        indices = [page for page, _ in group]
        verb = "is" if len(indices) == 1 else "are"
        text = f"{_named(indices, 0)} {verb} {what}: {_owner(owner)}"
        yield Change(OWNER, text, None if owner == PAGE_FREE else owner, tuple(indices))


def _owner(owner: int) -> str:
    return "free" if owner == PAGE_FREE else f"record {owner}"


def _named(pages: list[int], shift: int) -> str:
    """`page 9 (3 before)`, `pages 6-8`; by the index in the second image."""
    name = f"page {runs(pages)}" if len(pages) == 1 else f"pages {runs(pages)}"
    return f"{name} ({runs(page - shift for page in pages)} before)" if shift else name


# Contents.


def _content_changes(before: Side, after: Side) -> Iterator[Change]:
    """The pages whose bytes differ, by owner: for a device by part too."""
    shift = after.n_pages - before.n_pages
    common = range(max(shift, 0), after.n_pages)
    differing: dict[int, str] = {}
    for page in common:
        old, new = before.read_page(page - shift), after.read_page(page)
        if (old is None) != (new is None):
            differing[page] = "only in the first image" if new is None else "only in the second"
        elif old != new:
            differing[page] = ""
    roles = roles_of(after.description)
    by_owner: dict[int, list[int]] = {}
    for page in common:
        by_owner.setdefault(roles[page].owner, []).append(page)
    for owner, pages in sorted(by_owner.items()):
        changed = [page for page in pages if page in differing]
        if changed:
            text = _content_text(owner, pages, changed, roles, shift)
            if any(differing.values()):
                missing = [page for page in changed if differing[page]]
                text += f"; {runs(missing)} in one image only" if missing else ""
            yield Change(CONTENT, text, owner if owner >= 0 else None, tuple(changed))


def _content_text(
    owner: int, pages: list[int], changed: list[int], roles: list[Role], shift: int
) -> str:
    if owner < 0:
        whose = "free" if owner == FREE else "stray"
        return f"{whose} {_named(changed, shift)}: contents differ"
    parts: dict[str, list[int]] = {}
    for page in changed:
        parts.setdefault(_part(roles[page]), []).append(page)
    told = ", ".join(f"{runs(part)}{name}" for name, part in parts.items())
    whole = f"record {owner}: {_named(pages, shift)}"
    if len(changed) == len(pages):
        return f"{whole} changed" + (f": {told}" if any(parts) else "")
    return f"{whole} unchanged but for {told}"


def _part(role: Role) -> str:
    if not role.part:
        return ""
    return " (interface)" if role.part == INTERFACE else f" ({role.part} ring)"


def _rest_of_admin_page(before: Side, after: Side) -> Iterator[Change]:
    """Bytes of the administration page that neither module's fields or records account for."""
    known = _accounted(before) | _accounted(after)
    old, new = before.admin_page, after.admin_page
    places = [at for at in range(PAGE_SIZE) if old[at] != new[at] and at not in known]
    if places:
        text = f"administration page: bytes of no record differ at {runs(places)}"
        yield Change(CONTENT, text, None, (after.n_pages,))
    if (
        before.n_pages == after.n_pages
        and before.description["recs_off"] == (after.description["recs_off"])
    ):
        yield from _unused_entries(before, after)


def _unused_entries(before: Side, after: Side) -> Iterator[Change]:
    """Entries that are unused in both and yet differ: reservations, and what was left there."""
    start = before.description["recs_off"]
    used = {record["index"] for side in (before, after) for record in side.description["records"]}
    n = min(before.description["n_records"], after.description["n_records"])
    for index in range(min(n, max(PAGE_SIZE - start, 0) // RECORD.size)):
        at = start + index * RECORD.size
        end = at + RECORD.size
        if index not in used and before.admin_page[at:end] != after.admin_page[at:end]:
            yield Change(RECORDS, f"record {index}: unused, but its entry differs", index)


def _accounted(side: Side) -> set[int]:
    said = side.description
    table_end = said["recs_off"] + said["n_records"] * RECORD.size
    known = set(range(PG2REC_OFFSET + len(side.owners)))
    known.update(range(said["recs_off"], min(table_end, PAGE_SIZE)))
    for record in said["records"]:
        known.update(range(record["offset"], record["offset"] + record["size"]))
    return known
