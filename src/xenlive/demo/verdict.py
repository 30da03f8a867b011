"""The verdict: evidence in, named checks out. Pure, and nothing is taken on trust.

    what was expected (the images)  ┐
    what the host reported          ├─▶ judge() ─▶ [Check(name, ok, detail), …]
    what the load found             │
    the memory before and after     ┘

**Invariants.** Missing evidence is a failed check, never a skipped one. A check says in its detail
what was measured, so that a reader can disagree. The number and order of checks is always the
same.

Why not compare everything with everything at once: "broken" helps nobody, "grant 2031 points at
frame 0x7ef instead of 0x7ee" does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from xenlive.demo.load import Gap, Result
from xenlive.demo.world import PHASES, HandoverSnapshot, Image, UpdateReport

U32 = 1 << 32


@dataclass(frozen=True)
class Check:
    """One thing that must be true, whether it is, and what was measured."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Update:
    """One update with all that is known of it."""

    image: Image
    report: UpdateReport
    gap: Gap | None = None
    after: HandoverSnapshot | None = None


@dataclass(frozen=True)
class Evidence:
    """All that was measured in one demo. `trouble` is what ended it early, or empty."""

    first_version: str
    nodes: int
    watches: int
    updates: tuple[Update, ...]
    planned_updates: int
    before: HandoverSnapshot | None
    load: Result | None
    trouble: str = ""

    @property
    def last(self) -> HandoverSnapshot | None:
        """The handed-over memory after the last update, or None if there was none."""
        return self.updates[-1].after if self.updates else None


def judge(evidence: Evidence) -> list[Check]:
    """All checks in a fixed order."""
    checks = [
        Check("demo", not evidence.trouble, evidence.trouble or "ran to its end"),
        _updates(evidence),
        _under_load(evidence),
    ]
    checks += [_load_check(evidence, name, check) for name, check in LOAD_CHECKS.items()]
    checks += [_handover_check(evidence, name, check) for name, check in HANDOVER_CHECKS.items()]
    return checks


# -- the updates -----------------------------------------------------------------------------------


def _updates(evidence: Evidence) -> Check:
    wrong = []
    running = evidence.first_version
    for update in evidence.updates:
        report = update.report
        step = f"{running} to {update.image.version}"
        if not report.ok:
            wrong.append(f"{step}: {report.reason or 'failed'}")
        elif (report.from_version, report.to_version) != (running, update.image.version):
            wrong.append(f"{step}: {report.from_version} to {report.to_version} was done")
        elif report.from_version == report.to_version:
            wrong.append(f"{step}: the version did not change")
        elif missing := [phase for phase in PHASES if phase not in report.phases_ms]:
            wrong.append(f"{step}: not measured: {', '.join(missing)}")
        elif update.after is not None and update.after.version != update.image.version:
            wrong.append(f"{step}: {update.after.version} runs")
        running = report.to_version
    done = len(evidence.updates)
    if done != evidence.planned_updates:
        wrong.append(f"{done} of {evidence.planned_updates} updates were tried")
    versions = [evidence.first_version, *(update.report.to_version for update in evidence.updates)]
    return Check("updates", not wrong, "; ".join(wrong) or " → ".join(versions))


def _under_load(evidence: Evidence) -> Check:
    """An update that nobody was waiting on proves nothing."""
    gaps = [update.gap for update in evidence.updates if update.gap is not None]
    idle = [gap for gap in gaps if gap.answers == 0 or gap.clients == 0 or gap.silence_ms <= 0]
    ok = bool(gaps) and len(gaps) == evidence.planned_updates and not idle
    if not ok:
        return Check("under load", False, "no client was at work during an update")
    answers = sum(gap.answers for gap in gaps)
    return Check("under load", True, f"{answers:,} answers around the updates")


# -- what the load found ---------------------------------------------------------------------------


def _requests(load: Result, evidence: Evidence) -> tuple[bool, str]:
    if load.requests == 0:
        return False, "no request was made"
    if load.failed_requests:
        return False, f"{load.failed_requests:,} of {load.requests:,} failed{_first(load.details)}"
    return True, f"{load.requests:,} answered, every answer right"


def _nodes(load: Result, evidence: Evidence) -> tuple[bool, str]:
    wrong = [
        f"{count:,} {what}"
        for count, what in (
            (load.nodes_lost, "lost"),
            (load.nodes_extra, "that nobody made"),
            (load.values_different, "with another value"),
            (load.elsewhere_different, "outside of the demo changed"),
        )
        if count
    ]
    if load.nodes != evidence.nodes:
        wrong.append(f"{load.nodes:,} planned instead of {evidence.nodes:,}")
    if load.nodes_read < evidence.nodes and not load.nodes_lost:
        wrong.append(f"only {load.nodes_read:,} of {evidence.nodes:,} read back")
    if wrong:
        return False, "; ".join(wrong) + _first(load.node_details)
    return True, f"{load.nodes_read:,} read back, every value equal"


def _permissions(load: Result, evidence: Evidence) -> tuple[bool, str]:
    if load.perms_different:
        return False, f"{load.perms_different:,} nodes differ{_first(load.node_details)}"
    if load.nodes_read < evidence.nodes:
        return False, f"only {load.nodes_read:,} of {evidence.nodes:,} read back"
    return True, f"of {load.nodes_read:,} nodes, all equal"


def _watches(load: Result, evidence: Evidence) -> tuple[bool, str]:
    if load.watches != evidence.watches:
        return False, f"{load.watches} watches instead of {evidence.watches}"
    wrong = [
        f"{count:,} {what}"
        for count, what in (
            (load.events_missing, "events missing"),
            (load.events_unexpected, "events that were not due"),
            (load.tokens_wrong, "events with a wrong token"),
        )
        if count
    ]
    if load.events_received != load.events_due and not wrong:
        wrong.append(f"{load.events_received:,} events for {load.events_due:,} due")
    if load.watches_lost or wrong:
        lost = [f"{load.watches_lost} of {load.watches} broken", *wrong]
        return False, "; ".join(lost) + _first(load.watch_details)
    return (
        True,
        f"{load.watches} fired, {load.events_due:,} events due, exactly these came in order",
    )


def _connections(load: Result, evidence: Evidence) -> tuple[bool, str]:
    if load.connections == 0:
        return False, "there were none"
    if load.connections_lost:
        lost = f"{load.connections_lost} of {load.connections} lost"
        return False, lost + _first([line for line in load.details if "connection lost" in line])
    if not load.new_connection:
        return False, "the old ones live, but a new one was not served"
    return True, f"all {load.connections} still the first ones; a new one is served too"


LoadCheck = Callable[[Result, Evidence], tuple[bool, str]]
LOAD_CHECKS: dict[str, LoadCheck] = {
    "requests": _requests,
    "nodes": _nodes,
    "permissions": _permissions,
    "watches": _watches,
    "connections": _connections,
}


def _load_check(evidence: Evidence, name: str, check: LoadCheck) -> Check:
    if evidence.load is None:
        return Check(name, False, "the load gave no result")
    return Check(name, *check(evidence.load, evidence))


# -- what was handed over --------------------------------------------------------------------------


def _same_domain(a: HandoverSnapshot, b: HandoverSnapshot) -> tuple[bool, str]:
    if a.ram_identity != b.ram_identity:
        return False, "the domain has other memory than before"
    if a.domain_pid != b.domain_pid:
        return False, f"process {b.domain_pid} instead of {a.domain_pid}"
    return True, f"process {b.domain_pid} on the same memory throughout"


def _module_place(a: HandoverSnapshot, b: HandoverSnapshot) -> tuple[bool, str]:
    before = f"{a.module_pages} pages at {a.module_address:#x}"
    after = f"{b.module_pages} pages at {b.module_address:#x}"
    if before != after:
        return False, f"{after} instead of {before}"
    if problems := [*a.problems, *b.problems]:
        return False, f"not sound{_first(problems)}"
    return True, f"{after}, whatever B and C were configured for"


def _module_owners(a: HandoverSnapshot, b: HandoverSnapshot) -> tuple[bool, str]:
    if a.owners != b.owners:
        changed = [
            f"page {k}: {y} instead of {x}"
            for k, (x, y) in enumerate(
                zip(bytes.fromhex(a.owners), bytes.fromhex(b.owners), strict=False)
            )
            if x != y
        ]
        return False, "owners changed" + _first(changed)
    if (before := _shape(a)) != (after := _shape(b)):
        return False, f"records {after} instead of {before}"
    owned = sum(owner != 255 for owner in bytes.fromhex(b.owners))
    if not owned:
        return False, "no page has an owner: nothing was handed over"
    return True, f"{owned} pages owned by {len(b.records)} record{'s'[: len(b.records) != 1]}"


def _shape(snapshot: HandoverSnapshot) -> list[tuple[int, int, int, int, tuple[int, ...]]]:
    return [(r.index, r.type, r.offset, r.size, r.pages) for r in snapshot.records]


def _grants(a: HandoverSnapshot, b: HandoverSnapshot) -> tuple[bool, str]:
    if a.ring_ref != b.ring_ref or a.ring_refs != b.ring_refs:
        return False, f"references {_refs(b)} instead of {_refs(a)}"
    device = (a.ring_ref, *a.ring_refs)
    for ref in device:
        before, after = a.grants.get(ref), b.grants.get(ref)
        if before is None or after is None:
            return False, f"grant {ref} is not active"
        if before.frame != after.frame:
            return False, f"grant {ref} gives frame {after.frame:#x} instead of {before.frame:#x}"
        if before != after:
            return False, f"grant {ref}: {after} instead of {before}"
    if a.grants.keys() != b.grants.keys():
        odd = ", ".join(str(ref) for ref in sorted(a.grants.keys() ^ b.grants.keys()))
        return False, f"grants come or gone: {odd}"
    return True, f"{len(device)} references and frames unchanged"


def _refs(snapshot: HandoverSnapshot) -> str:
    return f"{snapshot.ring_ref} with {list(snapshot.ring_refs)}"


def _ring_pages(a: HandoverSnapshot, b: HandoverSnapshot) -> tuple[bool, str]:
    if a.ring_order != b.ring_order or len(b.ring_refs) != 1 << b.ring_order:
        return False, f"order {b.ring_order} with {len(b.ring_refs)} pages, was {a.ring_order}"
    first = b.module_address >> 12
    for ref in (b.ring_ref, *b.ring_refs):
        grant = b.grants.get(ref)
        if grant is None or not first <= grant.frame < first + b.module_pages - 1:
            return False, f"the page behind grant {ref} is not in the module"
        if bytes.fromhex(b.owners)[grant.frame - first] == 255:
            return False, f"the page behind grant {ref} is free in the module"
    return True, f"interface page and {len(b.ring_refs)} ring pages in place, inside the module"


def _event_channel(a: HandoverSnapshot, b: HandoverSnapshot) -> tuple[bool, str]:
    if a.event_channel != b.event_channel:
        return False, f"port {b.event_channel} instead of {a.event_channel}"
    return True, f"port {b.event_channel} unchanged"


def _ring_indices(a: HandoverSnapshot, b: HandoverSnapshot) -> tuple[bool, str]:
    """Every index went on from where it was, by exactly as much as the backend has moved."""
    x, y = a.indices, b.indices
    out_moved = (y.out_cons - x.out_cons) % U32
    in_moved = (y.in_prod - x.in_prod) % U32
    received = b.backend.received_bytes - a.backend.received_bytes
    sent = b.backend.sent_bytes - a.backend.sent_bytes
    if out_moved != received % U32:
        return False, f"out_cons moved by {out_moved:,}, the backend received {received:,} bytes"
    if in_moved != sent % U32:
        return False, f"in_prod moved by {in_moved:,}, the backend sent {sent:,} bytes"
    if (y.out_prod - y.out_cons) % U32 or (y.in_prod - y.in_cons) % U32:
        return False, "the ring is not at rest: something in it was never taken"
    kexec_out = (b.saved_prod_pvt_out - x.out_prod) % U32
    kexec_in = (b.saved_cons_pvt_in - x.in_cons) % U32
    if kexec_out > received or kexec_in > sent:
        return False, "the indices that were handed over are not on the way from then to now"
    if not received or not sent:
        return False, "nothing went through the ring: the state took another way"
    return True, f"{received:,} bytes out and {sent:,} in, without a break"


def _backend(a: HandoverSnapshot, b: HandoverSnapshot) -> tuple[bool, str]:
    if not (a.backend.connected and b.backend.connected):
        return False, "not connected"
    if b.backend.disconnects or b.backend.connects != 1:
        times = f"connected {b.backend.connects} times, disconnected {b.backend.disconnects}"
        return False, times
    return True, "connected once, before the first update, and never since"


HandoverCheck = Callable[[HandoverSnapshot, HandoverSnapshot], tuple[bool, str]]
HANDOVER_CHECKS: dict[str, HandoverCheck] = {
    "domain": _same_domain,
    "module": _module_place,
    "owners": _module_owners,
    "ring pages": _ring_pages,
    "grants": _grants,
    "event channel": _event_channel,
    "ring indices": _ring_indices,
    "backend": _backend,
}


def _handover_check(evidence: Evidence, name: str, check: HandoverCheck) -> Check:
    """Every update is held against the one before it, so that two wrongs don't make a right."""
    chain = [evidence.before, *(update.after for update in evidence.updates)]
    if len(chain) < 2 or len(chain) != evidence.planned_updates + 1:
        return Check(name, False, "there is no before and after to compare")
    found: tuple[bool, str] = (False, "")
    for number, (earlier, later) in enumerate(pairwise(chain), 1):
        if earlier is None or later is None:
            return Check(name, False, f"nothing was read before or after update {number}")
        found = check(earlier, later)
        if not found[0]:
            return Check(name, False, f"update {number}: {found[1]}")
    first, last = chain[0], chain[-1]
    if len(chain) > 2 and first is not None and last is not None:
        found = check(first, last)
    return Check(name, *found)


def _first(details: list[str]) -> str:
    return f" ({details[0]})" if details else ""
