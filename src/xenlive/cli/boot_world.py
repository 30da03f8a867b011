"""`xenlive boot`: several domains in one world, and worlds that are saved and gone back to.

**Invariants.** Without any of these options nothing here touches the guest. Output of several
guests goes out in whole lines, each with its domain's name before it; what was begun when another
guest speaks is ended first.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from xenlive.cli.boot_files import about, read_file, split_word, validate_output
from xenlive.cli.kept import Kept
from xenlive.cli.option_groups import options_under
from xenlive.errors import ConfigError
from xenlive.machine.emulated.interface import SECOND_NS

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.lens.entries import Entry
    from xenlive.machine.emulated.lens.report import Report
    from xenlive.machine.emulated.world import Guest, World

    Sink = Callable[[bytes], object]

_ENTRY = "entry:"
# What a guest is made with, and so is in a snapshot.
_OF_GUEST = ("cmdline", "modules", "memory", "name", "console_io")

_option = options_under("Several domains, and snapshots")
_OPTIONS = (
    _option(
        "--with",
        "with_words",
        multiple=True,
        metavar="KERNEL[=TEXT]",
        help="Run KERNEL, with TEXT as its command line, in a domain beside it: guest2, guest3 ... "
        "Repeatable.",
    ),
    _option(
        "--save-at",
        "save_words",
        nargs=2,
        metavar="WHEN FILE",
        help="Save the world to FILE and go on: WHEN is seconds of the guest's time, or entry:N, "
        "when kernel N of the chain, from 0, is at its entry.",
    ),
    _option(
        "--restore",
        "restore_from",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Go on with a world that was saved, instead of booting KERNEL.",
    ),
)


def world_options(command: Callable[..., int]) -> Callable[..., int]:
    """Adds the options of this file; the command gets them all as `others`."""

    @functools.wraps(command)
    def with_others(**values: Any) -> int:
        words, save = values.pop("with_words"), values.pop("save_words")
        restore_from, kernel = values.pop("restore_from"), values["kernel"]
        if (kernel is None) is (restore_from is None):
            raise click.UsageError("one of KERNEL and --restore is needed")
        if restore_from is not None and (words or values["shares"].is_any or _are_given(_OF_GUEST)):
            raise click.UsageError("--restore has a world of its own: its kernels are in the file")
        if values["name"] in [f"guest{number}" for number in range(2, 2 + len(words))]:
            raise click.UsageError(f"--name {values['name']} is what a guest of --with is called")
        return command(others=Others(words, _parse_save(save), restore_from), **values)

    wrapped: Callable[..., int] = with_others
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _are_given(names: tuple[str, ...]) -> bool:
    """Whether one of these parameters is in the command line."""
    source_of = click.get_current_context().get_parameter_source
    return any(source_of(name) is ParameterSource.COMMANDLINE for name in names)


@dataclass(frozen=True, slots=True)
class _Save:
    """When to save, by one of the two, and where."""

    path: Path
    when_ns: int | None = None
    entry: int | None = None


def _parse_save(words: tuple[str, str] | None) -> _Save | None:
    if not words:
        return None
    when, path = words
    try:
        if when.startswith(_ENTRY):
            return _Save(Path(path), entry=_whole(when.removeprefix(_ENTRY)))
        when_ns = int(float(when) * SECOND_NS)
        if when_ns < 0:
            raise ValueError(when)
        return _Save(Path(path), when_ns=when_ns)
    except (ValueError, OverflowError):
        raise click.UsageError(f"--save-at {when!r}: neither seconds nor entry:N") from None


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise ValueError(text)
    return int(text)


@dataclass
class _Other:
    """A domain beside the first one: what it wrote, and how it ended."""

    guest: Guest
    written: Kept
    report: Report | None = None


@dataclass
class Others:
    """What is around the first guest of a world: other domains, and snapshots."""

    words: tuple[str, ...]
    save: _Save | None
    restore_from: Path | None
    _others: list[_Other] = field(default_factory=list)
    _first: Guest | None = None
    _world: World | None = None
    _lines: Lines | None = None
    _as_json: bool = False
    _is_at_entry: bool = False
    _saved_ns: int | None = None

    # ---- before the run ------------------------------------------------------------------

    def sink(self, name: str, out: Sink, as_json: bool) -> Sink:
        """Where the first guest's console goes: straight to `out` if it is alone."""
        self._lines, self._as_json = Lines(out), as_json
        return self._lines.of(name) if self.words and not as_json else out

    def add_to(self, world: World, guest: Guest, memory: int) -> None:
        """Adds the other domains to a world whose first guest was booted."""
        self._world, self._first = world, guest
        lines = self._lines or Lines(bytes)
        for number, word in enumerate(self.words, 2):
            path, cmdline = split_word(word)
            kernel, name, written = read_file(path), f"guest{number}", Kept()
            sink = written.add if self._as_json else lines.of(name)
            other = world.add_guest(
                name, memory, sink, guest.vcpu.spin_limit, guest.domain.has_console_io
            )
            self._others.append(_Other(other, written))
            with about(path):
                other.boot(kernel, cmdline)
        if self.words:
            world.acquaint(*world.guests)
        self._watch_entries()

    def restore(self, world: World, out: Sink, as_json: bool) -> Guest:
        """Makes an empty world the one that was saved; its first guest. ImageError, OSError."""
        from xenlive.machine.emulated.lens.snapshot import restore_world
        from xenlive.machine.emulated.lens.snapshot_file import read_snapshot

        if self.restore_from is None:
            raise ValueError("nothing to restore")
        with about(self.restore_from):
            snapshot = read_snapshot(self.restore_from)
        lines, sinks, texts = Lines(out), iter(range(1 << 16)), dict[str, Kept]()
        is_alone = len(snapshot.memory) == 1

        def sink_of(name: str) -> Sink:
            if next(sinks) == 0:
                return out if is_alone or as_json else lines.of(name)
            text = texts.setdefault(name, Kept())
            return text.add if as_json else lines.of(name)

        with about(self.restore_from):
            restore_world(world, snapshot, sink_of)
        self._world, self._first, self._as_json = world, world.guests[0], as_json
        others = world.guests[1:]
        self._others = [_Other(one, texts.get(one.name, Kept())) for one in others]
        self._watch_entries()
        return world.guests[0]

    def _watch_entries(self) -> None:
        if self.save is not None:
            validate_output(self.save.path)
        if self.save is not None and self.save.entry is not None and self._first is not None:
            from xenlive.machine.emulated.lens.entries import Entries

            Entries(self._first).on_entry.append(self._on_entry)

    def _on_entry(self, entry: Entry) -> None:
        if self.save is not None and entry.n == self.save.entry and self._first is not None:
            self._is_at_entry = True
            self._first.vcpu.pause()

    # ---- while it runs -------------------------------------------------------------------

    def is_over(self) -> bool:
        """Between two slices: does what is to be done then. Whether the first guest has ended."""
        if self._world is None or self._first is None:
            return False
        self._save_if_due(self._world)
        for other in self._others:
            if other.guest.stop is not None and other.report is None:
                self._bury(self._world, other)
        return bool(self._others) and self._first.stop is not None

    def _save_if_due(self, world: World) -> None:
        save = self.save
        if save is None or self._saved_ns is not None:
            return
        now_ns = world.clock.now_ns
        if self._is_at_entry or (save.when_ns is not None and now_ns >= save.when_ns):
            from xenlive.machine.emulated.lens.snapshot import save_world
            from xenlive.machine.emulated.lens.snapshot_file import write_snapshot

            write_snapshot(save_world(world), save.path)
            self._saved_ns = now_ns
            click.echo(f"{save.path}: the world at {now_ns / SECOND_NS:.6f} s", err=True)

    def _bury(self, world: World, other: _Other) -> None:
        """Reports an end, and takes the domain away, as a toolstack does (on_poweroff=destroy)."""
        from xenlive.machine.emulated.lens import report

        other.report = report.describe(other.guest)
        if not self._as_json:
            click.echo(f"{other.guest.name}: ended, {report.end_name(other.guest.stop)}", err=True)
            if report.is_failure(other.guest.stop):
                click.echo("\n".join(report.lines(other.report)), err=True)
        world.remove_guest(other.guest)

    # ---- what came of it -----------------------------------------------------------------

    def as_object(self) -> dict[str, Any]:
        """What `--json` has of it."""
        from xenlive.machine.emulated.lens import report

        said: dict[str, Any] = {}
        if self._others:
            said["guests"] = [
                {
                    "name": other.guest.name,
                    "domid": other.guest.domain.domid,
                    "end": report.end_name(other.guest.stop),
                    "exit": report.exit_code(other.guest.stop),
                    **other.written.as_object(),
                }
                for other in self._others
            ]
        if self._saved_ns is not None:
            said["saved_s"] = self._saved_ns / SECOND_NS
        return said

    def raise_failure(self) -> None:
        """ConfigError if the world was to be saved, and ended before."""
        if self.save is not None and self._saved_ns is None:
            raise ConfigError(str(self.save.path), 0, "not written: the run ended before --save-at")


class Lines:
    """One output for several guests, in lines that say whose they are."""

    def __init__(self, out: Sink) -> None:
        self._out = out
        self._speaking = ""

    def of(self, name: str) -> Sink:
        """Where one guest's output goes."""
        return functools.partial(self._say, name)

    def _say(self, name: str, data: bytes) -> None:
        prefix = f"{name}| ".encode()
        text = b"\n" if self._speaking not in ("", name) else b""
        is_in_line = self._speaking == name
        for line in data.splitlines(keepends=True):
            text += line if is_in_line else prefix + line
            is_in_line = not line.endswith((b"\n", b"\r"))
        self._speaking = name if is_in_line else ""
        self._out(text)
