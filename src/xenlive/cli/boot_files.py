"""Files that `xenlive boot` is told of: kernels and modules, read whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xenlive.errors import ConfigError, ImageError

# The guest's memory at most: what is larger fits nowhere.
_FILE_MAX_BYTES = 4 << 30


def read_file(path: Path) -> bytes:
    """A file's bytes; what would make its reader wait, or never end, is refused.

    ConfigError or OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(str(path), 0, "is no regular file")
        if status.st_size > _FILE_MAX_BYTES:
            raise ConfigError(str(path), 0, "is larger than a guest's memory can be")
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def validate_output(path: Path) -> None:
    """That a file can be made there, or put in the place of one: told before the guest runs.

    ConfigError or OSError. A device, or a directory, is nothing that may be put away for a file.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    if not stat.S_ISREG(mode):
        raise ConfigError(str(path), 0, "is no regular file")
    if not stat.S_ISDIR(os.stat(path.parent).st_mode):
        raise ConfigError(str(path.parent), 0, "is no directory")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(str(path.parent), 0, "no file can be made here")


@contextmanager
def about(path: Path) -> Iterator[None]:
    """An ImageError in the body is about this file: a ConfigError that says which."""
    try:
        yield
    except ImageError as error:
        raise ConfigError(str(path), 0, str(error)) from None


def split_word(word: str) -> tuple[Path, str]:
    """Path and text of `FILE[=TEXT]`; a file whose name has that form is one."""
    path, equals, text = word.partition("=")
    if equals and os.path.exists(word):
        return Path(word), ""
    return Path(path), text
