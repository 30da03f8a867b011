"""All pages of a guest's RAM at one moment: which ones changed since another, and what moved.

**Invariants.** Looking makes no page that was not there: what was never used is zeros, and is left
out as pages of zeros are. Equal digests are equal pages.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from xenlive.machine.emulated.sparse import used
from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE, PhysAddr

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.space import Space

#: Guest frame: digest of the page. Frames that are not named are zeros.
Pages = dict[int, bytes]

_ZEROS = bytes(PAGE_SIZE)


def used_ram(space: Space) -> Iterator[tuple[int, memoryview]]:
    """Address and live bytes of the domain's own RAM that was ever used, lowest first.

    What is left out reads as zeros. Pages that lie in a row are one piece.
    """
    in_use = list(used(space.fd, space.size_bytes))
    pieces: list[tuple[int, int]] = []
    for gfn, count, buffer, _ in space.runs():
        index = buffer - space.base_address >> PAGE_SHIFT
        if 0 <= index < space.n_ram:  # neither Xen's nor somebody else's
            start, end = index << PAGE_SHIFT, index + count << PAGE_SHIFT
            for low, high in in_use:
                low, high = max(low, start), min(high, end)
                if low < high:
                    pieces.append(((gfn << PAGE_SHIFT) + low - start, high - low))
    memory = space.memory()
    for address, size in sorted(pieces):
        yield address, memory.view(PhysAddr(address), size)


def digest_of(page: bytes) -> bytes:
    """What stands for a page's bytes."""
    return hashlib.blake2b(page, digest_size=16).digest()


def pages_of(space: Space) -> Pages:
    """All pages as they are now."""
    found: Pages = {}
    for address, piece in used_ram(space):
        for at in range(0, len(piece), PAGE_SIZE):
            page = bytes(piece[at : at + PAGE_SIZE])
            if page != _ZEROS:
                found[address + at >> PAGE_SHIFT] = digest_of(page)
    return found


def changed_between(before: Pages, after: Pages) -> list[int]:
    """Frames whose page is not what it was, lowest first."""
    frames = before.keys() | after.keys()
    return sorted(frame for frame in frames if before.get(frame) != after.get(frame))


def moved_between(before: Pages, after: Pages, changed: Iterable[int]) -> dict[int, int]:
    """Of the changed frames, those with a page that another frame had before: from which."""
    had = {digest: frame for frame, digest in sorted(before.items(), reverse=True)}
    found = {}
    for frame in changed:
        digest = after.get(frame)
        if digest is not None and digest in had:
            found[frame] = had[digest]
    return found


def runs_of(frames: Iterable[int]) -> list[tuple[int, int]]:
    """First frame and number of frames of each run."""
    runs: list[tuple[int, int]] = []
    for frame in sorted(frames):
        if runs and runs[-1][0] + runs[-1][1] == frame:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((frame, 1))
    return runs


def write_image(domain: Domain, path: Path) -> None:
    """Writes the domain's RAM to a file, each byte at its address; what was never used is a hole.

    OSError if that can't be. An existing file is written over.
    """
    end = max((addr + size for addr, size, kind in domain.boot_map if kind == 1), default=0)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, end)
        for address, piece in used_ram(domain.space):
            for start, stop in _parts(domain, address, address + len(piece)):
                data = piece[start - address : stop - address]
                while data:
                    written = os.pwrite(fd, data, start)
                    start, data = start + written, data[written:]
    finally:
        os.close(fd)


def _parts(domain: Domain, start: int, end: int) -> Iterable[tuple[int, int]]:
    """What of a piece is RAM by the memory map: special pages are none."""
    for address, size, kind in domain.boot_map:
        low, high = max(start, address), min(end, address + size)
        if kind == 1 and low < high:
            yield low, high
