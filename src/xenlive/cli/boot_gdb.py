"""`xenlive boot --gdb`: a debugger for the guest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from xenlive.cli.option_groups import Decorator, options_under

if TYPE_CHECKING:
    from xenlive.cli.terminal import Terminal
    from xenlive.machine.emulated.world import Guest

_option = options_under("Debugger")

gdb_option: Decorator = _option(
    "--gdb",
    "gdb_port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Wait for GDB at that port of this machine before the first instruction; 0 is any port.",
)


@contextlib.contextmanager
def debugged(guest: Guest, port: int | None, terminal: Terminal) -> Iterator[None]:
    """Runs the guest, within the block, under the debugger that comes to `port`; None is none.

    ConfigError if the port can't be had. What to type is said on stderr.
    """
    if port is None:
        yield
        return
    from xenlive.machine.emulated.lens import report
    from xenlive.machine.emulated.lens.gdbserver import ADDRESS, GdbServer

    server = GdbServer(guest, port, terminal)
    try:
        click.echo(f"waiting for gdb: target remote {ADDRESS}:{server.port}", err=True)
        server.wait_for_debugger()
        yield
        server.guest_ended(report.exit_code(guest.stop), report.is_failure(guest.stop))
    finally:
        server.close()
