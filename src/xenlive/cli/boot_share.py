"""`xenlive boot --share`: directories of this machine for the guest, each a 9pfs device."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import click

from xenlive.cli.option_groups import options_under
from xenlive.cli.options import SizeType
from xenlive.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.world import Guest

_TAG_MAX = 31
_TAG_MARKS = "-_."

_option = options_under("Directories of this machine")
_OPTIONS = (
    _option(
        "--share",
        "share_words",
        multiple=True,
        metavar="DIR[=TAG]",
        help="Give the guest the directory DIR as a 9pfs device. Repeatable.",
    ),
    _option(
        "--share-readonly",
        multiple=True,
        metavar="DIR[=TAG]",
        help="The same, to read only.",
    ),
    _option(
        "--share-limit",
        type=SizeType(),
        default="1G",
        show_default=True,
        help="What all files of a shared directory may hold before the guest may add nothing.",
    ),
    _option(
        "--share-files",
        type=click.IntRange(min=0, max=(1 << 32) - 1),
        metavar="N",
        default=10_000,
        show_default=True,
        help="How many files and directories there may be before the guest may add none.",
    ),
)


class Shares:
    """The values of this file's options."""

    def __init__(
        self, words: tuple[str, ...], readonly: tuple[str, ...], limits: tuple[int, int]
    ) -> None:
        self._words = [(word, False) for word in words] + [(word, True) for word in readonly]
        self._limits = limits

    @property
    def is_any(self) -> bool:
        """Whether there is a directory to share."""
        return bool(self._words)

    def add_to(self, guest: Guest) -> None:
        """Gives the guest the directories. ConfigError for a bad tag, OSError for no directory.

        Devices are numbered in order, those to read only after the others.
        """
        if not self.is_any:
            return  # without the back end's modules
        from xenlive.machine.emulated.backends.ninepfs import Share

        tags: set[str] = set()
        for number, (word, is_read_only) in enumerate(self._words):
            directory, tag = _split(word, f"share{number}")
            _validate_tag(word, tag, tags)
            guest.share(Share(directory, tag, is_read_only, *self._limits))


def share_options(command: Callable[..., int]) -> Callable[..., int]:
    """Adds the options of this file; the command gets them all as `shares`."""

    @functools.wraps(command)
    def with_shares(**values: Any) -> int:
        limits = values.pop("share_limit"), values.pop("share_files")
        shares = Shares(values.pop("share_words"), values.pop("share_readonly"), limits)
        return command(shares=shares, **values)

    wrapped: Callable[..., int] = with_shares
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def _split(word: str, default_tag: str) -> tuple[str, str]:
    """Directory and tag of `DIR[=TAG]`; a directory with such a name is one."""
    directory, equals, tag = word.rpartition("=")
    if not equals or os.path.isdir(word):
        return os.path.abspath(word), default_tag
    return os.path.abspath(directory), tag


def _validate_tag(word: str, tag: str, tags: set[str]) -> None:
    """Xen's `9pfs.h` wants tags of letters and digits; names of more than 31 Linux cuts off."""
    if not tag.isascii() or not all(c.isalnum() or c in _TAG_MARKS for c in tag) or not tag:
        raise ConfigError(f"--share {word}", 0, f"{tag!r} is no tag of letters, digits, - _ and .")
    if len(tag) > _TAG_MAX:
        raise ConfigError(f"--share {word}", 0, f"its tag is longer than {_TAG_MAX}")
    if tag in tags:
        raise ConfigError(f"--share {word}", 0, f"the tag {tag} is another share's")
    tags.add(tag)
