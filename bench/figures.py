"""One figure of a benchmark, and a table of several: for people and for JSON."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field

from rich.table import Table


@dataclass
class Figure:
    """One line of the result: what it is of, its unit, and what each round gave."""

    name: str
    unit: str
    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """What counts."""
        return statistics.median(self.rounds)


def table_of(title: str, figures: list[Figure], caption: str | None = None) -> Table:
    """The result for people."""
    table = Table(title=title, title_justify="left", caption=caption)
    table.add_column("what")
    table.add_column("unit")
    table.add_column("median", justify="right")
    table.add_column("lowest", justify="right")
    table.add_column("highest", justify="right")
    for figure in figures:
        numbers = (figure.median, min(figure.rounds), max(figure.rounds))
        table.add_row(figure.name, figure.unit, *map(_short, numbers))
    return table


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def as_objects(figures: list[Figure]) -> list[dict[str, object]]:
    """The result for JSON."""
    return [{**asdict(figure), "median": figure.median} for figure in figures]
