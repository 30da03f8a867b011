"""Rules for single files: size, docstrings, words, and calls that are not to be made."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidy.sources import SOURCE, parsed, place, python_files, refuse, texts

LINES_MAX = 500

# The project speaks of itself alone. The brackets keep this file from finding itself.
FOREIGN_WORDS = re.compile(
    "|".join(
        (
            *(r"/w[o]rk/", r"/r[o]ot/", r"/h[o]me/\w", r"\.\./s[h]ared", r"/tmp/(?:b[r]ief|h\d)"),
            *(r"py[p]i\.org", r"pythonh[o]sted", r"np[m]js", r"proxy\.g[o]lang"),
            *(r"session l[o]g", r"issue #[0]?\d", r"pull request #[0]?\d", r"sub-?a[g]ent"),
            *(r"cl[a]ude", r"anthr[o]pic", r"chatg[p]t", r"open[a]i\b", r"c[o]pilot"),
            *(r"language m[o]del", r"as an a[i]\b"),
        )
    ),
    flags=re.IGNORECASE,
)
UNFINISHED = re.compile(r"\b(?:TO[D]O|FIX[M]E|X[X]X|HA[C]K)\b")


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        place(path, number, line.strip())
        for path in texts()
        for number, line in enumerate(lines_of(path), start=1)
        if pattern.search(line)
    ]


def test_no_file_is_too_long() -> None:
    sizes = [(path, len(lines_of(path))) for path in python_files()]
    refuse([place(path, lines, "lines") for path, lines in sizes if lines > LINES_MAX])


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path in python_files() if not ast.get_docstring(parsed(path))]
    refuse([place(path, 1, "no docstring") for path in silent])


def test_everything_public_says_what_it_is_for() -> None:
    explained = explained_methods()
    silent = [
        place(path, node.lineno, f"{owner}.{node.name}" if owner else node.name)
        for path in python_files(SOURCE)
        for node, owner in public_definitions(parsed(path), "")
        if not ast.get_docstring(node)
        and not is_variant(node)
        and node.name not in explained.get(owner, ())
    ]
    refuse(silent)


def public_definitions(
    node: ast.Module | ast.ClassDef, owner: str
) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Public classes, functions and methods, each with the class it is defined in."""
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not child.name.startswith("_"):
            yield child, owner
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child, child.name)


def explained_methods() -> dict[str, set[str]]:
    """Class: the methods that a class above it explains, so that an override need not."""
    classes: dict[str, list[ast.ClassDef]] = {}
    for path in python_files(SOURCE):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, []).append(node)

    def above(name: str) -> set[str]:
        bases = {ast.unparse(b).partition("[")[0] for node in classes[name] for b in node.bases}
        known = [base for base in bases if base in classes and base != name]
        own = {
            node.name
            for base in known
            for parent in classes[base]
            for node in parent.body
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
        }
        return own.union(*(above(base) for base in known))

    return {name: above(name) for name in classes}


def is_variant(node: ast.AST) -> bool:
    """Whether it is an overload or a setter, whose docstring stands elsewhere."""
    names = {ast.unparse(d).rpartition(".")[2] for d in getattr(node, "decorator_list", [])}
    return bool(names & {"overload", "setter", "override"})


def test_nothing_tears_live_memory() -> None:
    # struct.pack_into shows transient zeros to whoever reads the memory at the same time.
    calls = [
        place(path, node.lineno, ast.unparse(node))
        for path in python_files(SOURCE)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr == "pack_into"
    ]
    refuse(calls)


def test_the_project_speaks_of_itself_alone() -> None:
    refuse(lines_with(FOREIGN_WORDS))


def test_nothing_is_left_unfinished() -> None:
    refuse(lines_with(UNFINISHED))


@pytest.mark.parametrize(
    "line", [f"see /{'work'}/x", f"issue #{12}", "Cl" + "aude", "pip from py" + "pi.org"]
)
def test_foreign_words_are_found(line: str) -> None:
    assert FOREIGN_WORDS.search(line)


@pytest.mark.parametrize("line", ["# TO" + "DO: later", "FIX" + "ME"])
def test_unfinished_work_is_found(line: str) -> None:
    assert UNFINISHED.search(line)


# What documented interfaces of the standard library are called.
UNDERSCORED_BUT_PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace"}
# File: names in it that are another's. What a kernel was entered by has only a text for a file.
REACHES = {"machine/hosted/image.py": {"_signal"}}


def test_no_file_uses_underscored_names_of_another() -> None:
    findings = []
    for path in python_files(SOURCE):
        known = UNDERSCORED_BUT_PUBLIC | names_defined_in(parsed(path))
        known |= REACHES.get(path.relative_to(SOURCE / "xenlive").as_posix(), set())
        findings += [
            place(path, line, f"{name} is another file's")
            for line, name in underscored_uses(parsed(path))
            if name not in known
        ]
    refuse(findings)


def names_defined_in(tree: ast.Module) -> set[str]:
    """Functions, classes, variables, and attributes of `self` and `cls` that a file makes."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node):
            found.add(node.attr)
    return found


def underscored_uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each attribute with one underscore of something else, or import of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not is_own(node):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (
            (node.lineno, name)
            for name in names
            if name.startswith("_") and not name.startswith("__")
        )


def is_own(node: ast.Attribute) -> bool:
    """Whether it is an attribute of `self` or `cls`."""
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


@pytest.mark.parametrize(
    "code",
    [
        "import other\nother.thing._field = 1",
        "from other import _helper",
        "self.other._field",
    ],
)
def test_underscored_names_of_others_are_found(code: str) -> None:
    tree = ast.parse(code)
    assert {name for _, name in underscored_uses(tree)} - names_defined_in(tree)


def test_underscored_names_of_ones_own_are_not_found() -> None:
    tree = ast.parse("class One:\n def go(self, other):\n  self._x = other._x\n  other.__class__")
    assert not {name for _, name in underscored_uses(tree)} - names_defined_in(tree)
