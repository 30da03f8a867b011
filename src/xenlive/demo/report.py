"""The demo's outcome as one JSON object, for programs.

**Invariants.** The keys are always all there; what was not measured is null, a count of what was
lost is never lower than what was not found again.
"""

from __future__ import annotations

from typing import Any

from xenlive.demo.load import Result
from xenlive.demo.run import Outcome
from xenlive.demo.verdict import Evidence, Update


def as_object(outcome: Outcome) -> dict[str, Any]:
    """The object that `xenlive demo --json` prints."""
    evidence = outcome.evidence
    load = evidence.load or _nothing_found(evidence)
    place = evidence.last or evidence.before
    checks = {check.name: check.ok for check in outcome.checks}
    return {
        "ok": outcome.ok,
        "updates": [_update(update) for update in evidence.updates],
        "requests": load.requests,
        "failed_requests": load.failed_requests,
        "retried_transactions": load.retried,
        "committed_transactions": load.committed,
        "nodes": evidence.nodes,
        "nodes_lost": load.nodes_lost,
        "nodes_changed": load.values_different + load.perms_different,
        "watches": evidence.watches,
        "watches_lost": load.watches_lost,
        "events_due": load.events_due,
        "events_received": load.events_received,
        "connections": load.connections,
        "connections_lost": load.connections_lost,
        "module": None
        if place is None
        else {"address": place.module_address, "pages": place.module_pages},
        "module_moved": not checks["module"],
        "checks": [
            {"name": check.name, "ok": check.ok, "detail": check.detail} for check in outcome.checks
        ],
        "seconds": round(outcome.seconds, 3),
    }


def _update(update: Update) -> dict[str, Any]:
    report, gap = update.report, update.gap
    return {
        "from": report.from_version,
        "to": report.to_version,
        "ok": report.ok,
        "gap_ms": None if gap is None else round(gap.silence_ms, 3),
        "phases": report.phases_ms,
        "clients": None
        if gap is None
        else {
            "median_gap_ms": round(gap.median_ms, 3),
            "longest_request_ms": round(gap.wait_ms, 3),
            "answers": gap.answers,
        },
        "reason": report.reason or None,
    }


def _nothing_found(evidence: Evidence) -> Result:
    """What must be assumed of a load that gave no result: that all is lost."""
    return Result(nodes_lost=evidence.nodes, watches_lost=evidence.watches)
