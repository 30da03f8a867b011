"""`xenlive abi`: the layouts that kernels of different age have to agree on.

| printed | for |
|---|---|
| tables | people |
| `--json` | programs |
| `--c` | other implementations: a header for C11 and C++11 |

**Invariants.** All three are made from the same declarations, the ones the program itself uses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from xenlive.abi.c_header import c_header
from xenlive.abi.declared import Group, Structure, c_type, groups
from xenlive.cli.options import json_option


@click.command()
@click.option("--c", "as_c", is_flag=True, help="Print a header for C11 and C++11.")
@json_option
@click.option(
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write to FILE, not to stdout.",
)
def abi_command(as_c: bool, as_json: bool, output: Path | None) -> None:
    """Print the layouts of handed-over memory, with all offsets.

    These are the kexec module and the records in it, the 9pfs device, the start info, grant table
    entries, and Xenstore's messages and state stream.
    """
    if as_c and as_json:
        raise click.UsageError("--c and --json exclude each other")
    if as_c:
        text = c_header()
    elif as_json:
        text = json.dumps(as_object(groups())) + "\n"
    else:
        text = "\n".join(line for group in groups() for line in table(group)) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="ascii")


def as_object(declared: list[Group]) -> dict[str, Any]:
    """What `--json` prints: groups, each with its constants (bytes in hex) and structures."""
    return {
        "groups": [
            {
                "name": group.file,
                "title": group.title,
                "constants": {
                    name: value if isinstance(value, int) else value.hex()
                    for name, value in group.constants.items()
                },
                "structures": [_structure(structure) for structure in group.structures],
            }
            for group in declared
        ]
    }


def _structure(structure: Structure) -> dict[str, Any]:
    layout = structure.layout
    return {
        "name": structure.name,
        "title": layout.name,
        "size": layout.size,
        "byte_order": "big" if layout.order == ">" else "little",
        "packed": structure.packed,
        "followed_by": structure.followed_by or None,
        "fields": [
            {"name": f.name, "offset": f.offset, "size": f.size, "type": c_type(f)[0]}
            for f in layout.fields
        ],
    }


def table(group: Group) -> list[str]:
    """A group for people: its constants, and the fields of each structure, a line each."""
    lines = [group.title, ""]
    width = max(map(len, group.constants), default=0)
    for name, value in group.constants.items():
        shown = f"{value} ({value:#x})" if isinstance(value, int) and value > 9 else repr(value)
        lines.append(f"  {name:<{width}}  {shown.removeprefix('b')}")
    for structure in group.structures:
        layout = structure.layout
        order = ", big endian" if layout.order == ">" else ""
        lines += ["", f"  struct {structure.name}: {layout.size} bytes{order}"]
        for field in layout.fields:
            type_, count = c_type(field)
            declared = f"{field.name}[{count}]" if count else field.name
            lines.append(f"  {field.offset:6}  {type_:<8}  {declared}")
        if structure.followed_by:
            lines.append(f"  {layout.size:6}  {structure.followed_by}")
    return [*lines, ""]
