"""The verdict: sound evidence passes, and each thing broken fails the check that is about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from demo.evidence import FIRST_FRAME, gap, snapshot, sound, with_after, with_load, with_update

from xenlive.demo.verdict import HANDOVER_CHECKS, LOAD_CHECKS, Evidence, judge
from xenlive.demo.world import Backend, Grant, ModuleRecord, RingIndices

ALL = ["demo", "updates", "under load", *LOAD_CHECKS, *HANDOVER_CHECKS]


def broken(evidence: Evidence) -> list[str]:
    checks = judge(evidence)
    assert [check.name for check in checks] == ALL
    assert all(check.detail for check in checks)
    return [check.name for check in checks if not check.ok]


def detail(evidence: Evidence, name: str) -> str:
    return next(check.detail for check in judge(evidence) if check.name == name)


def test_sound_evidence_passes() -> None:
    assert broken(sound()) == []
    assert detail(sound(), "updates") == "0.1.0 → 0.1.0+b → 0.1.0+c"
    assert detail(sound(), "ring indices").startswith("1,600,000 bytes out")


def grants_with(ref: int, grant: Grant | None) -> dict[int, Grant]:
    found = dict(snapshot().grants)
    if grant is None:
        del found[ref]
    else:
        found[ref] = grant
    return found


def report(number: int, **changes: object) -> Callable[[Evidence], Evidence]:
    def change(evidence: Evidence) -> Evidence:
        old = evidence.updates[number].report
        return with_update(evidence, number, report=replace(old, **changes))  # type: ignore[arg-type]

    return change


def after(number: int, **changes: object) -> Callable[[Evidence], Evidence]:
    return lambda evidence: with_after(evidence, number, **changes)


def load(**changes: object) -> Callable[[Evidence], Evidence]:
    return lambda evidence: with_load(evidence, **changes)


def whole(**changes: object) -> Callable[[Evidence], Evidence]:
    return lambda evidence: replace(evidence, **changes)  # type: ignore[arg-type]


def last_moved(**changes: int) -> Callable[[Evidence], Evidence]:
    """Other indices after the last update."""
    indices = snapshot(moved=1_600_000).indices
    return after(1, indices=replace(indices, **changes))


OTHER_RECORD = ModuleRecord(0, 1, 112, 16, "00" * 16, tuple(range(17)))
MOVED = snapshot(moved=1_600_000)
RESET = RingIndices(800_000, 800_000, 9_000, 9_000)  # counted from 0 again by kernel C

CASES: list[tuple[str, Callable[[Evidence], Evidence], str, str]] = [
    ("early end", whole(trouble="the host died"), "demo", "the host died"),
    ("failed update", report(1, ok=False, reason="no"), "updates", "0.1.0+b to 0.1.0+c: no"),
    ("other version", report(1, to_version="9"), "updates", "0.1.0+b to 9 was done"),
    ("other start", report(0, from_version="9"), "updates", "9 to 0.1.0+b was done"),
    ("a phase not measured", report(0, phases_ms={"dump": 1.0}), "updates", "quiesce"),
    ("the old one runs", after(1, version="0.1.0+b"), "updates", "0.1.0+b runs"),
    ("no client at work", lambda e: with_update(e, 0, gap=None), "under load", "no client"),
    (
        "no answer around it",
        lambda e: with_update(e, 1, gap=replace(gap(), answers=0)),
        "under load",
        "no client",
    ),
    ("failed request", load(failed_requests=1, details=["EIO"]), "requests", "1 of 85,270"),
    ("no request", load(requests=0), "requests", "no request"),
    ("lost node", load(nodes_lost=1, node_details=["lost: /a"]), "nodes", "1 lost (lost: /a)"),
    ("extra node", load(nodes_extra=2), "nodes", "2 that nobody made"),
    ("other value", load(values_different=3), "nodes", "3 with another value"),
    ("elsewhere", load(elsewhere_different=1), "nodes", "outside of the demo"),
    ("fewer nodes than asked for", load(nodes=9_999), "nodes", "9,999 planned"),
    ("permissions", load(perms_different=4), "permissions", "4 nodes differ"),
    ("lost watch", load(watches_lost=1), "watches", "1 of 50 broken"),
    ("missing event", load(events_missing=1), "watches", "1 events missing"),
    ("event not due", load(events_unexpected=1), "watches", "not due"),
    ("wrong token", load(tokens_wrong=1), "watches", "token"),
    ("events short", load(events_received=1_071), "watches", "1,071 events for 1,072"),
    ("fewer watches", load(watches=49), "watches", "49 watches"),
    ("lost connection", load(connections_lost=1), "connections", "1 of 72 lost"),
    ("no connections", load(connections=0), "connections", "none"),
    ("closed door", load(new_connection=False), "connections", "a new one was not served"),
    ("other process", after(0, domain_pid=78), "domain", "process 78"),
    ("other memory", after(1, ram_identity="1:43"), "domain", "other memory"),
    ("not sound", after(1, problems=("overlap",)), "module", "not sound (overlap)"),
    ("owner", after(1, owners="00" * 16 + "ff"), "owners", "page 16: 255 instead of 0"),
    ("record moved", after(1, records=(OTHER_RECORD,)), "owners", "112"),
    ("record gone", after(1, records=()), "owners", "records [] instead of"),
    ("reference", after(1, ring_ref=2030), "grants", "references 2030"),
    (
        "frame",
        after(1, grants=grants_with(2040, Grant(FIRST_FRAME, 0, 25))),
        "grants",
        "grant 2040 gives frame",
    ),
    ("dead grant", after(1, grants=grants_with(2040, None)), "grants", "2040 is not active"),
    (
        "other domain",
        after(1, grants=grants_with(2040, replace(snapshot().grants[2040], domid=5))),
        "grants",
        "domid=5",
    ),
    ("leaked grant", after(1, grants=grants_with(9, Grant(1, 0, 1))), "grants", "come or gone: 9"),
    ("order", after(1, ring_order=3), "ring pages", "order 3"),
    ("port", after(1, event_channel=4), "event channel", "port 4 instead of 3"),
    ("reset by C", after(1, indices=RESET), "ring indices", "out_cons moved by"),
    ("out index ahead", last_moved(out_cons=5, out_prod=5), "ring indices", "out_cons"),
    ("in index ahead", last_moved(in_cons=5, in_prod=5), "ring indices", "in_prod moved by"),
    ("left in the ring", last_moved(in_cons=7), "ring indices", "not at rest"),
    ("handed over wild", after(1, saved_prod_pvt_out=17), "ring indices", "handed over"),
    ("handed over wild, in", after(1, saved_cons_pvt_in=17), "ring indices", "handed over"),
    ("lost once", after(1, backend=replace(MOVED.backend, disconnects=1)), "backend", "1"),
    ("connected twice", after(1, backend=replace(MOVED.backend, connects=2)), "backend", "2 times"),
    ("gone", after(1, backend=replace(MOVED.backend, connected=False)), "backend", "not connected"),
]


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_what_is_broken_is_named(
    change: Callable[[Evidence], Evidence], name: str, words: str
) -> None:
    evidence = change(sound())
    assert name in broken(evidence)
    assert words in detail(evidence, name)


def test_every_check_can_fail() -> None:
    assert {case[2] for case in CASES} | {"module"} == set(ALL)


def test_a_module_that_moved() -> None:
    evidence = with_after(sound(), 1, module_address=0x7ED000)
    assert {"module", "ring pages"} <= set(broken(evidence))
    assert "0x7ed000 instead of 18 pages at 0x7ee000" in detail(evidence, "module")


def test_a_module_that_grew_to_what_b_was_configured_for() -> None:
    evidence = with_after(sound(), 0, module_pages=24)
    assert "module" in broken(evidence)
    assert detail(evidence, "module").startswith("update 1: 24 pages")


def test_two_wrongs_do_not_make_a_right() -> None:
    """B moved something and C moved it back: equal at the ends, and yet broken."""
    evidence = with_after(sound(), 0, event_channel=4)
    assert broken(evidence) == ["event channel"]


def test_state_that_took_another_way_than_the_ring() -> None:
    evidence = with_update(sound(), 0, after=snapshot("0.1.0+b", 0))
    evidence = with_update(evidence, 1, after=snapshot("0.1.0+c", 0))
    assert broken(evidence) == ["ring indices"]
    assert "another way" in detail(evidence, "ring indices")


def test_a_page_outside_of_the_module() -> None:
    wild = grants_with(2040, Grant(5, 0, 25))
    evidence = replace(sound(), before=replace(snapshot(), grants=wild))
    for number in (0, 1):
        evidence = with_after(evidence, number, grants=wild)
    assert broken(evidence) == ["ring pages"]


def test_nothing_handed_over_is_nothing_proved() -> None:
    evidence = replace(sound(), before=replace(snapshot(), owners="ff" * 17))
    for number in (0, 1):
        evidence = with_after(evidence, number, owners="ff" * 17)
    assert set(broken(evidence)) == {"owners", "ring pages"}


def test_missing_evidence_fails() -> None:
    nothing = Evidence("", 10_000, 50, (), 2, None, None)
    assert set(broken(nothing)) == set(ALL) - {"demo"}
    assert set(broken(replace(sound(), load=None))) == set(LOAD_CHECKS)
    assert set(broken(replace(sound(), before=None))) == set(HANDOVER_CHECKS)
    unseen = with_update(sound(), 1, after=None)
    assert set(broken(unseen)) == set(HANDOVER_CHECKS)
    one = replace(sound(), updates=sound().updates[:1])
    assert {"updates", "under load", *HANDOVER_CHECKS} == set(broken(one))


def test_a_backend_that_never_was() -> None:
    gone = Backend(False, 0, 0, 0, 0)
    evidence = replace(sound(), before=replace(snapshot(), backend=gone))
    assert "backend" in broken(evidence)
