"""The load's process as the demo sees it: started, asked, ended.

    with LoadProcess() as load:
        load.start(plan)                  {"loaded": …}
        load.ask("run")                   {"running": …}
        load.ask("finish")                {"result": …}

**Invariants.** Every question has a time limit; a load that is silent or dead is a DemoError that
says which. Leaving the `with` block ends the process, whatever it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict
from types import TracebackType
from typing import Any

from xenlive.demo.load import Gap, Plan, Result
from xenlive.errors import XenliveError

ANSWER_LIMIT_S = 60.0
STOP_LIMIT_S = 2.0


class DemoError(XenliveError):
    """The demo can't go on; it becomes a failed verdict, never a traceback."""


class LoadProcess:
    """The process of `load.py`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    def start(self, plan: Plan) -> dict[str, Any]:
        """Starts the process and waits until the store is filled and all watches are set."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "xenlive.demo.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._send(asdict(plan))
        return self._receive("loaded", plan.stage_limit_s * 2)

    def ask(self, command: str, limit_s: float = ANSWER_LIMIT_S) -> dict[str, Any]:
        """Sends a command and gives its answer. DemoError when there is none in `limit_s`."""
        self._send({"do": command})
        key = {"run": "running", "progress": "requests", "finish": "result"}.get(command, command)
        return self._receive(key, limit_s)

    def gap(self) -> Gap:
        """What the clients saw since the window was opened."""
        return Gap(**self.ask("gap")["gap"])

    def finish(self, limit_s: float) -> Result:
        """Ends the load's work and gives all that it found."""
        return Result(**self.ask("finish", limit_s)["result"])

    def stop(self) -> None:
        """Ends the process: first by closing its input, then by force."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> LoadProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _send(self, message: dict[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise DemoError("the load does not run")
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise DemoError("the load's process has ended") from None

    def _receive(self, key: str, limit_s: float) -> dict[str, Any]:
        answer = json.loads(self._line(limit_s))
        if "error" in answer:
            raise DemoError(f"the load stopped: {answer['error']}")
        if key not in answer:
            raise DemoError(f"the load answered something else than {key}")
        return dict(answer)

    def _line(self, limit_s: float) -> bytes:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        deadline_s = time.monotonic() + limit_s
        fd = process.stdout.fileno()
        while b"\n" not in self._pending:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                raise DemoError(f"the load gave no answer for {limit_s:.0f} s")
            data = os.read(fd, 1 << 20)
            if not data:
                raise DemoError("the load's process has ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line
