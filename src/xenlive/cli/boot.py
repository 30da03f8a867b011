"""`xenlive boot`: run a PVH kernel on the emulated machine, its console in this terminal."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xenlive.cli.boot_files import about, read_file, split_word
from xenlive.cli.boot_gdb import debugged, gdb_option
from xenlive.cli.boot_json import JsonOutput
from xenlive.cli.boot_lens import EXIT_AT_ENTRY, Lens, lens_options
from xenlive.cli.boot_share import Shares, share_options
from xenlive.cli.boot_store import store_option, world_with_store
from xenlive.cli.boot_world import Others, world_options
from xenlive.cli.option_groups import HeadedCommand, options_under
from xenlive.cli.options import SizeType, json_option
from xenlive.machine.emulated.interface import SECOND_NS

if TYPE_CHECKING:
    from xenlive.machine.emulated.build import Module
    from xenlive.machine.emulated.world import Guest, World

# A guest that looks busily for keys is no guest that spins, while somebody may press one.
_SPIN_NEVER = 1 << 62
# Thirty years, and a number of nanoseconds that fits wherever one is kept.
_TIME_LIMIT_MAX_S = 1_000_000_000
_NAME = r"[A-Za-z0-9._+-]{1,63}"

_option = options_under("Kernel and machine")

_EPILOG = """\b
Exit codes: 0 poweroff, 11 reboot, 12 suspend, 13 crash, 14 watchdog, 15 soft reset,
19 other shutdown, 20 triple fault, 21 spins, 22 hung, 23 not supported, 24 time limit,
25 stopped at an entry, 26 killed by the debugger; 1 can't boot, 2 usage, 129 SIGHUP,
130 Ctrl-C, 143 SIGTERM.
"""


def _seconds(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """The value of `--time-limit`: no end of the world is near infinity."""
    if value is not None and not value <= _TIME_LIMIT_MAX_S:
        raise click.BadParameter(f"{value} is more than {_TIME_LIMIT_MAX_S} seconds", param=option)
    return value


def _memory(_: click.Context, option: click.Parameter, value: int) -> int:
    """The value of `--memory`."""
    from xenlive.machine.emulated.build import MEMORY_MAX, MEMORY_MIN
    from xenlive.machine.emulated.processor.paging import PAGE_SIZE

    if value % PAGE_SIZE or not MEMORY_MIN <= value <= MEMORY_MAX:
        raise click.BadParameter(
            f"{value} bytes are not whole pages from 1 MiB to 4 GiB", param=option
        )
    return value


def _name(_: click.Context, option: click.Parameter, value: str) -> str:
    """The value of `--name`, which goes into the store, and before lines of the console."""
    if not re.fullmatch(_NAME, value):
        raise click.BadParameter(
            "one to 63 of letters, digits and . _ + - are a name", param=option
        )
    return value


@click.command(cls=HeadedCommand, epilog=_EPILOG)
@click.argument("kernel", type=click.Path(path_type=Path), required=False)
@_option("--cmdline", default="", metavar="TEXT", help="The kernel's command line.")
@_option(
    "--module",
    "modules",
    multiple=True,
    metavar="FILE[=TEXT]",
    help="Hand FILE over as a module, with TEXT as its command line; an initrd is one. Repeatable.",
)
@_option(
    "--memory",
    type=SizeType(),
    default="64M",
    show_default=True,
    callback=_memory,
    help="Size of the guest's RAM.",
)
@_option(
    "--name",
    default="guest",
    show_default=True,
    callback=_name,
    metavar="NAME",
    help="Domain's name.",
)
@_option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    callback=_seconds,
    metavar="SECONDS",
    help="End after that much of the guest's own time.",
)
@_option(
    "--console-io", is_flag=True, help="Let the guest write to Xen's console, as debug builds do."
)
@share_options
@world_options
@lens_options
@store_option
@gdb_option
@json_option
def boot_command(
    kernel: Path | None,
    cmdline: str,
    modules: tuple[str, ...],
    memory: int,
    name: str,
    time_limit: float | None,
    console_io: bool,
    as_json: bool,
    shares: Shares,
    store_rundir: Path | None,
    others: Others,
    lens: Lens,
    gdb_port: int | None,
) -> int:
    """Boot the PVH kernel KERNEL on an emulated machine, without Xen.

    The guest's console is this terminal; Ctrl-C ends it. How it ended is the exit code; after a
    crash its registers, backtrace and last hypercalls are on stderr. With --json all of that, and
    what it wrote, is one object on stdout; also when it could not be booted, or was interrupted.
    """
    from xenlive.cli.terminal import Terminal
    from xenlive.machine.emulated.lens import report
    from xenlive.machine.emulated.processor.vcpu import SPIN_LIMIT
    from xenlive.machine.emulated.stop import KILLED
    from xenlive.machine.emulated.world import WORLD_IDLE

    if kernel is None and store_rundir is not None:
        raise click.UsageError("a world that was saved has its own Xenstore: no --xenstore with it")
    with JsonOutput(as_json) as output:
        handed = [_module(word) for word in modules]
        names = {
            module.data: split_word(word)[0].name
            for word, module in zip(modules, handed, strict=True)
        }
        terminal = Terminal(_stdin())
        world = click.get_current_context().with_resource(world_with_store(store_rundir, terminal))
        sink = output.written.add if as_json else terminal.show
        if kernel is None:
            guest = others.restore(world, sink, as_json)
        else:
            image = read_file(kernel)
            names[image] = kernel.name
            guest = world.add_guest(
                name,
                memory,
                others.sink(name, sink, as_json),
                spin_limit=_SPIN_NEVER if terminal.is_real_time else SPIN_LIMIT,
                has_console_io=console_io,
            )
            shares.add_to(guest)
            with about(kernel):
                guest.boot(image, cmdline, handed)
            others.add_to(world, guest, memory)
        terminal.type_in = guest.console.type
        terminal.on_signal = world.pause
        until_ns = int(time_limit * SECOND_NS) if time_limit is not None else None

        def is_over() -> bool:
            return others.is_over() or lens.is_stopped()

        with lens:
            lens.attach(world, guest, names, as_json or gdb_port is not None)
            output.describe = lambda: (
                _described(world, guest) | lens.as_object() | others.as_object()
            )
            with terminal, debugged(guest, gdb_port, terminal):
                if world.run(terminal, is_over, until_ns) == WORLD_IDLE:
                    world.give_up()
        lens.raise_failure()
        others.raise_failure()
        if as_json:
            output.say()
        elif report.is_failure(guest.stop):
            for line in report.lines(report.describe(guest)):
                click.echo(line, err=True)
        elif guest.stop is not None and guest.stop.kind == KILLED:
            click.echo(f"guest ended: {KILLED} {guest.stop.what}", err=True)
        lens.say_what_did_not_happen()
        return EXIT_AT_ENTRY if lens.is_stopped() else report.exit_code(guest.stop)


def _described(world: World, guest: Guest) -> dict[str, Any]:
    """What `--json` has of the guest as it is now, and of time."""
    from xenlive.machine.emulated.lens import report

    said = report.as_object(report.describe(guest))
    return said | {"time_s": world.clock.now_ns / SECOND_NS, "blocks": guest.vcpu.blocks}


def _stdin() -> int | None:
    """The descriptor of stdin, if there is one."""
    try:
        os.fstat(0)
    except OSError:
        return None
    return 0


def _module(word: str) -> Module:
    """A module from `FILE` or `FILE=TEXT`."""
    from xenlive.machine.emulated.build import Module

    path, text = split_word(word)
    return Module(read_file(path), text)
