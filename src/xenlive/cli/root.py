"""The `xenlive` command: a table of commands, each imported when it is used.

| ends | exit |
|---|---|
| done | 0 |
| an error of the `XenliveError` tree, or of the system (a file, a socket): one line on stderr | 1 |
| nobody reads the output any more: quietly | 1 |
| wrong usage: one line too, behind the command it is about | 2 |
| interrupted | 130 |

**Invariants.** No error that someone else can cause ends in a traceback. `xenlive --help` and
shell completion import no command. What a command wrote before an error stays written. What the
terminal or the file can't show is written as an escape (`\\xe9`).

Why not plain `add_command`: importing all commands takes longer than most of them run.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys

import click

from xenlive import __version__
from xenlive.cli.failure import EXPECTED, in_one_line

# Name: where its command object is, and its line in `xenlive --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("xenlive.cli.demo:demo_command", "Update a loaded Xenstore twice, and measure."),
    "up": ("xenlive.cli.up:up_command", "Run a Xenstore stub domain in the foreground."),
    "update": ("xenlive.cli.update:update_command", "Replace a running domain's code."),
    "build": ("xenlive.cli.build:build_command", "Make an image, to boot or to update to."),
    "status": ("xenlive.cli.status:status_command", "Say what runs, and since when."),
    "boot": ("xenlive.cli.boot:boot_command", "Run a PVH kernel on an emulated machine."),
    "inspect": ("xenlive.cli.inspect:inspect_command", "Describe handed-over memory."),
    "verify": ("xenlive.cli.inspect:verify_command", "Check handed-over memory."),
    "diff": ("xenlive.cli.diff:diff_command", "Say what differs in two images of it."),
    "hexdump": ("xenlive.cli.hexdump:hexdump_command", "Dump bytes of it, and what they are."),
    "abi": ("xenlive.cli.abi:abi_command", "Print the layouts that kernels agree on."),
    "xs": ("xenlive.cli.xs:xs_group", "Read and change a Xenstore."),
}


class LazyGroup(click.Group):
    """A group whose commands come from `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The table's names, in its order: the most useful first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the module of a command and gives the command; None if there is none."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module_name, _, attribute = entry[0].partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry[0]} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands from the table, so that none is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xenlive", message="%(prog)s %(version)s")
def root() -> None:
    """Live update for Xen stub domains: the code is replaced, the memory stays."""


def import_command(arguments: list[str]) -> None:
    """Imports what the command line is about to run, as far as it names a command."""
    if arguments and arguments[0] in COMMANDS:
        importlib.import_module(COMMANDS[arguments[0]][0].partition(":")[0])


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line (`sys.argv` if None) and gives the exit code."""
    _open_what_is_closed()
    _escape_what_cannot_be_shown()
    try:
        code = root.main(arguments, prog_name="xenlive", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        return 130
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(error.format_message(), where or "xenlive", error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _drop_stdout()
        return 1
    except OSError as error:
        if error.filename is None and error.errno in _NO_ROOM:
            return _fail(f"the output can't be written: {error.strerror}")
        return _fail(in_one_line(error))
    except EXPECTED as error:
        return _fail(in_one_line(error))
    return code if isinstance(code, int) else 0


#: What the system says when a file or a disk is full; nothing but output makes either so.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _open_what_is_closed() -> None:
    """Has output go nowhere if whoever started us closed it: Python gives None for its stream."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _escape_what_cannot_be_shown() -> None:
    """Has stdout escape characters that its encoding lacks, as stderr does, not raise an error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _fail(message: str, who: str = "xenlive", code: int = 1) -> int:
    """Says what went wrong in one line, after what the command has written so far."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_stdout()
    line = " ".join(message.split())
    click.echo(f"{who}: {line}", err=True)
    return code


def _drop_stdout() -> None:
    """Points stdout away from a closed pipe, or the interpreter complains of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
