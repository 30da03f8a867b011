"""Options under headings: the help of a command with many of them.

**Invariants.** Headings come in the order in which the command first has an option under them, and
options in the command's order. What has no heading (`--help`) comes last, so no option is left out.
All descriptions begin in one column.

Why not sections by hand in the command's text: they would be out of date with the next option.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

OTHERS = "Other options"
# From here on click writes a description on a line of its own.
_COLUMN_MAX = 30

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class HeadedOption(click.Option):
    """An option that stands under a heading in its command's help."""

    def __init__(self, *args: Any, heading: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.heading = heading


class HeadedCommand(click.Command):
    """A command whose help has its options under their headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a section for each heading, and one for what has none."""
        sections: dict[str, list[tuple[str, str]]] = {}
        others = []
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if row is None:
                continue  # an argument, or hidden
            if isinstance(param, HeadedOption):
                sections.setdefault(param.heading, []).append(row)
            else:
                others.append(row)
        rows = [row for section in (*sections.values(), others) for row in section]
        width = min(max((len(names) for names, _ in rows), default=0), _COLUMN_MAX)
        for heading, section in (*sections.items(), (OTHERS, others)):
            if section:
                with formatter.section(heading):
                    padded = [(names.ljust(width), text) for names, text in section]
                    formatter.write_dl(padded, col_max=_COLUMN_MAX)


def options_under(heading: str) -> Callable[..., Decorator]:
    """What makes options as `click.option` does, under this heading of a `HeadedCommand`."""

    def option(*names: str, **attributes: Any) -> Decorator:
        return click.option(*names, cls=HeadedOption, heading=heading, **attributes)

    return option
