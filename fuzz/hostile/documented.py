"""The codes of problems that a module's docstring lists: what is not listed there is a find."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any


@cache
def codes_of(function: Callable[..., Any]) -> frozenset[str]:
    """All codes in the table of its module's docstring: hyphenated words that start a line."""
    module = sys.modules[function.__module__]
    found = re.findall(
        r"^ {4}([a-z0-9]+(?:-[a-z0-9]+)+) {2,}\S", module.__doc__ or "", re.MULTILINE
    )
    return frozenset(found)
