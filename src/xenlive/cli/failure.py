"""What is said of an error that ends a command: one line, the same for people and in JSON."""

from __future__ import annotations

import errno
import os

from xenlive.errors import XenliveError, XenstoreError

#: Errors that someone else can cause; anything else is a bug and is not hidden.
EXPECTED = (XenliveError, OSError)


def in_one_line(error: XenliveError | OSError) -> str:
    """The error in one line: `read /a: No such file or directory (ENOENT)`."""
    if isinstance(error, XenstoreError):
        text = _in_words(error)
    elif isinstance(error, OSError):
        text = error.strerror or str(error)
        if error.filename is not None:
            text = f"{error.filename}: {text}"
    else:
        text = str(error)
    return " ".join(text.split())


def _in_words(error: XenstoreError) -> str:
    number = getattr(errno, error.name, None)
    meaning = f"{os.strerror(number)} ({error.name})" if number is not None else error.name
    return f"{error.request}: {meaning}" if error.request else meaning
