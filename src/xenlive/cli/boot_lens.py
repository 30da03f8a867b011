"""`xenlive boot`: kexec under the lens. Chains of kernels, handovers, poison, faults, traces.

**Invariants.** Without any of these options nothing here touches the guest. However the run ends,
the link in the run directory is taken away and the trace is written out.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

import click

from xenlive.cli.boot_files import about, read_file, split_word, validate_output
from xenlive.cli.option_groups import options_under
from xenlive.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.lens.entries import Entries, Entry, Left
    from xenlive.machine.emulated.lens.handover import Handovers
    from xenlive.machine.emulated.lens.outside import NextKernels
    from xenlive.machine.emulated.lens.trace import Trace
    from xenlive.machine.emulated.world import Guest, World

#: The guest was stopped at an entry, as it was asked for.
EXIT_AT_ENTRY = 25


class ByteType(click.ParamType[int]):
    """A byte: `0xa5`, `165`."""

    name = "byte"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The number, or the parameter fails."""
        try:
            number = value if isinstance(value, int) else int(value, 0)
        except ValueError:
            number = -1
        if not 0 <= number <= 0xFF:
            self.fail(f"{value!r} is no byte", param, ctx)
        return number


_FILE = click.Path(dir_okay=False, path_type=Path)
_option = options_under("Kexec under the lens")
_tracing = options_under("Faults and traces")
_OPTIONS = (
    _option(
        "--next",
        "next_words",
        multiple=True,
        metavar="KERNEL[=TEXT]",
        help="Enter KERNEL, with TEXT as its command line, when the guest reboots. Repeatable.",
    ),
    _option("--handovers", is_flag=True, help="Say on stderr what each kernel hands over."),
    _option(
        "--poison", is_flag=True, help="Fill what was not handed over, at each kernel's entry."
    ),
    _option(
        "--poison-byte", type=ByteType(), metavar="BYTE", help="The same, with this byte.  [0xa5]"
    ),
    _tracing(
        "--fail",
        "faults",
        multiple=True,
        metavar="CALL[.OP]:N[=ERRNO]",
        help="Let the Nth such hypercall fail. Repeatable.",
    ),
    _tracing("--trace", is_flag=True, help="Trace hypercalls, pages, grants and events on stderr."),
    _tracing("--trace-to", type=_FILE, metavar="FILE", help="The same, to FILE."),
    _tracing("--trace-json", is_flag=True, help="The same, in JSON, an object a line."),
    _tracing("--trace-exceptions", is_flag=True, help="The same, and exceptions and interrupts."),
    _option(
        "--rundir",
        "lens_rundir",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Let `xenlive inspect --rundir DIR` look at the guest's memory while it runs.",
    ),
    _option(
        "--dump-at-entry",
        metavar="PREFIX",
        help="Save the memory before and after each handover: PREFIX-1-before.img, ...",
    ),
    _option(
        "--stop-at-entry",
        type=click.IntRange(min=0),
        metavar="N",
        help="End when kernel N of the chain, from 0, is at its entry.",
    ),
)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The values of this file's options."""

    next_words: tuple[str, ...]
    handovers: bool
    poison: bool
    poison_byte: int | None
    faults: tuple[str, ...]
    trace: bool
    trace_to: Path | None
    trace_json: bool
    trace_exceptions: bool
    lens_rundir: Path | None
    dump_at_entry: str | None
    stop_at_entry: int | None


def lens_options(command: Callable[..., int]) -> Callable[..., int]:
    """Adds the options of this file; the command gets them all as `lens`."""

    @functools.wraps(command)
    def with_lens(**values: Any) -> int:
        wanted = _Wanted(**{name: values.pop(name) for name in _Wanted.__dataclass_fields__})
        return command(lens=Lens(wanted), **values)

    wrapped: Callable[..., int] = with_lens
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


class Lens:
    """What looks at the first guest of a world, and prods it. `attach` it, then run `with` it."""

    def __init__(self, wanted: _Wanted) -> None:
        self._wanted = wanted
        self._ram: Path | None = None
        self._trace_file: IO[str] | None = None
        self._handovers: Handovers | None = None
        self._next: NextKernels | None = None
        self._faults: Any = None
        #: The kernel at whose entry the guest was stopped; None if it was not.
        self.stopped_at: int | None = None

    @property
    def _is_wanted(self) -> bool:
        wanted = self._wanted
        return any(
            (
                *(wanted.next_words, wanted.handovers, wanted.poison),
                *(wanted.poison_byte is not None, wanted.dump_at_entry is not None),
                *(wanted.stop_at_entry is not None, self._traces),
            )
        )

    @property
    def _traces(self) -> bool:
        wanted = self._wanted
        flags = wanted.trace, wanted.trace_json, wanted.trace_exceptions
        return any(flags) or wanted.trace_to is not None

    def attach(self, world: World, guest: Guest, names: dict[bytes, str], is_asked: bool) -> None:
        """Looks at a guest that was booted and has not run. ConfigError, ImageError, OSError.

        `names` are those of the files that it was given. `is_asked`: somebody else wants to know
        of its kernels, too, so that they are counted without any of these options.
        """
        self._set_faults(guest)
        if self._is_wanted or is_asked:
            from xenlive.machine.emulated.lens.entries import Entries

            entries = Entries(guest, names)
            if self._wanted.dump_at_entry is not None:
                self._dump(guest, entries, self._wanted.dump_at_entry)
            self._look(guest, entries)
            self._set_next(guest, entries)
            if self._traces:
                self._trace(world, guest, entries)
            if self._wanted.stop_at_entry is not None:
                entries.on_entry.append(functools.partial(self._stop_at, guest))
        if self._wanted.lens_rundir is not None:
            self._show_in(guest, self._wanted.lens_rundir)

    def __enter__(self) -> Lens:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ram is not None:
            if _target_of(self._ram) == self._target:
                self._ram.unlink()
            self._ram = None
        if self._trace_file is not None:
            self._trace_file.close()
            self._trace_file = None

    # ---- what is looked for --------------------------------------------------------------

    def _look(self, guest: Guest, entries: Entries) -> None:
        from xenlive.machine.emulated.lens.handover import Handovers
        from xenlive.machine.emulated.lens.handovertext import lines_of
        from xenlive.machine.emulated.lens.poison import DEFAULT_BYTE

        poison = self._wanted.poison_byte
        if poison is None and self._wanted.poison:
            poison = DEFAULT_BYTE
        self._handovers = Handovers(guest, entries, poison)
        if self._wanted.handovers:
            self._handovers.on_handover.append(
                lambda said: click.echo("\n".join(lines_of(said)), err=True)
            )

    def _set_next(self, guest: Guest, entries: Entries) -> None:
        from xenlive.kexec.elf import analyse_kernel
        from xenlive.machine.emulated.lens.outside import NextKernel, NextKernels

        kernels = []
        for word in self._wanted.next_words:
            path, cmdline = split_word(word)
            elf = read_file(path)
            with about(path):
                analyse_kernel(elf)  # what is none is told before anything runs
            kernels.append(NextKernel(path.name, elf, cmdline))
        self._next = NextKernels(guest, entries, kernels)

    def _set_faults(self, guest: Guest) -> None:
        if self._wanted.faults:
            from xenlive.machine.emulated.lens.faults import Faults, parse_fault

            self._faults = Faults([parse_fault(text) for text in self._wanted.faults])
            guest.domain.refuse = self._faults

    def _trace(self, world: World, guest: Guest, entries: Entries) -> None:
        from xenlive.machine.emulated.lens.trace import Trace

        out: IO[str] = sys.stderr
        if self._wanted.trace_to is not None:
            path = self._wanted.trace_to
            out = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            self._trace_file = out
        is_alone = len(world.guests) == 1
        traces = [
            Trace(
                one,
                lambda line: print(line, file=out),
                as_json=self._wanted.trace_json,
                exceptions=self._wanted.trace_exceptions,
                prefix="" if is_alone else f"{one.name}: ",
            )
            for one in world.guests
        ]
        trace = traces[world.guests.index(guest)]
        entries.on_entry.append(functools.partial(_trace_entry, trace, guest))

    def _dump(self, guest: Guest, entries: Entries, prefix: str) -> None:
        from xenlive.machine.emulated.lens.pages import write_image

        validate_output(Path(f"{prefix}-1-before.img"))

        def left(_: Left) -> None:
            write_image(guest.domain, Path(f"{prefix}-{entries.next_n}-before.img"))

        def entered(entry: Entry) -> None:
            if entry.n:
                write_image(guest.domain, Path(f"{prefix}-{entry.n}-after.img"))

        entries.on_left.append(left)
        entries.on_entry.append(entered)

    def _stop_at(self, guest: Guest, entry: Entry) -> None:
        if entry.n == self._wanted.stop_at_entry:
            self.stopped_at = entry.n
            guest.vcpu.pause()

    def _show_in(self, guest: Guest, rundir: Path) -> None:
        from xenlive.dump.live import RAM_NAME

        rundir.mkdir(mode=0o700, parents=True, exist_ok=True)
        ram = rundir / RAM_NAME
        if ram.is_symlink() and not ram.exists():
            ram.unlink()  # whoever was there is gone
        if os.path.lexists(ram):
            raise ConfigError(str(rundir), 0, "another domain runs here")
        self._target = f"/proc/{os.getpid()}/fd/{guest.domain.space.fd}"
        ram.symlink_to(self._target)
        self._ram = ram

    # ---- what came of it -----------------------------------------------------------------

    def is_stopped(self) -> bool:
        """Whether the run is to end here, for `World.run`."""
        return self.stopped_at is not None

    def as_object(self) -> dict[str, Any]:
        """What `--json` has of it."""
        found = self._handovers.found if self._handovers is not None else []
        said: dict[str, Any] = {"handovers": found}
        if self._handovers is not None and self._handovers.left_out:
            said["handovers_left_out"] = self._handovers.left_out
        if self._faults is not None:
            said["faults"] = [str(fault) for fault in self._faults.happened]
            said["faults_waiting"] = [str(fault) for fault in self._faults.waiting]
        if self.stopped_at is not None:
            said |= {"end": f"stopped at the entry of kernel {self.stopped_at}"}
            said |= {"exit": EXIT_AT_ENTRY, "why": "--stop-at-entry"}
        return said

    def raise_failure(self) -> None:
        """ImageError or ConfigError if a next kernel could not be entered."""
        if self._next is not None and self._next.failure is not None:
            raise self._next.failure

    def say_what_did_not_happen(self) -> None:
        """On stderr: faults and entries that the guest never came to, kernels never entered."""
        for fault in self._faults.waiting if self._faults is not None else []:
            click.echo(f"--fail {fault}: the guest made fewer such calls", err=True)
        for kernel in self._next.waiting if self._next is not None else []:
            click.echo(f"--next {kernel.name}: the guest never rebooted for it", err=True)
        if self._wanted.stop_at_entry is not None and not self.is_stopped():
            click.echo(
                f"--stop-at-entry {self._wanted.stop_at_entry}: the chain ended before", err=True
            )


def _trace_entry(trace: Trace, guest: Guest, entry: Entry) -> None:
    from xenlive.machine.emulated.lens.report import name_at

    trace.handover(
        {
            "n": entry.n,
            "entry": f"{entry.address:#x}",
            "name": name_at(guest, entry.address, entry.when_ns),
            "start_info": f"{entry.start_info:#x}",
            "file": entry.known.name,
        }
    )


def _target_of(link: Path) -> str | None:
    try:
        return os.readlink(link)
    except OSError:
        return None
