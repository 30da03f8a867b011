"""Building a kernel for the hosted machine: a copy of this package under another version.

    folder/                      zipapp
    ├── __main__.py              ├── __main__.pyc
    └── xenlive/                 └── xenlive/
        ├── __init__.py              ├── __init__.pyc     only compiled modules, stored:
        └── …/__pycache__            └── …                the fastest thing Python can start

What an image is, `machine/hosted/image.py` says. Rooms that no domain process loads are left out.

**Invariants.** An image needs nothing of where it was made: no file of the installed package, no
site-packages. Building the same twice gives the same bytes in a zipapp. Compiled modules are
never checked against sources: their clients wait while Python would look.
"""

from __future__ import annotations

import py_compile
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import xenlive
from xenlive.errors import ConfigError

NOT_IN_A_DOMAIN = ("builder", "cli", "client", "demo", "dump", "sim", "testing")
EPOCH = (1980, 1, 1, 0, 0, 0)

MAIN = '''"""A kernel of xenlive."""

import sys

from xenlive.image.kernel import main

main(sys.argv)
'''

_VERSION = re.compile(r'^__version__ = "[^"\n]*"$', re.MULTILINE)
_ALLOWED = re.compile(r"[0-9A-Za-z.+_-]{1,40}")


def build_folder(target: Path, version: str) -> Path:
    """Makes the folder `target`, an image that calls itself `version`; returns its path.

    FileExistsError if it is there already, ConfigError for a version that is none.
    """
    _copy_package(target, version)
    compile_folder(target)
    return target


def compile_folder(folder: Path) -> None:
    """Puts the byte code of each module below `folder` where Python looks for it."""
    for source in sorted(folder.rglob("*.py")):
        _compile(source, None, str(source))


def build_zipapp(target: Path, version: str) -> Path:
    """Makes the zipapp `target`, an image that calls itself `version`; returns its path.

    FileExistsError if it is there already, ConfigError for a version that is none.
    """
    if target.exists():
        raise FileExistsError(target)
    build = target.with_name(target.name + ".build")
    try:
        _copy_package(build, version)
        with zipfile.ZipFile(target, "x", zipfile.ZIP_STORED) as archive:
            for source in sorted(build.rglob("*.py")):
                name = source.relative_to(build)
                compiled = _compile(source, source.with_suffix(".pyc"), f"{target.name}/{name}")
                entry = zipfile.ZipInfo(str(name.with_suffix(".pyc")), EPOCH)
                archive.writestr(entry, compiled.read_bytes())
    finally:
        shutil.rmtree(build, ignore_errors=True)
    return target


def _copy_package(target: Path, version: str) -> None:
    if not _ALLOWED.fullmatch(version):
        raise ConfigError("version", 0, f"{version!r} can't be a kernel's version")
    package = Path(xenlive.__file__).parent
    target.mkdir()
    (target / "__main__.py").write_text(MAIN)
    shutil.copytree(package, target / "xenlive", ignore=_left_out(package))
    init = target / "xenlive" / "__init__.py"
    text, found = _VERSION.subn(f'__version__ = "{version}"', init.read_text(encoding="utf-8"))
    if found != 1:
        raise ConfigError(str(package), 0, "its version can't be found to be replaced")
    init.write_text(text, encoding="utf-8")


def _left_out(package: Path) -> Callable[[str, list[str]], set[str]]:
    def ignore(folder: str, names: list[str]) -> set[str]:
        useless = {name for name in names if name == "__pycache__" or name.endswith(".pyc")}
        if Path(folder) == package:
            useless |= set(NOT_IN_A_DOMAIN) & set(names)
        return useless

    return ignore


def _compile(source: Path, target: Path | None, shown: str) -> Path:
    written = py_compile.compile(
        str(source),
        cfile=None if target is None else str(target),
        dfile=shown,
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    return Path(str(written))
