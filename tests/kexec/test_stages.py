"""Steps are done in order and undone in reverse, whichever of them fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xenlive.errors import OutOfSpace, UpdateError
from xenlive.kexec.stages import Stages

NAMES = ("freeze", "dump", "device", "hand-over")


class Story:
    """What was done and undone, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def step(self, word: str, error: BaseException | None = None) -> Callable[[], None]:
        def act() -> None:
            if error is not None:
                raise error
            self.said.append(word)

        return act


def four_steps(story: Story, fail_at: str | None = None) -> Stages:
    stages = Stages(fail_at)
    for name in NAMES:
        stages.add(name, story.step(name), story.step(f"undo {name}"))
    return stages


def test_all_are_done_in_order_once() -> None:
    story = Story()
    stages = four_steps(story)
    assert story.said == []
    stages.run()
    stages.run()
    assert story.said == list(NAMES) == stages.names() == stages.done()


@pytest.mark.parametrize("failing", range(4))
def test_any_step_can_be_made_to_fail(failing: int) -> None:
    story = Story()
    stages = four_steps(story, NAMES[failing])
    with pytest.raises(UpdateError) as raised:
        stages.run()
    assert (raised.value.step, raised.value.why) == (NAMES[failing], "made to fail")
    done = list(NAMES[:failing])
    assert story.said == done + [f"undo {name}" for name in reversed(done)]
    assert stages.done() == []


def test_after_a_failure_it_can_be_run_again() -> None:
    story = Story()
    stages = four_steps(story, "device")
    with pytest.raises(UpdateError):
        stages.run()
    stages.fail_at = None
    story.said.clear()
    stages.run()
    assert story.said == list(NAMES)


def test_the_cause_is_kept_and_told() -> None:
    stages = Stages()
    cause = OutOfSpace("pages", 18, 3)
    stages.add("dump", Story().step("", cause))
    with pytest.raises(UpdateError, match="dump: out of pages: 18 wanted, 3 available") as raised:
        stages.run()
    assert raised.value.__cause__ is cause


def test_an_error_without_words_is_told_by_its_name() -> None:
    stages = Stages()
    stages.add("dump", Story().step("", TimeoutError()))
    with pytest.raises(UpdateError, match="dump: TimeoutError"):
        stages.run()


def test_an_inner_refusal_is_not_told_twice() -> None:
    stages = Stages()
    stages.add("dump", Story().step("", UpdateError("inner", "why")))
    with pytest.raises(UpdateError) as raised:
        stages.run()
    assert str(raised.value) == "dump: why"


def test_a_step_without_undo() -> None:
    story = Story()
    stages = Stages("last")
    stages.add("first", story.step("first"), story.step("undo first"))
    stages.add("middle", story.step("middle"))
    stages.add("last", story.step("last"))
    with pytest.raises(UpdateError):
        stages.run()
    assert story.said == ["first", "middle", "undo first"]


def test_an_undo_that_fails_stops_no_other() -> None:
    story = Story()
    stages = Stages("last")
    stages.add("first", story.step("first"), story.step("undo first"))
    stages.add("second", story.step("second"), story.step("", ValueError("stuck")))
    stages.add("last", story.step("last"))
    with pytest.raises(UpdateError, match="made to fail; undoing second failed: stuck"):
        stages.run()
    assert story.said == ["first", "second", "undo first"]


def test_an_interrupt_undoes_and_goes_on() -> None:
    story = Story()
    stages = Stages()
    stages.add("first", story.step("first"), story.step("undo first"))
    stages.add("second", story.step("", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        stages.run()
    assert story.said == ["first", "undo first"]


def test_all_can_be_undone_after_they_were_done() -> None:
    """The kexec itself failed after every callback had been called."""
    story = Story()
    stages = four_steps(story)
    stages.run()
    story.said.clear()
    assert stages.undo() == []
    assert stages.undo() == []
    assert story.said == [f"undo {name}" for name in reversed(NAMES)]
