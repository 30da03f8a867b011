"""What the tests of the repository itself look at: its files, and the imports of its modules.

**Invariants.** Files are those that git tracks or would track, so that a new file is held to the
rules before its commit; without git, all files that are not plainly somebody's leavings.
"""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PACKAGE = "xenlive"
TEXT_SUFFIXES = (".c", ".cfg", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml")
LEAVINGS = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


@dataclass(frozen=True)
class Import:
    """One import: the module that is imported, where, and whether it runs or is for types only."""

    module: str
    line: int
    runs: bool


@cache
def files() -> tuple[Path, ...]:
    """All files of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        named = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
        return tuple(path for path in named if path.is_file())
    everything = (path for path in ROOT.rglob("*") if path.is_file())
    return tuple(path for path in everything if not LEAVINGS & set(path.parts))


def texts() -> list[Path]:
    """The files that people write."""
    named = ("Makefile", "LICENSE", "run")
    return [path for path in files() if path.suffix in TEXT_SUFFIXES or path.name in named]


def python_files(below: Path = ROOT) -> list[Path]:
    """The Python files below a folder."""
    return [path for path in files() if path.suffix == ".py" and path.is_relative_to(below)]


def place(path: Path, line: int, what: str) -> str:
    """One finding, in the form that editors and people follow: `file:line: what`."""
    return f"{path.relative_to(ROOT)}:{line}: {what}"


def refuse(findings: list[str]) -> None:
    """Fails the test with all of the findings, one a line, if there are any."""
    if findings:
        pytest.fail("\n".join(findings), pytrace=False)


def module_name(path: Path) -> str:
    """The dotted name of a module in src/: `xenlive.abi.layout`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room a module is in: `abi`, `errors`; empty for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@cache
def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """All imports of a file, also those inside of functions."""
    found: list[Import] = []
    _collect(parsed(path), True, found)
    return tuple(found)


def _collect(node: ast.AST, runs: bool, found: list[Import]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found += [Import(alias.name, child.lineno, runs) for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            found += [Import(name, child.lineno, runs) for name in _targets(child)]
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for statement in child.body:
                _collect_one(statement, False, found)
            for statement in child.orelse:
                _collect_one(statement, runs, found)
        else:
            _collect(child, runs, found)


def _collect_one(statement: ast.stmt, runs: bool, found: list[Import]) -> None:
    _collect(ast.Module(body=[statement], type_ignores=[]), runs, found)


def _targets(node: ast.ImportFrom) -> list[str]:
    """Modules an import names: `from xenlive import kexec` is about `xenlive.kexec`."""
    if node.level:
        raise AssertionError(f"line {node.lineno}: imports name their module in full")
    module = node.module or ""
    if module.partition(".")[0] != PACKAGE:
        return [module]
    return [
        f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module
        for alias in node.names
    ]


@cache
def is_module(name: str) -> bool:
    """Whether there is a module or package of ours with this name."""
    path = SOURCE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
