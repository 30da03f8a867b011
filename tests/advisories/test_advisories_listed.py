"""docs/security.md and the tests of this folder name the same advisories."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "security.md"


def test_the_page_and_the_tests_name_the_same() -> None:
    listed = re.findall(r"^\| XSA-(\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == sorted(set(listed), key=int), "each once, in order"
    played = {
        number
        for path in HERE.glob("test_xsa_*.py")
        for number in re.findall(r"^def test_xsa_(\d+)_", path.read_text(), re.MULTILINE)
    }
    assert set(listed) == played


def test_each_file_says_what_it_plays() -> None:
    for path in HERE.glob("test_xsa_*.py"):
        text = path.read_text(encoding="utf-8")
        said = set(re.findall(r"\d+", text.splitlines()[0]))
        assert said == set(re.findall(r"^def test_xsa_(\d+)_", text, re.MULTILINE)), path.name
