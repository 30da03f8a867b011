"""`xenlive build`: an image of the installed xenlive, to boot and to update to."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import click

from xenlive import __version__
from xenlive.cli.options import json_option
from xenlive.cli.up import read_config


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--compiled", is_flag=True, help="Compile the busiest modules to machine code.")
@click.option("--zipapp", is_flag=True, help="One file, not a folder.")
@click.option(
    "--version",
    "version",
    default=__version__,
    show_default=True,
    help="What the kernel calls itself.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Mini-OS configuration that the image brings.",
)
@json_option
def build_command(
    target: Path, compiled: bool, zipapp: bool, version: str, config: Path | None, as_json: bool
) -> None:
    """Make an image of the installed xenlive, for `xenlive up` and `xenlive update`.

    TARGET is made; it must not be there yet. An image needs nothing but Python: it serves on after
    the package it was built from was changed or removed.
    """
    from xenlive.builder.compiled import build_compiled
    from xenlive.builder.images import build_folder, build_zipapp

    if zipapp and (compiled or config is not None):
        other = "--compiled" if compiled else "--config"
        raise click.UsageError(f"{other} makes a folder, --zipapp a file")
    if config is not None:
        read_config(config)  # says what is wrong with it
    started_s = time.monotonic()
    if compiled and sys.stderr.isatty():
        click.echo("compiling, which takes half a minute …", err=True)
    build = build_zipapp if zipapp else build_compiled if compiled else build_folder
    build(target, version)
    if config is not None:
        shutil.copyfile(config, target / "minios.cfg")
    kind = "zipapp" if zipapp else "compiled folder" if compiled else "folder"
    took_s = time.monotonic() - started_s
    if as_json:
        said = {"path": str(target.absolute()), "kind": kind, "version": version}
        click.echo(json.dumps({**said, "seconds": round(took_s, 3)}))
    else:
        click.echo(f"{target}: {kind}, kernel {version}, {took_s:.1f} s")
