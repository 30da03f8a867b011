"""The host's view of updates: milestones in, phases and gaps out."""

from __future__ import annotations

from xenlive.machine.hosted.timeline import KEPT, PHASES, STEPS, Timeline

MS = 1_000_000


def run_update(timeline: Timeline, to: str, start_ns: int = 1000 * MS) -> None:
    for number, step in enumerate(STEPS):
        if step == "first-reply":
            timeline.note(f"running {to}", start_ns + number * MS)
        timeline.note(step, start_ns + number * MS)


def test_a_whole_update_has_all_phases_and_their_sum_is_the_gap() -> None:
    timeline = Timeline()
    timeline.note("running a", 5)
    run_update(timeline, "b")
    (update,) = timeline.updates
    assert (update["ok"], update["from"], update["to"]) == (True, "a", "b")
    assert tuple(update["phases"]) == PHASES
    assert update["gap_ms"] == sum(update["phases"].values()) == len(PHASES)
    assert (timeline.updates_done, timeline.updates_failed) == (1, 0)


def test_a_failed_update_keeps_its_reason_and_the_phases_it_reached() -> None:
    timeline = Timeline()
    timeline.note("running a", 5)
    timeline.note("freeze", 10 * MS)
    timeline.note("frozen", 12 * MS)
    timeline.note("failed dump: no space", 15 * MS)
    (update,) = timeline.updates
    assert (update["ok"], update["reason"]) == (False, "dump: no space")
    assert update["phases"] == {"quiesce": 2.0}
    assert timeline.updates_failed == 1


def test_a_kernel_that_came_back_ends_the_update_it_came_back_from() -> None:
    timeline = Timeline()
    timeline.note("running a", 5)
    for number, step in enumerate(STEPS[:4]):
        timeline.note(step, number * MS)
    timeline.note("entry", 9 * MS)  # the old kernel, entered again
    timeline.note("failed BootError: no", 10 * MS)
    timeline.note("running a", 11 * MS)
    timeline.note("first-reply", 12 * MS)
    assert [update["ok"] for update in timeline.updates] == [False]


def test_milestones_out_of_turn_do_not_finish_an_update() -> None:
    timeline = Timeline()
    for name in ("first-reply", "restored", "freeze", "restored", "first-reply", "nonsense", ""):
        timeline.note(name, 1)
    assert timeline.updates == []


def test_time_that_runs_backwards_is_dropped() -> None:
    timeline = Timeline()
    timeline.note("freeze", 10)
    timeline.note("frozen", 9)
    timeline.note("dumped", 11)
    assert timeline.updates == []
    timeline.note("failed x", 12)
    assert timeline.updates[0]["phases"] == {}


def test_only_the_last_updates_are_remembered_but_all_are_counted() -> None:
    timeline = Timeline()
    for number in range(KEPT + 7):
        run_update(timeline, str(number), number * 1000 * MS)
    assert len(timeline.updates) == KEPT
    assert timeline.updates_done == KEPT + 7
