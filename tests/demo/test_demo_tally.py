"""What a watch makes of events: exactly the due ones, in order, or it says which not."""

from __future__ import annotations

from xenlive.demo.tally import DETAILS_MAX, Tally, Watch

TOKEN = b"token"


def watch_after(due: str, came: str) -> Watch:
    watch = Watch(b"/w", TOKEN, fired_last=True)
    for name in due:
        watch.expect(b"/w/" + name.encode())
    for name in came:
        watch.event(b"/w/" + name.encode(), TOKEN)
    watch.close()
    return watch


def counts(watch: Watch) -> tuple[int, int, int]:
    return watch.missing, watch.unexpected, watch.wrong_token


def test_all_in_order() -> None:
    watch = watch_after("abca", "abca")
    assert watch.sound
    assert (watch.due_total, watch.received) == (4, 4)
    assert watch.details == []


def test_one_missing_in_the_middle() -> None:
    watch = watch_after("abc", "ac")
    assert counts(watch) == (1, 0, 0)
    assert watch.details == ["b'/w': no event for b'/w/b'"]
    assert not watch.sound


def test_the_last_one_missing() -> None:
    assert counts(watch_after("abc", "ab")) == (1, 0, 0)


def test_one_too_many() -> None:
    assert counts(watch_after("abc", "abbc")) == (0, 1, 0)


def test_out_of_order_is_no_order() -> None:
    assert counts(watch_after("abc", "bac")) == (1, 1, 0)


def test_a_stranger() -> None:
    watch = watch_after("a", "za")
    assert counts(watch) == (0, 1, 0)
    assert not watch.sound


def test_a_wrong_token_is_no_event() -> None:
    watch = Watch(b"/w", TOKEN, fired_last=True)
    watch.expect(b"/w")
    watch.event(b"/w", b"other")
    watch.close()
    assert counts(watch) == (1, 0, 1)


def test_a_watch_that_was_not_fired_last_proves_nothing() -> None:
    watch = watch_after("a", "a")
    watch.fired_last = False
    assert not watch.sound


def test_only_the_first_details_are_kept() -> None:
    tally = Tally()
    for number in range(DETAILS_MAX + 5):
        tally.fail(f"failure {number}", 2)
    assert tally.failed == 2 * (DETAILS_MAX + 5)
    assert tally.details[-1] == f"failure {DETAILS_MAX - 1}"
