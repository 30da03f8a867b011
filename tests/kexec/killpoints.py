"""A kernel that dies anywhere in a change of a module: the page as the next kernel finds it.

    with recorded(module) as stores:
        module.grow(3, memmap)
    for page in stores.pages():
        ...  # 4096 bytes, after each store of the change; the first is before any

**Invariants.** A store of one instruction is there or not. Of a bulk copy, any byte may be there or
not: `pages` stores it byte by byte from its start, and then, from its end, up to the whole again;
`torn` stores parts of it at random.
`after` is what is in memory at the end, so that a store that went past the recording is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

from typing_extensions import Buffer

from xenlive.kexec import KexecModule
from xenlive.kexec.adminpage import AdminPage
from xenlive.kexec.recover import settle
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE


class Stores:
    """The stores of a change: of each its offset, its bytes and whether it is one instruction."""

    def __init__(self, before: bytes) -> None:
        self.before = before
        self.after = before
        self.stores: list[tuple[int, bytes, bool]] = []

    def __len__(self) -> int:
        return len(self.stores)

    def count(self) -> int:
        """How many points there are at which the kernel can die."""
        return sum(1 for _ in self._all())

    def pages(self, every: int = 1, some: int = 0) -> Iterator[bytes]:
        """The page at each point where the kernel can die.

        Only each `every`-th of them and the last, or about `some`, spread over the whole change.
        """
        if some:
            every = self.count() // some + 1
        last = self.before
        for number, page in enumerate(self._all()):
            last = page
            if number % every == 0:
                yield page
        assert last == self.after, "something was stored past the recording"
        yield last

    def torn(self, random: Random, each: int) -> Iterator[bytes]:
        """The page with some bytes of a bulk copy stored, `each` times for each such copy.

        Half of the times these bytes lie side by side, in the midst of the copy.
        """
        page = bytearray(self.before)
        for offset, data, at_once in self.stores:
            for number in range(0 if at_once or len(data) < 2 else each):
                torn = bytearray(page)
                first, last = sorted((random.randrange(len(data)), random.randrange(len(data))))
                for at in range(first, last + 1):
                    if number % 2 or random.random() < 0.5:
                        torn[offset + at] = data[at]
                yield bytes(torn)
            page[offset : offset + len(data)] = data

    def _all(self) -> Iterator[bytes]:
        page = bytearray(self.before)
        yield bytes(page)
        for offset, data, at_once in self.stores:
            if not at_once:
                yield from _torn(page, offset, data)
            page[offset : offset + len(data)] = data
            yield bytes(page)


def _torn(page: bytearray, offset: int, data: bytes) -> Iterator[bytes]:
    """Part of a copy: the first bytes, then the last ones; only where a byte changes."""
    for order in (range(len(data)), range(len(data) - 1, -1, -1)):
        torn = bytearray(page)
        for at in order:
            if torn[offset + at] != data[at]:
                torn[offset + at] = data[at]
                yield bytes(torn)


class RecordingPage(AdminPage):
    """An administration page that writes down what is stored to it."""

    __slots__ = ("recording",)

    def __init__(self, view: memoryview, recording: Stores) -> None:
        super().__init__(view)
        self.recording = recording

    def store_u8(self, offset: int, value: int) -> None:
        self._note(offset, value.to_bytes(1, "little"))
        super().store_u8(offset, value)

    def store_u16(self, offset: int, value: int) -> None:
        self._note(offset, value.to_bytes(2, "little"))
        super().store_u16(offset, value)

    def store_u32(self, offset: int, value: int) -> None:
        self._note(offset, value.to_bytes(4, "little"))
        super().store_u32(offset, value)

    def store_u64(self, offset: int, value: int) -> None:
        self._note(offset, value.to_bytes(8, "little"))
        super().store_u64(offset, value)

    def copy(self, offset: int, data: Buffer) -> None:
        self.recording.stores.append((offset, bytes(data), False))
        super().copy(offset, data)

    def _note(self, offset: int, data: bytes) -> None:
        self.recording.stores.append((offset, data, True))


@contextmanager
def recorded(module: KexecModule) -> Iterator[Stores]:
    """Writes down what is stored to a module's administration page meanwhile."""
    page = module._page
    recording = Stores(page.whole())
    module._page = RecordingPage(page._view, recording)
    try:
        yield recording
    finally:
        recording.after = page.whole()
        module._page = page
        page.reread_header()


def recorded_page(page: bytes, change: Callable[[AdminPage], object]) -> Stores:
    """The stores of a change that works on the page itself, such as putting it in order."""
    recording = Stores(page)
    buffer = bytearray(page)
    change(RecordingPage(memoryview(buffer), recording))
    recording.after = bytes(buffer)
    return recording


def next_kernel(page: bytes, n_pages: int) -> AdminPage | None:
    """What a kernel has that attaches to a module with that many allocatable pages and this page.

    None if the page says that the module has another size. Any other problem, or one after the
    page was put in order, fails the test.
    """
    size_bytes = (n_pages + 1) * PAGE_SIZE
    problems = verify(page, size_bytes)
    if [problem.code for problem in problems] == ["bad-n-pages"]:
        return None
    assert problems == []
    found = AdminPage(memoryview(bytearray(page)))
    settle(found, size_bytes)
    assert verify(found.whole(), size_bytes) == []
    return found


def records_of(page: AdminPage) -> dict[int, tuple[int, bytes]]:
    """Type and data of each record in use, by index."""
    return {record.index: (record.type, page.data(record)) for record in page.records()}
