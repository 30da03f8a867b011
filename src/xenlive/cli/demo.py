"""`xenlive demo`: a Xenstore stub domain under load, updated A to B to C, and what was measured."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from xenlive import __version__
from xenlive.cli.options import json_option
from xenlive.demo.run import Audience, Options, Outcome, run_demo
from xenlive.demo.tree import smallest

LEAST_NODES = smallest(1, 1)
LEAST_NODES_BY_DEFAULT = smallest(Options.clients, Options.watchers)

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@json_option
@click.option(
    "--nodes",
    type=click.IntRange(LEAST_NODES, 1_000_000),
    default=Options.nodes,
    show_default=True,
    help="Nodes in the store; the default clients and watchers need "
    f"{LEAST_NODES_BY_DEFAULT} at least.",
)
@click.option(
    "--clients",
    type=click.IntRange(1, 1000),
    default=Options.clients,
    show_default=True,
    help="Clients that keep reading and writing.",
)
@click.option(
    "--watchers",
    type=click.IntRange(1, 1000),
    default=Options.watchers,
    show_default=True,
    help="Connections that each hold a watch.",
)
def demo_command(as_json: bool, nodes: int, clients: int, watchers: int) -> int:
    """Update a loaded Xenstore stub domain twice, and measure what its clients see.

    Exit code 0 if nothing was lost, moved or answered wrongly, and 1 with the names of the broken
    checks if anything was.
    """
    least = smallest(clients, watchers)
    if nodes < least:
        raise click.UsageError(
            f"{clients} clients and {watchers} watchers need at least --nodes {least}"
        )
    options = Options(nodes=nodes, clients=clients, watchers=watchers)
    with _cleaned_up_on_signals():
        if as_json:
            outcome = _run(options, Audience())
            _print_object(outcome)
        else:
            outcome = _run_and_tell(options)
    return 0 if outcome.ok else 1


def _run(options: Options, audience: Audience) -> Outcome:
    from xenlive.demo.hosted import HostedWorld, make_images

    with tempfile.TemporaryDirectory(prefix="xenlive-demo-") as name:
        folder = Path(name)
        world = HostedWorld(folder)
        try:
            return run_demo(options, world, lambda: make_images(folder, __version__), audience)
        finally:
            _ignore_signals()
            world.stop()


def _run_and_tell(options: Options) -> Outcome:
    from rich.console import Console

    from xenlive.demo.story import Story

    story = Story(Console())
    try:
        return _run(options, story)
    finally:
        story.close()


def _print_object(outcome: Outcome) -> None:
    from xenlive.demo.report import as_object

    print(json.dumps(as_object(outcome)))
    for check in outcome.checks:
        if not check.ok:
            print(f"xenlive demo: {check.name}: {check.detail}", file=sys.stderr)


def _ignore_signals() -> None:
    """From here on all is being taken down: nothing may stop that half way."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _cleaned_up_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does; the first of them only, so that no second one
    cuts the cleaning up short."""

    def end(number: int, frame: FrameType | None) -> None:
        _ignore_signals()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, end) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
