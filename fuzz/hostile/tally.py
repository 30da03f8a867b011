"""What was tried, counted where a crash can't take it: in a file that worker and parent share.

     0 executions   u64
     8 distinct     u64, inputs whose mark was new
    16 slowest      u64, nanoseconds that the slowest input took
    24 word[509]    u64 each: how often each of the words in `words.txt` was given, by what stands
                    before a colon in it; the last counts all for which there was no room
    4096 marks      one bit for each value of a 27-bit checksum of an input

Two different inputs can have the same checksum, so `distinct` is never more than the number of
different inputs; at a million inputs it is lower by about 0.4 in a hundred.

**Invariants.** Counters are stored by one store each. Several tallies are summed by or-ing marks.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Iterable
from pathlib import Path

MARK_BITS = 27
_MARKS_AT = 4096
_SLOWEST = 2
_FIRST_WORD = 3
_MAX_WORDS = 509
# Slower inputs than this are kept as `slowest-…`, to be looked at.
_SLOW_NS = 200_000_000
_FILE_BYTES = _MARKS_AT + (1 << MARK_BITS) // 8


class Tally:
    """The counts of one worker, in `folder`, which is made."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._words_path = folder / "words.txt"
        self._words: dict[str, int] = {}
        self._known: set[str] = set()
        with open(folder / "tally", "w+b") as file:
            file.truncate(_FILE_BYTES)
            self._map = mmap.mmap(file.fileno(), _FILE_BYTES)
        self._counts = memoryview(self._map)[:_MARKS_AT].cast("Q")
        self._words_path.write_text("")

    def note(self, data: bytes, word: str, ns: int = 0) -> bool:
        """Counts one input, what came of it and how long it took; whether the word is new."""
        self._counts[0] += 1
        if ns > self._counts[_SLOWEST]:
            self._counts[_SLOWEST] = ns
            if ns > _SLOW_NS:
                (self._folder / "slowest").write_bytes(data)
        mark = zlib.crc32(data) >> (32 - MARK_BITS)
        byte, bit = _MARKS_AT + (mark >> 3), 1 << (mark & 7)
        if not self._map[byte] & bit:
            self._map[byte] |= bit
            self._counts[1] += 1
        self._counts[_FIRST_WORD + self._number_of(word.partition(":")[0])] += 1
        new = word not in self._known
        self._known.add(word)
        return new

    def _number_of(self, word: str) -> int:
        number = self._words.get(word)
        if number is None and len(self._words) < _MAX_WORDS - 1:
            number = self._words[word] = len(self._words)
            with self._words_path.open("a") as file:
                file.write(word + "\n")
        return _MAX_WORDS - 1 if number is None else number

    @property
    def executions(self) -> int:
        """Inputs checked so far."""
        return self._counts[0]


def read_tally(folder: Path) -> tuple[int, dict[str, int]]:
    """Executions, and how often each word was given, of a worker that may still run."""
    try:
        with open(folder / "tally", "rb") as file:
            counts = memoryview(file.read(_MARKS_AT)).cast("Q")
        words = (folder / "words.txt").read_text().splitlines()
    except (FileNotFoundError, TypeError):
        return 0, {}
    if len(counts) < _FIRST_WORD + _MAX_WORDS:
        return 0, {}
    given = {word: counts[_FIRST_WORD + at] for at, word in enumerate(words)}
    others = counts[_FIRST_WORD + _MAX_WORDS - 1]
    return counts[0], given | ({"others": others} if others else {})


def slowest_ns(folder: Path) -> int:
    """How long the slowest input of a worker took."""
    with open(folder / "tally", "rb") as file:
        return memoryview(file.read(_MARKS_AT)).cast("Q")[_SLOWEST]


def distinct(folders: Iterable[Path]) -> int:
    """At least so many different inputs did several workers try, together."""
    marks = 0
    for folder in folders:
        path = folder / "tally"
        if path.exists():
            marks |= int.from_bytes(path.read_bytes()[_MARKS_AT:], "little")
    return marks.bit_count()
