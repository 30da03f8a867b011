"""Pictures for a terminal of any width: an update's timeline, what was handed over, the verdict.

    quiesce      ▏                                       0.4 ms
    dump          ██████                                11.9 ms
    kexec               █████                            9.3 ms
    boot                     ████                        7.5 ms
    restore                      █████████████          24.0 ms
    first reply                               ▏          0.3 ms
    clients saw ├─────────────────────────────┤         55.1 ms

**Invariants.** Pure: numbers in, text out, without a clock or a console. No line is longer than
`width`. Everything drawn is to scale, but for what is too short to be seen: that gets the
thinnest mark there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from xenlive.abi.kexec_module import PAGE_FREE
from xenlive.demo.verdict import Check, Evidence, Update
from xenlive.demo.world import PHASES, HandoverSnapshot, Image
from xenlive.domain.config import Config

LABEL_COLUMNS = 13
NUMBER_COLUMNS = 11
BAR_COLUMNS_MIN = 10
WIDTH_MAX = 100

COLOURS = {
    "quiesce": "yellow",
    "dump": "magenta",
    "kexec": "red",
    "boot": "blue",
    "restore": "cyan",
    "first_reply": "green",
}


@dataclass(frozen=True)
class Marks:
    """The characters to draw with."""

    full: str
    thin: str
    left: str
    line: str
    right: str
    good: str
    bad: str
    to: str
    spinner: str  # rich's name of what moves while one waits

    def plain(self, text: str) -> str:
        """Text of ours in these characters."""
        return text.replace(UNICODE.to, self.to)


UNICODE = Marks("█", "▏", "├", "─", "┤", "✓", "✗", "→", "dots")
ASCII = Marks("#", "|", "|", "-", "|", "ok  ", "FAIL", "->", "line")


def marks_for(encoding: str) -> Marks:
    """Line drawings where the terminal can show them."""
    return UNICODE if encoding.lower().replace("-", "").startswith("utf") else ASCII


def draw_timeline(update: Update, width: int, marks: Marks = UNICODE) -> list[Text]:
    """The phases of an update, one below the other, and below them what the clients saw of it."""
    phases = [
        (name, update.report.phases_ms[name]) for name in PHASES if name in update.report.phases_ms
    ]
    gap = update.gap
    start_s = update.report.started_s
    offset_ms = 0.0
    if gap is not None and start_s is not None:
        offset_ms = (gap.start_s - start_s) * 1000
    total_ms = sum(value for _, value in phases)
    first_ms = min(0.0, offset_ms)
    last_ms = max(total_ms, offset_ms + (gap.silence_ms if gap is not None else 0.0))
    scale = _Scale(first_ms, last_ms, _bar_columns(width))
    lines = []
    at_ms = 0.0
    for name, value in phases:
        bar = scale.bar(at_ms, at_ms + value, marks)
        lines.append(_row(name.replace("_", " "), bar, value, COLOURS[name], width))
        at_ms += value
    if gap is not None:
        bar = scale.span(offset_ms, offset_ms + gap.silence_ms, marks)
        lines.append(_row("clients saw", bar, gap.silence_ms, "bold", width))
    return lines


def draw_handover(evidence: Evidence, width: int) -> Table | None:
    """What each kernel found in the memory it was handed: a column a kernel, None if none looked.

    In the row of pages each sign is a page: its owner's record, `.` for free, `#` administration.
    A `>` marks what is not the same for all.
    """
    found = [(evidence.before, None), *((u.after, u.image) for u in evidence.updates)]
    columns = [(snapshot, image) for snapshot, image in found if snapshot is not None]
    if not columns:
        return None
    table = Table(box=None, show_header=False, pad_edge=False, width=min(width, WIDTH_MAX))
    table.add_column(style="bold", no_wrap=True)
    for _ in columns:
        table.add_column(overflow="fold")
    rows: dict[str, list[str]] = {}
    for snapshot, image in columns:
        for name, value in _handover_rows(snapshot, image).items():
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        same = len(set(values)) == 1
        table.add_row(f"{' ' if same else '>'} {name}", *values, style="" if same else "cyan")
    return table


def _handover_rows(snapshot: HandoverSnapshot, image: Image | None) -> dict[str, str]:
    asked = snapshot.module_pages if image is None else wanted_pages(image.config)
    first, last = min(snapshot.ring_refs, default=0), max(snapshot.ring_refs, default=0)
    indices = snapshot.indices
    return {
        "kernel": snapshot.version,
        "configured for": f"{asked} module pages",
        "module": f"{snapshot.module_pages} pages at {snapshot.module_address:#x}",
        "pages": "".join(_sign(owner) for owner in bytes.fromhex(snapshot.owners)) + "#",
        "interface page": f"grant {snapshot.ring_ref}",
        "ring pages": f"grants {first} to {last}",
        "event channel": f"port {snapshot.event_channel}",
        "written by now": f"{indices.out_prod:,} bytes",
        "read by now": f"{indices.in_cons:,} bytes",
    }


def wanted_pages(config: str) -> int:
    """How many module pages a configuration asks for."""
    return Config.parse(config).number("KEXEC_MODULE_PAGES")


def _sign(owner: int) -> str:
    if owner == PAGE_FREE:
        return "."
    return "0123456789abcdefghijklmnopqrstuvwxyz"[owner] if owner < 36 else "+"


def draw_checks(checks: Sequence[Check], width: int, marks: Marks = UNICODE) -> list[Text]:
    """The verdict, a line or more for each check."""
    names = max((len(check.name) for check in checks), default=0)
    indent = 2 + len(marks.good) + 1 + names + 2
    lines = []
    for check in checks:
        mark = Text(marks.good, "green") if check.ok else Text(marks.bad, "bold red")
        words = _wrap(marks.plain(check.detail), max(10, width - indent))
        head = Text.assemble("  ", mark, " ", (check.name.ljust(names), "bold"), "  ")
        head.append(words[0], "" if check.ok else "red")
        lines.append(head)
        for more in words[1:]:
            lines.append(Text(" " * indent + more, "" if check.ok else "red"))
    return lines


def _wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns` characters, broken at blanks where there are some."""
    lines = [""]
    for word in text.split():
        while len(word) > columns:
            if lines[-1]:
                lines.append("")
            lines[-1], word = word[:columns], word[columns:]
            lines.append("")
        if lines[-1] and len(lines[-1]) + 1 + len(word) > columns:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _bar_columns(width: int) -> int:
    return max(BAR_COLUMNS_MIN, min(width, WIDTH_MAX) - 2 - LABEL_COLUMNS - NUMBER_COLUMNS)


def _row(label: str, bar: str, value_ms: float, style: str, width: int) -> Text:
    return Text.assemble(
        "  ",
        label.ljust(LABEL_COLUMNS),
        (bar.ljust(_bar_columns(width)), style),
        f"{value_ms:.1f} ms".rjust(NUMBER_COLUMNS),
    )


class _Scale:
    """Milliseconds to columns."""

    def __init__(self, first_ms: float, last_ms: float, columns: int) -> None:
        self._first_ms = first_ms
        self._columns = columns
        self._per_ms = columns / max(last_ms - first_ms, 0.001)

    def _ends(self, start_ms: float, end_ms: float) -> tuple[int, int]:
        start = round((start_ms - self._first_ms) * self._per_ms)
        end = round((end_ms - self._first_ms) * self._per_ms)
        start = min(max(start, 0), self._columns - 1)
        return start, min(max(end, start), self._columns)

    def bar(self, start_ms: float, end_ms: float, marks: Marks) -> str:
        start, end = self._ends(start_ms, end_ms)
        return " " * start + (marks.full * (end - start) or marks.thin)

    def span(self, start_ms: float, end_ms: float, marks: Marks) -> str:
        start, end = self._ends(start_ms, end_ms)
        if end - start < 2:
            return " " * start + marks.thin
        return " " * start + marks.left + marks.line * (end - start - 2) + marks.right
