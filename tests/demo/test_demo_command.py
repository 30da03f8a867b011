"""`xenlive demo` itself, on the hosted machine: its verdict, its exit codes, and what it leaves."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from demo.evidence import sound, with_load

from xenlive import __version__
from xenlive.cli import demo as demo_cli
from xenlive.demo import hosted
from xenlive.demo.hosted import HostedWorld, make_images
from xenlive.demo.run import Audience, Options, Outcome, run_demo
from xenlive.demo.verdict import judge
from xenlive.demo.world import Image, UpdateReport

SIZE = ("--nodes", "700", "--clients", "5", "--watchers", "8")
SHORT = Options(nodes=700, clients=5, watchers=8, warm_up_s=0.2, lead_s=0.1, tail_s=0.1)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "xenlive", "demo", *words]


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that name `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


def gone(folder: Path, limit_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + limit_s
    while processes_of(folder):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def test_json(tmp_path: Path) -> None:
    done = subprocess.run(
        command("--json", *SIZE),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], done.stderr) == (0, True, ""), found
    assert (found["nodes"], found["watches"], found["connections"]) == (700, 8, 15)
    for count in ("failed_requests", "nodes_lost", "watches_lost", "connections_lost"):
        assert found[count] == 0
    assert found["module"]["pages"] == 18
    assert found["module_moved"] is False
    assert [u["to"] for u in found["updates"]] == [f"{__version__}+b", f"{__version__}+c"]
    for update in found["updates"]:
        inside = sum(update["phases"].values())
        assert inside > 0
        assert update["gap_ms"] > 0
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_plain_drawings(tmp_path: Path, encoding: str) -> None:
    done = subprocess.run(
        command(*SIZE),
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONIOENCODING": encoding},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode("ascii")
    assert "PASSED" in said
    assert f"{__version__}+b -> {__version__}+c" in said
    assert "\\" not in said
    assert "?" not in said.partition("\n")[2]  # the first line is a question


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with started(tmp_path) as demo:
        wait_for_clients(demo)
        assert processes_of(tmp_path)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=20)
    assert (demo.returncode, errors.strip()) == (code, "")
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_even_sigkill_leaves_no_process(tmp_path: Path) -> None:
    with started(tmp_path) as demo:
        wait_for_clients(demo)
        demo.kill()
    assert gone(tmp_path)


def listen_to_sigint() -> None:
    """In a new process: background jobs, and all they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, gone at the end whatever happens."""
    with subprocess.Popen(
        command(*SIZE),
        env={**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_sigint,
    ) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def wait_for_clients(demo: subprocess.Popen[str], limit_s: float = 30.0) -> None:
    assert demo.stdout is not None
    said = ""
    while "nodes written" not in said:
        ready, _, _ = select.select([demo.stdout], [], [], limit_s)
        assert ready, f"the demo never got to its load: {said}"
        piece = os.read(demo.stdout.fileno(), 65536).decode()
        assert piece, f"the demo never got to its load: {said}"
        said += piece


def test_a_kernel_that_crashes_is_undone_and_the_verdict_says_so(tmp_path: Path) -> None:
    def images() -> Sequence[Image]:
        b, c = make_images(tmp_path, __version__)
        # It answers the preflight, as a sound kernel does, and dies when it is entered.
        main = b.path / "__main__.py"
        crash = 'if sys.argv[1] != "--preflight":\n    raise RuntimeError("born dead")\n'
        main.write_text(main.read_text().replace("main(sys.argv)", crash + "main(sys.argv)"))
        return b, c

    outcome = run_demo(SHORT, HostedWorld(tmp_path), images, Audience())
    checks = {check.name: check for check in outcome.checks}
    assert not outcome.ok
    assert "born dead" in checks["updates"].detail
    for name in ("requests", "nodes", "permissions", "watches", "connections"):
        assert checks[name].ok, checks[name]
    assert processes_of(tmp_path) == []


class Stopped(HostedWorld):
    """Its domain is stopped by somebody just before the first update."""

    def update(self, image: Image) -> UpdateReport:
        os.kill(self._status()["domain"]["pid"], signal.SIGSTOP)
        return super().update(image)


def test_a_domain_that_is_stopped_is_a_verdict_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted, "UPDATE_LIMIT_S", 1.0)
    outcome = run_demo(
        replace(SHORT, answer_limit_s=0.5),
        Stopped(tmp_path),
        lambda: make_images(tmp_path, __version__),
        Audience(),
    )
    checks = {check.name: check for check in outcome.checks}
    assert not outcome.ok
    assert "no answer in 1 s" in checks["updates"].detail
    for name in ("requests", "nodes", "watches", "connections"):
        assert not checks[name].ok, checks[name]
    assert processes_of(tmp_path) == []


def test_host_and_domain_end_even_if_both_are_stopped(tmp_path: Path) -> None:
    world = HostedWorld(tmp_path)
    world.start()
    status = world._status()
    for pid in (status["domain"]["pid"], status["pid"]):
        os.kill(pid, signal.SIGSTOP)
    world.stop()
    assert gone(tmp_path)


def test_a_host_that_does_not_end_takes_the_domain_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted, "STOP_LIMIT_S", 0.0)
    world = HostedWorld(tmp_path)
    world.start()
    assert processes_of(tmp_path)
    world.stop()
    world.stop()
    assert gone(tmp_path)


def test_no_kernel_a_is_a_verdict(tmp_path: Path) -> None:
    world = HostedWorld(tmp_path / ("x" * 120))
    (tmp_path / ("x" * 120)).mkdir()
    outcome = run_demo(SHORT, world, list, Audience())
    assert "the host process ended" in outcome.checks[0].detail


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--nodes", "1"), "1 is not in the range 120<=x<=1000000"),
        (("--nodes", "536"), "20 clients and 50 watchers need at least --nodes 537"),
        (("--nodes", "120", "--clients", "1", "--watchers", "2"), "at least --nodes 125"),
    ],
)
def test_too_few_nodes_is_wrong_usage(words: tuple[str, ...], says: str) -> None:
    done = subprocess.run(command(*words), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_says_how_many_nodes_the_defaults_need() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True, timeout=60)
    assert "need 537 at least" in " ".join(done.stdout.split())


@pytest.mark.parametrize("as_json", [True, False])
def test_exit_code_1_and_which_when_something_is_broken(
    monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    evidence = with_load(sound(), nodes_lost=2)
    outcome = Outcome(evidence, judge(evidence), 1.0)

    def run(options: Options, audience: Audience) -> Outcome:
        audience.judged(outcome)
        return outcome

    monkeypatch.setattr(demo_cli, "_run", run)
    runner = CliRunner()
    words = ["--json"] if as_json else []
    result = runner.invoke(demo_cli.demo_command, words, standalone_mode=False)
    assert result.return_value == 1
    if as_json:
        assert json.loads(result.stdout)["nodes_lost"] == 2
        assert result.stderr == "xenlive demo: nodes: 2 lost\n"
    else:
        assert result.stdout.rstrip().endswith("FAILED: nodes")
    healthy = Outcome(replace(sound()), judge(sound()), 1.0)
    monkeypatch.setattr(demo_cli, "_run", lambda options, audience: healthy)
    assert runner.invoke(demo_cli.demo_command, words, standalone_mode=False).return_value == 0
