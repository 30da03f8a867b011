"""The load: a process of its own that fills a Xenstore, keeps using it and checks every answer.

Run as `python -m xenlive.demo.load`; its first line of input is a `Plan` as JSON, further lines
are commands. Each is answered with one line of JSON, in order:

    (the plan)             {"loaded": nodes, "seconds": …}    tree written, watches set, read back
    {"do": "run"}          {"running": clients}               clients and writer are at work
    {"do": "progress"}     {"requests": …, "events": …}
    {"do": "window"}       {"window": "open"}                 measure silences anew
    {"do": "gap"}          {"gap": …}                         once every client was answered again
    {"do": "finish"}       {"result": …}                      settled, all watches fired, all read

**Invariants.** The process ends when its input does: it never outlives who started it. Each stage
has a time limit; what a dead server leaves undone is counted as failed or lost, and reported.

Why a process: client and judge must not stop when the one who updates does, and on the clock of a
busy process every gap looks longer than it was.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from xenlive.demo.loop import Connection, Loop
from xenlive.demo.scripts import Client, Script, Writer, barrier, make_nodes, set_watch, walk
from xenlive.demo.tally import Tally, Watch
from xenlive.demo.tree import ROOT, Node, Tree, make_tree
from xenlive.errors import PeerError, XenliveError
from xenlive.machine.hosted.limits import allow_descriptors

DETAILS_MAX = 20


@dataclass(frozen=True)
class Plan:
    """What the load is to do. `pace_ms` is a client's pause between two actions."""

    socket_path: str
    nodes: int = 10_000
    clients: int = 20
    watchers: int = 50
    pace_ms: float = 10.0
    seed: int = 1
    answer_limit_s: float = 10.0
    stage_limit_s: float = 120.0
    split: bool = True


@dataclass(frozen=True)
class Gap:
    """What the clients saw since the window was opened; times on the monotonic clock."""

    silence_ms: float  # longest time from one answer to the next that a client saw
    start_s: float
    end_s: float
    median_ms: float  # of all clients' longest
    wait_ms: float  # longest time that one request took
    answers: int
    clients: int


@dataclass(frozen=True)
class Result:
    """All that the load found out. Lists are cut to the first `DETAILS_MAX` entries."""

    requests: int = 0
    failed_requests: int = 0
    retried: int = 0
    committed: int = 0
    details: list[str] = field(default_factory=list)
    nodes: int = 0
    nodes_read: int = 0
    nodes_lost: int = 0
    nodes_extra: int = 0
    values_different: int = 0
    perms_different: int = 0
    elsewhere_different: int = 0
    node_details: list[str] = field(default_factory=list)
    watches: int = 0
    watches_lost: int = 0
    events_due: int = 0
    events_received: int = 0
    events_missing: int = 0
    events_unexpected: int = 0
    tokens_wrong: int = 0
    watch_details: list[str] = field(default_factory=list)
    connections: int = 0
    connections_lost: int = 0
    new_connection: bool = False
    seconds: float = 0.0


class Load:
    """The load of one plan; `say` takes each answer, commands come from descriptor `command_fd`."""

    def __init__(self, plan: Plan, command_fd: int, say: Callable[[dict[str, Any]], None]) -> None:
        self._plan = plan
        self._say = say
        self._tally = Tally()
        self._tree: Tree = make_tree(plan.nodes, plan.clients, plan.watchers, plan.seed)
        self._loop = Loop(self._tally, plan.answer_limit_s)
        self._command_fd = command_fd
        self._input = b""
        self._commands: list[str] = []
        self._started_s = time.monotonic()
        self._watches = [
            Watch(path, token)
            for path, token in zip(self._tree.watched, self._tree.tokens, strict=True)
        ]

    def run(self) -> None:
        """The whole life of the load."""
        os.set_blocking(self._command_fd, False)
        self._loop.watch_fd(self._command_fd, self._read_commands)
        try:
            self._connect_all()
            elsewhere = self._prepare()
            took_s = time.monotonic() - self._started_s
            self._say({"loaded": len(self._tree.nodes), "seconds": took_s})
            self._wait_for("run")
            self._work()
            self._finish(elsewhere)
        finally:
            self._loop.close()

    def _connect_all(self) -> None:
        path = self._plan.socket_path
        self._auditor = self._loop.connect(path, "auditor")
        self._writing = self._loop.connect(path, "writer")
        self._reading = [
            self._loop.connect(path, f"client {number}") for number in range(self._plan.clients)
        ]
        self._watching = [
            self._loop.connect(path, f"watcher {number}", watch.event)
            for number, watch in enumerate(self._watches)
        ]

    def _prepare(self) -> dict[bytes, Node]:
        """Fills the store, sets the watches, and reads all back: the plan must hold already."""
        self._complete([(self._auditor, make_nodes(self._tree, self._tally))])
        self._complete(
            [
                (connection, set_watch(watch, self._tally))
                for connection, watch in zip(self._watching, self._watches, strict=True)
            ]
        )
        found = self._walk()
        _, wrong = compare(self._tree.nodes, _planned(found))
        if wrong := [*self._tally.details, *wrong]:
            raise PeerError(f"the store can't be filled: {wrong[0]}")
        return _elsewhere(found)

    # -- commands --------------------------------------------------------------------------------

    def _read_commands(self) -> None:
        try:
            data = os.read(self._command_fd, 65536)
        except BlockingIOError:
            return
        if not data:
            raise SystemExit(0)
        *lines, self._input = (self._input + data).split(b"\n")
        self._commands += [str(json.loads(line)["do"]) for line in lines]

    def _wait_for(self, command: str) -> None:
        """Runs the loop, answering small commands, until `command` comes."""
        while True:
            self._loop.run(lambda: bool(self._commands))
            found = self._commands.pop(0)
            if found == command:
                return
            if found == "progress":
                self._say({"requests": self._tally.requests, "events": self._events()})
            elif found == "window":
                self._loop.open_window()
                self._say({"window": "open"})
            elif found == "gap":
                self._say({"gap": asdict(self._measure_gap())})
            else:
                self._say({"error": f"no such command now: {found}"})

    def _events(self) -> int:
        return sum(watch.received for watch in self._watches)

    # -- stages ----------------------------------------------------------------------------------

    def _complete(self, scripts: list[tuple[Connection, Script]]) -> None:
        """Runs scripts side by side until all have ended."""
        open_scripts = len(scripts)

        def ended() -> None:
            nonlocal open_scripts
            open_scripts -= 1

        for connection, script in scripts:
            self._loop.start(connection, script, ended)
        self._loop.run(lambda: open_scripts == 0, self._plan.stage_limit_s)

    def _work(self) -> None:
        """Clients and writer at work until `finish`; then each ends after its current action."""
        plan, tree, tally = self._plan, self._tree, self._tally
        pace_s = plan.pace_ms / 1000
        workers: list[Client | Writer] = [
            Client(tree, number, tally, pace_s, plan.seed, plan.split)
            for number in range(plan.clients)
        ]
        self._writer = Writer(tree, self._watches, tally, pace_s, plan.seed)
        workers.append(self._writer)
        at_work = len(workers)

        def ended() -> None:
            nonlocal at_work
            at_work -= 1

        self._loop.open_window()
        for connection, worker in zip([*self._reading, self._writing], workers, strict=True):
            self._loop.start(connection, worker.script(), ended)
        self._say({"running": plan.clients})
        self._wait_for("finish")
        for worker in workers:
            worker.stopping = True
        self._loop.run(lambda: at_work == 0, plan.stage_limit_s)

    def _measure_gap(self) -> Gap:
        """Waits until every living client was answered again, so that no gap is cut short."""
        asked_s = time.monotonic()
        self._loop.run(
            lambda: all(c.lost or c.answered_s > asked_s for c in self._reading),
            self._plan.stage_limit_s,
        )
        spans = [c.silence for c in self._reading if not c.lost]
        waits = [c.wait.length_s for c in self._reading if not c.lost]
        if not spans:
            return Gap(0.0, 0.0, 0.0, 0.0, 0.0, 0, 0)
        longest = max(spans, key=lambda span: span.length_s)
        return Gap(
            silence_ms=longest.length_s * 1000,
            start_s=longest.start_s,
            end_s=longest.end_s,
            median_ms=statistics.median(span.length_s for span in spans) * 1000,
            wait_ms=max(waits) * 1000,
            answers=sum(c.answers for c in self._reading),
            clients=len(spans),
        )

    def _walk(self) -> dict[bytes, Node]:
        found: dict[bytes, Node] = {}
        self._complete([(self._auditor, walk(found, self._tally))])
        return found

    def _finish(self, elsewhere: dict[bytes, Node]) -> None:
        self._complete([(self._writing, self._writer.fire_each())])
        self._complete(
            [
                (connection, barrier(watch, self._value_of(watch.path), self._tally))
                for connection, watch in zip(self._watching, self._watches, strict=True)
            ]
        )
        for watch in self._watches:
            watch.close()
        found = self._walk()
        new_connection = self._try_new_connection()
        self._say({"result": asdict(self._result(found, elsewhere, new_connection))})

    def _value_of(self, path: bytes) -> Callable[[], bytes]:
        return lambda: self._tree.nodes[path].value

    def _try_new_connection(self) -> bool:
        """Whether the door is still open: someone who was never here reads a node."""
        failed = self._tally.failed
        if all(connection.lost for connection in self._loop.connections):
            self._tally.note("a new connection: not tried, no old one is left")
            return False
        try:
            visitor = self._loop.connect(self._plan.socket_path, "visitor")
        except OSError as error:
            self._tally.note(f"a new connection: {error.strerror}")
            return False
        found: dict[bytes, Node] = {}
        node = self._tree.counters[0]
        self._complete([(visitor, walk(found, self._tally, node))])
        return self._tally.failed == failed and node in found

    def _result(
        self, found: dict[bytes, Node], elsewhere: dict[bytes, Node], new_connection: bool
    ) -> Result:
        tally, watches = self._tally, self._watches
        mine, others = _planned(found), _elsewhere(found)
        counts, details = compare(self._tree.nodes, mine)
        changed = sum(
            others.get(path) != elsewhere.get(path) for path in others.keys() | elsewhere.keys()
        )
        lasting = [*self._reading, *self._watching, self._auditor, self._writing]
        return Result(
            requests=tally.requests,
            failed_requests=tally.failed,
            retried=tally.retried,
            committed=tally.committed,
            details=tally.details,
            nodes=len(self._tree.nodes),
            nodes_read=len(mine),
            **counts,
            elsewhere_different=changed,
            node_details=details,
            watches=len(watches),
            watches_lost=sum(not watch.sound for watch in watches),
            events_due=sum(watch.due_total for watch in watches),
            events_received=self._events(),
            events_missing=sum(watch.missing for watch in watches),
            events_unexpected=sum(watch.unexpected for watch in watches),
            tokens_wrong=sum(watch.wrong_token for watch in watches),
            watch_details=[line for watch in watches for line in watch.details][:DETAILS_MAX],
            connections=len(lasting),
            connections_lost=sum(not connection.same for connection in lasting),
            new_connection=new_connection,
            seconds=time.monotonic() - self._started_s,
        )


def _planned(found: dict[bytes, Node]) -> dict[bytes, Node]:
    return {path: node for path, node in found.items() if (path + b"/").startswith(ROOT + b"/")}


def _elsewhere(found: dict[bytes, Node]) -> dict[bytes, Node]:
    mine = _planned(found)
    return {path: node for path, node in found.items() if path not in mine}


def compare(
    expected: dict[bytes, Node], found: dict[bytes, Node]
) -> tuple[dict[str, int], list[str]]:
    """How many nodes are lost, extra, of another value or other permissions; and which."""
    lost = [path for path in expected if path not in found]
    extra = [path for path in found if path not in expected]
    both = [path for path in expected if path in found]
    values = [path for path in both if expected[path].value != found[path].value]
    perms = [path for path in both if expected[path].perms != found[path].perms]
    counts = {
        "nodes_lost": len(lost),
        "nodes_extra": len(extra),
        "values_different": len(values),
        "perms_different": len(perms),
    }
    details = [
        f"{what} {path.decode('ascii', 'backslashreplace')}"
        for what, paths in (
            ("lost:", lost),
            ("not in the plan:", extra),
            ("another value:", values),
            ("other permissions:", perms),
        )
        for path in paths[:5]
    ]
    return counts, details


def main() -> int:
    """The process; exit code 1 with `{"error": …}` when the load could not go on."""

    def say(answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 1)
        if not data:
            return 0
        line += data
    plan = Plan(**json.loads(line))
    allow_descriptors(plan.clients + plan.watchers + 64)
    try:
        Load(plan, 0, say).run()
    except BrokenPipeError:
        return 1
    except (XenliveError, OSError) as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
