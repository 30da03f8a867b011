"""Steps that are undone in reverse when a later one fails.

A kexec or a live update is a row of steps up to a point of no return. Each may take something away
from the running system and can say how to give it back:

    freeze ──▶ save state ──▶ save ring indices ──▶ hand over
      ◀── undo ──── undo ◀────────── undo ◀──────────── fails

Specification: the callbacks of Mini-OS' `kexec.c` (posted July 2025), called with `undo` false in
order, and true in reverse for those that were called.

**Invariants.** After `run` returned, every step is done; after it raised, none is. A step that
fails cleans up after itself: only steps that came to their end are undone. An undo that fails
does not stop the others; the error tells of it.
"""

from __future__ import annotations

from xenlive.errors import UpdateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Stage:
    """One named step and how it is undone, if there is anything to undo."""

    __slots__ = ("do", "name", "undo")

    def __init__(
        self, name: str, do: Callable[[], object], undo: Callable[[], object] | None
    ) -> None:
        self.name = name
        self.do = do
        self.undo = undo


class Stages:
    """A row of steps. `fail_at` names one that fails instead of being done, to try that out."""

    __slots__ = ("_done", "_stages", "fail_at")

    def __init__(self, fail_at: str | None = None) -> None:
        self.fail_at = fail_at
        self._stages: list[Stage] = []
        self._done: list[Stage] = []

    def add(
        self, name: str, do: Callable[[], object], undo: Callable[[], object] | None = None
    ) -> None:
        """Appends a step; it is neither done nor checked before `run`."""
        self._stages.append(Stage(name, do, undo))

    def add_callback(self, name: str, callback: Callable[[bool], object]) -> None:
        """Appends a step that is `callback(False)`, undone by `callback(True)`, as Mini-OS has it.

        A callback that refuses raises, and is not called again to undo what it has not done.
        """
        self.add(name, lambda: callback(False), lambda: callback(True))

    def names(self) -> list[str]:
        """Names of all steps, in order."""
        return [stage.name for stage in self._stages]

    def done(self) -> list[str]:
        """Names of the steps that are done and not undone, in order."""
        return [stage.name for stage in self._done]

    def run(self) -> None:
        """Does all steps that are not done yet.

        When one raises, all that are done are undone in reverse, and UpdateError names the step.
        What is no `Exception` (an interrupt) undoes them too, and goes on as itself.
        """
        for stage in self._stages[len(self._done) :]:
            try:
                if stage.name == self.fail_at:
                    raise UpdateError(stage.name, "made to fail")
                stage.do()
            except Exception as cause:
                why = cause.why if isinstance(cause, UpdateError) else _why(cause)
                raise UpdateError(stage.name, "; ".join([why, *self.undo()])) from cause
            except BaseException:
                self.undo()
                raise
            self._done.append(stage)

    def undo(self) -> list[str]:
        """Undoes all steps that are done, last first; what went wrong with it, one line each."""
        failures = []
        while self._done:
            stage = self._done.pop()
            if stage.undo is None:
                continue
            try:
                stage.undo()
            except Exception as error:
                failures.append(f"undoing {stage.name} failed: {_why(error)}")
        return failures


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
