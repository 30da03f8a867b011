"""`xenlive update`: live update of a running stub domain, or a report on what it would meet."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from xenlive.cli.failure import EXPECTED, in_one_line
from xenlive.cli.options import json_option, rundir_option
from xenlive.cli.up import image_path, read_config
from xenlive.client.blocking import Xenstore
from xenlive.errors import PeerError, UpdateError
from xenlive.machine.hosted.host import host_status

#: Seconds beyond the update's own time limit that its answer may take.
GRACE_S = 60.0

#: Seconds that the host may take to learn of an update that the domain has answered.
HOST_PATIENCE_S = 5.0


@click.command()
@click.argument("image", required=False, type=click.Path(path_type=Path))
@rundir_option
@click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Mini-OS configuration of the next kernel.  [default: that of the running one]",
)
@click.option("--cold", is_flag=True, help="Freeze, hand over, go on (the only way for now).")
@click.option("--preflight", is_flag=True, help="Change nothing; report what an update would meet.")
@click.option(
    "-t",
    "--timeout",
    "timeout_s",
    type=click.IntRange(0, 3600),
    default=60,
    show_default=True,
    help="Seconds to wait for open transactions.",
)
@click.option("-F", "--force", is_flag=True, help="After that, drop transactions still open.")
@json_option
def update_command(
    image: Path | None,
    rundir: Path,
    config: Path | None,
    cold: bool,
    preflight: bool,
    timeout_s: int,
    force: bool,
    as_json: bool,
) -> int:
    """Replace the code of a running stub domain; its memory and its clients stay.

    IMAGE is the next kernel: a folder with __main__.py or a zipapp; without one, the installed
    xenlive. With --json a failure is an object too, with ok false and the reason.
    """
    version = None
    try:
        words = read_config(config)
        before = host_status(str(rundir))
        version = before["domain"]["version"]
        with Xenstore.connect(before["socket"], timeout_s=timeout_s + GRACE_S) as store:
            if preflight:
                return _print_preflight(_ask(store, "--preflight", image_path(image)), as_json)
            _choose(store, image_path(image), words if config is not None else None)
            start = ["-s", "-t", str(timeout_s), *(["-F"] if force else [])]
            answer = _ask(store, *start)
        if answer == "OK":
            return _print_update(str(rundir), before["updates_done"], as_json)
    except BrokenPipeError:
        raise  # nobody reads what is printed
    except EXPECTED as error:
        if as_json:
            _print_failure_object(version, in_one_line(error))
        raise
    if as_json:
        _print_failure_object(version, answer)
    print(f"xenlive update: {version} serves on: {' '.join(answer.split())}", file=sys.stderr)
    return 1


def _print_failure_object(version: str | None, reason: str) -> None:
    print(json.dumps({"ok": False, "from": version, "reason": reason}))


def _ask(store: Xenstore, *words: str) -> str:
    return store.control("live-update", *words)


def _choose(store: Xenstore, image: str, words: list[str] | None) -> None:
    answer = _ask(store, "-f", image)
    if answer == "OK" and words is not None:
        answer = _ask(store, "-c", " ".join(words))
    if answer != "OK":
        raise UpdateError("refused", answer)


def _print_preflight(report: str, as_json: bool) -> int:
    checks = []
    for line in report.splitlines():
        verdict, _, rest = line.partition(" ")
        name, _, detail = rest.partition(": ")
        checks.append({"name": name, "ok": verdict == "ok", "detail": detail})
    good = bool(checks) and all(check["ok"] for check in checks)
    if as_json:
        print(json.dumps({"ok": good, "checks": checks}))
    else:
        for check in checks:
            print(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']:<12} {check['detail']}")
    return 0 if good else 1


def _print_update(rundir: str, done_before: int, as_json: bool) -> int:
    status = host_status(rundir)
    until_s = time.monotonic() + HOST_PATIENCE_S
    while status["updates_done"] <= done_before:
        # The answer came from the domain; its milestones reach the host on a way of their own.
        if time.monotonic() > until_s:
            raise PeerError("the domain said OK, but its host saw no update; see: xenlive status")
        time.sleep(0.005)
        status = host_status(rundir)
    update: dict[str, Any] = status["updates"][-1]
    if as_json:
        print(json.dumps(update))
        return 0
    print(f"{update['from']} -> {update['to']} in {update['gap_ms']:.1f} ms")
    for phase, value_ms in update["phases"].items():
        print(f"  {phase:<12} {value_ms:8.2f} ms")
    return 0
