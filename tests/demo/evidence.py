"""Evidence of a demo in which everything went well, for tests to break one piece of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xenlive.demo.load import Gap, Result
from xenlive.demo.verdict import Evidence, Update
from xenlive.demo.world import (
    Backend,
    Grant,
    HandoverSnapshot,
    Image,
    ModuleRecord,
    RingIndices,
    UpdateReport,
)

MODULE = 0x7EE000
FIRST_FRAME = MODULE >> 12
RING_REFS = tuple(range(2046, 2030, -1))
PHASES_MS = {
    "quiesce": 0.4,
    "dump": 12.0,
    "kexec": 9.5,
    "boot": 7.5,
    "restore": 24.0,
    "first_reply": 0.3,
}
CONFIG = "CONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES={pages}\n"


def snapshot(version: str = "0.1.0", moved: int = 0) -> HandoverSnapshot:
    """What kernel `version` finds after `moved` bytes went through the ring each way."""
    start = 0xFFFFFF00  # the indices wrap on the way
    index = (start + moved) % (1 << 32)
    grants = {2047: Grant(FIRST_FRAME, 0, 25)}
    grants |= {ref: Grant(FIRST_FRAME + 1 + k, 0, 25) for k, ref in enumerate(RING_REFS)}
    return HandoverSnapshot(
        version=version,
        domain_pid=77,
        ram_identity="1:42",
        module_address=MODULE,
        module_pages=18,
        owners="00" * 17,
        records=(ModuleRecord(0, 1, 96, 16, "00" * 16, tuple(range(17))),),
        problems=(),
        ring_ref=2047,
        event_channel=3,
        ring_order=4,
        ring_refs=RING_REFS,
        grants=grants,
        indices=RingIndices(index, index, index, index),
        saved_prod_pvt_out=(start + moved // 2) % (1 << 32),
        saved_cons_pvt_in=(start + moved // 2) % (1 << 32),
        backend=Backend(True, 1, 0, 100 + moved, 100 + moved),
    )


def gap(silence_ms: float = 61.0, start_s: float = 99.999) -> Gap:
    """What the clients saw of an update that started at second 100."""
    return Gap(silence_ms, start_s, start_s + silence_ms / 1000, 57.0, 55.0, 1200, 20)


def update(from_version: str, to_version: str, moved: int, pages: int) -> Update:
    """An update that went well."""
    report = UpdateReport(True, from_version, to_version, dict(PHASES_MS), 100.0)
    image = Image(Path(f"/images/{to_version}"), to_version, CONFIG.format(pages=pages))
    return Update(image, report, gap(), snapshot(to_version, moved))


def sound_load() -> Result:
    """What a load reports when nothing was wrong."""
    return Result(
        requests=85_270,
        retried=13,
        committed=213,
        nodes=10_000,
        nodes_read=10_000,
        watches=50,
        events_due=1_072,
        events_received=1_072,
        connections=72,
        new_connection=True,
        seconds=5.4,
    )


def sound() -> Evidence:
    """A demo in which everything went well."""
    return Evidence(
        first_version="0.1.0",
        nodes=10_000,
        watches=50,
        updates=(
            update("0.1.0", "0.1.0+b", 800_000, 24),
            update("0.1.0+b", "0.1.0+c", 1_600_000, 18),
        ),
        planned_updates=2,
        before=snapshot(),
        load=sound_load(),
    )


def with_after(evidence: Evidence, number: int, **changes: object) -> Evidence:
    """The same evidence with the snapshot after update `number` (from 0) changed."""
    old = evidence.updates[number]
    assert old.after is not None
    after = replace(old.after, **changes)  # type: ignore[arg-type]
    return with_update(evidence, number, after=after)


def with_update(evidence: Evidence, number: int, **changes: object) -> Evidence:
    """The same evidence with something else about update `number` (from 0)."""
    updates = list(evidence.updates)
    updates[number] = replace(updates[number], **changes)  # type: ignore[arg-type]
    return replace(evidence, updates=tuple(updates))


def with_load(evidence: Evidence, **changes: object) -> Evidence:
    """The same evidence with another result of the load."""
    assert evidence.load is not None
    return replace(evidence, load=replace(evidence.load, **changes))  # type: ignore[arg-type]
