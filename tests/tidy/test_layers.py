"""Rooms know each other as ARCHITECTURE.md says, and a domain process starts light.

The table in ARCHITECTURE.md is read here, so that document and code can't drift apart.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from tidy.sources import (
    PACKAGE,
    ROOT,
    SOURCE,
    Import,
    imports,
    is_module,
    module_name,
    place,
    python_files,
    refuse,
    room_of,
)

KERNEL = "xenlive.image.kernel"

# What a domain process may import besides our own modules: small modules written in C, and what
# the interpreter itself has loaded before our first line.
LIGHT = {
    *("__future__", "_signal", "_socket", "binascii", "errno", "fcntl", "gc", "mmap", "os"),
    *("posix", "resource", "select", "struct", "sys", "time", "zipimport", "zlib"),
}
HEAVY = {
    *("typing", "enum", "dataclasses", "collections", "re", "socket", "ctypes", "asyncio"),
    *("contextlib", "functools", "logging", "json", "pathlib", "random", "signal", "subprocess"),
    *("inspect", "importlib.metadata", "click", "rich", "traceback", "tempfile", "shutil"),
}


@cache
def layers() -> dict[str, tuple[int, str]]:
    """Room: its row in ARCHITECTURE.md's table, and what that says of domain processes."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \|.*\| ([^|]+) \|$", text, flags=re.MULTILINE)
    return {room: (index, loaded.strip()) for index, (room, loaded) in enumerate(rows)}


def ours() -> list[Path]:
    return python_files(SOURCE)


def in_a_room() -> list[Path]:
    return [path for path in ours() if room(path)]


def room(path: Path) -> str:
    name = room_of(module_name(path))
    return "" if name == "__main__" else name  # `python -m xenlive` is above all rooms


def row_of(name: str) -> int:
    """The room's row in the table; the package itself is above the first, an unknown room below."""
    return layers().get(name, (len(layers()), ""))[0] if name else -1


def own_imports(path: Path) -> list[Import]:
    return [found for found in imports(path) if found.module.partition(".")[0] == PACKAGE]


def domain_modules() -> set[str]:
    """Our modules that a domain process loads: what the kernel's imports lead to."""
    by_name = {module_name(path): path for path in ours()}
    reached: set[str] = set()
    waiting = [KERNEL]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in by_name:
            continue
        reached.add(name)
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent else []
        waiting += [found.module for found in own_imports(by_name[name]) if found.runs]
    return reached


def held_to_light() -> list[Path]:
    """Modules that must import little: rooms that say `yes`, and all that the kernel reaches."""
    reached = domain_modules()
    return [
        path
        for path in ours()
        if module_name(path) in reached
        or (room(path) and layers().get(room(path), (0, ""))[1] == "yes")
    ]


def test_the_table_is_there() -> None:
    assert {"errors", "abi", "memory", "machine", "cli"} <= layers().keys()
    assert next(iter(layers())) == "errors"
    assert list(layers())[-1] == "cli"
    assert {loaded for _, loaded in layers().values()} <= {"yes", "no", "client side", "guest side"}


def test_every_room_is_in_the_table_and_every_row_is_a_room() -> None:
    rooms = {room(path) for path in ours()} - {""}
    assert rooms == set(layers())


def test_the_package_itself_imports_nothing() -> None:
    refuse([found.module for found in imports(SOURCE / PACKAGE / "__init__.py")])


def test_imports_go_downward() -> None:
    upward = [
        place(path, found.line, found.module)
        for path in in_a_room()
        for found in own_imports(path)
        if row_of(room_of(found.module)) > row_of(room(path))
    ]
    refuse(upward)


def parts_of_the_emulated_machine() -> list[tuple[str, ...]]:
    """The rows of its own table, names of modules in each."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`emulated/[^|]+) \|", text, flags=re.MULTILINE)
    return [
        tuple(name.strip("`/ ").removeprefix("emulated/").removesuffix(".py") for name in names)
        for names in (row.split(",") for row in rows)
    ]


def test_the_emulated_machine_has_an_order_too() -> None:
    emulated = "xenlive.machine.emulated"
    parts = parts_of_the_emulated_machine()
    row = {name: index for index, names in enumerate(parts) for name in names}
    assert {"space", "processor", "hypervisor", "world", "lens"} <= row.keys()

    def row_in(module: str) -> int | None:
        return row.get(module.removeprefix(f"{emulated}.").partition(".")[0])

    modules = [path for path in ours() if module_name(path).startswith(f"{emulated}.")]
    refuse([place(path, 1, "in no row") for path in modules if row_in(module_name(path)) is None])
    upward = [
        place(path, found.line, found.module)
        for path in modules
        for found in own_imports(path)
        if found.runs
        and found.module.startswith(f"{emulated}.")
        and (row_in(found.module) or 0) > (row_in(module_name(path)) or 0)
    ]
    refuse(upward)


def test_imports_name_modules_that_are_there() -> None:
    missing = [
        place(path, found.line, found.module)
        for path in ours()
        for found in own_imports(path)
        if not is_module(found.module)
    ]
    refuse(missing)


def test_a_domain_process_imports_little() -> None:
    heavy = [
        place(path, found.line, found.module)
        for path in held_to_light()
        for found in imports(path)
        if found.runs and found.module not in LIGHT and not found.module.startswith(PACKAGE)
    ]
    refuse(heavy)


def test_what_a_domain_process_loads() -> None:
    said = run_isolated(f"import {KERNEL}")
    assert KERNEL in said
    refuse(sorted(HEAVY & said))
    refuse(sorted(name for name in said if room_of(name) in ("cli", "client", "demo", "sim")))
    bare = run_isolated("import os")
    loaded = {name for name in said - bare - LIGHT if not name.startswith(PACKAGE)}
    # `struct`, `socket` and the like have a C module behind them.
    refuse(sorted(name for name in loaded if name.removeprefix("_") not in LIGHT))


def run_isolated(statement: str) -> set[str]:
    """Names of the modules that are loaded after `statement`, in an interpreter like a domain's."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); {statement}\nprint(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return set(answer.stdout.split())
