"""Figures of the kexec module: attaching, pages, resizing, and finding one in a memory image.

    bench/kexec_figures.py [--quick] [--rounds N] [--json FILE]

All runs on one CPU. Each round measures everything once, one after the other, so that what
disturbs the machine for a while disturbs no figure more than others; what counts is the median of
the rounds. A figure is of one operation, made long enough to be timed by repeating it. Time is CPU
time of this process: on a quiet machine that is what passes, on a busy one it stays the same.

**Invariants.** Every figure is measured in this run. Reading a file and scanning it are measured
on the same file, next to each other, with all of it in memory already.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from figures import Figure, as_objects, table_of
from rich.console import Console
from rich.table import Table

from xenlive.abi.kexec_module import RECORD_9PFS
from xenlive.dump.image import Image
from xenlive.kexec import KexecModule
from xenlive.kexec.verify import verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

ROUNDS = 7
SIZES = (18, 4000)
ALLOC_SIZES = (400, 1000, 4000)
ENOUGH_S = 0.02
GIB = 1 << 30
MIB = 1 << 20
READ_BYTES = 1 << 20
_ROOM_PAGES = 256  # below a module, to grow into


class World:
    """A module with room below it to grow into, two thirds of its pages owned."""

    def __init__(self, n_module_pages: int) -> None:
        size = (n_module_pages + _ROOM_PAGES) * PAGE_SIZE
        self.memory = GuestMemory([(0, bytearray(size))])
        self.map = MemoryMap([MemoryRange(0, size, E820_RAM)])
        self.address = PhysAddr(_ROOM_PAGES * PAGE_SIZE)
        self.module = KexecModule.create(self.memory, self.address, n_module_pages)
        self.record = self.module.add_record(RECORD_9PFS, bytes(16))
        self.n_pages = n_module_pages - 1

    def own(self, n_pages: int) -> None:
        """Gives the record that many pages."""
        self.module.alloc_pages(self.record, n_pages)


Measure = Callable[[], float]


class Figures:
    """Everything that is measured, each with what measures it once and gives the figure."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self._measures: list[tuple[Figure, Measure]] = []
        for size in SIZES:
            self._add_attaching(size)
        for size in ALLOC_SIZES:
            self._add_pages(size)
        self._add_resizing()
        self._add_scanning(folder, (128 if quick else 1024) * MIB)

    def round(self, say: Callable[[str], None]) -> None:
        """Measures everything once."""
        for figure, measure in self._measures:
            say(figure.name)
            figure.rounds.append(measure())

    def figures(self) -> list[Figure]:
        """All of them, as far as they were measured."""
        return [figure for figure, _ in self._measures]

    def _add(self, name: str, unit: str, measure: Measure) -> None:
        self._measures.append((Figure(name, unit), measure))

    def _add_attaching(self, size: int) -> None:
        world = World(size)
        world.own(world.n_pages * 2 // 3)
        page = world.memory.read(world.module.admin_address, PAGE_SIZE)

        def attach() -> None:
            KexecModule.attach(world.memory, world.address, size * PAGE_SIZE)

        self._add(
            f"verify, {size:,} pages",
            "us",
            lambda: 1e6 * timed(lambda: verify(page, size * PAGE_SIZE)),
        )
        self._add(f"attach, {size:,} pages", "us", lambda: 1e6 * timed(attach))

    def _add_pages(self, size: int) -> None:
        of = f"allocate, free a page of {size:,}"
        self._add(of, "ns", lambda: single_pages_ns(size))
        self._add(f"{of}, fragmented", "ns", lambda: fragmented_ns(size))

    def _add_resizing(self) -> None:
        for size, n in ((18, 6), (3800, 1), (3800, 100)):
            self._add_resize(size, n)
        self._add("compact 30 records with 30 gaps", "us", compact_us)

    def _add_resize(self, size: int, n: int) -> None:
        self._add(f"grow {size:,} pages by {n}", "us", lambda: resized_us(size, n)[0])
        self._add(f"shrink them again by {n}", "us", lambda: resized_us(size, n)[1])

    def _add_scanning(self, folder: Path, size: int) -> None:
        dense, sparse = folder / "dense", folder / "sparse"
        write_dense(dense, size)
        write_sparse(sparse, 8 * GIB, size // 8)
        mib, gib = f"{size // MIB:,} MiB", size / GIB
        self._add(f"read a file of {mib}", "GiB/s", lambda: gib / timed_once(lambda: read(dense)))
        self._add("scan it for a module", "GiB/s", lambda: gib / timed_once(lambda: scan(dense)))
        self._add(
            f"scan 8 GiB with {size // 8 // MIB} MiB of data",
            "ms",
            lambda: 1e3 * timed_once(lambda: scan(sparse)),
        )


def timed(call: Callable[[], object]) -> float:
    """CPU seconds that a call takes: the mean of as many as take long enough together."""
    count, took_s = 1, 0.0
    while True:
        began_s = time.process_time()
        for _ in range(count):
            call()
        took_s = time.process_time() - began_s
        if took_s >= ENOUGH_S:
            return took_s / count
        count *= 2


def timed_once(call: Callable[[], object]) -> float:
    """CPU seconds that one call takes."""
    began_s = time.process_time()
    call()
    return time.process_time() - began_s


def single_pages_ns(size: int) -> float:
    """All pages one by one, then all free again; nanoseconds an operation."""
    world = World(size)
    module, record, n_pages = world.module, world.record, world.n_pages

    def all_pages() -> None:
        for _ in range(n_pages):
            module.alloc_pages(record, 1)
        for page in range(n_pages):
            module.free_pages(page, 1)

    return 1e9 * timed_once(all_pages) / (2 * n_pages)


def fragmented_ns(size: int) -> float:
    """Every other page free: runs of two are looked for in vain, single ones are found."""
    world = World(size)
    module, record, n_pages = world.module, world.record, world.n_pages
    world.own(n_pages)
    free = list(range(0, n_pages, 2))
    Random(1).shuffle(free)

    def holes() -> None:
        for page in free:
            module.free_pages(page, 1)
        for _ in free:
            module.alloc_pages(record, 1)

    return 1e9 * timed_once(holes) / (2 * len(free))


def resized_us(size: int, n: int) -> tuple[float, float]:
    """Microseconds to grow by `n` pages, whose owners all move, and to shrink again."""
    world = World(size)
    other = world.module.add_record(2, b"x")
    for page in range(0, min(world.n_pages, 400), 2):  # owners that a shift changes
        world.module.alloc_pages((world.record, other)[page // 2 % 2], 1)
    grow_s = timed_once(lambda: world.module.grow(n, world.map))
    shrink_s = timed_once(lambda: world.module.shrink(n))
    return 1e6 * grow_s, 1e6 * shrink_s


def compact_us() -> float:
    """Microseconds to close the gaps that deleted records left."""
    world = World(18)
    world.module.extend_table(64)
    records = [world.module.add_record(7, bytes([n]) * 30) for n in range(60)]
    for record in records[::2]:
        world.module.delete_record(record)
    return 1e6 * timed_once(world.module.compact)


def write_dense(path: Path, size: int) -> None:
    """A file without holes and without a module."""
    block = Random(2).randbytes(MIB)
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(block)


def write_sparse(path: Path, size: int, data_bytes: int) -> None:
    """A file of `size` with `data_bytes` of data, in pieces of a megabyte all over it."""
    block = Random(3).randbytes(MIB)
    with path.open("wb") as file:
        file.truncate(size)
        for number in range(data_bytes // MIB):
            file.seek(number * (size // (data_bytes // MIB)) & -PAGE_SIZE)
            file.write(block)


def read(path: Path) -> None:
    """All bytes of a file, into one buffer again and again."""
    buffer = bytearray(READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def scan(path: Path) -> None:
    """Looks through all of an image that has no module."""
    with Image(path, "memory") as image:
        if image.find_modules():
            raise AssertionError("there is no module in it")


def measure(
    *, rounds: int = ROUNDS, quick: bool = False, say: Callable[[str], None] = lambda text: None
) -> list[Figure]:
    """All figures. Leaves the process on the CPUs it had."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    folder = Path(tempfile.mkdtemp(prefix="xenlive-figures-", dir=_in_memory()))
    try:
        figures = Figures(folder, quick)
        for _ in range(1 if quick else rounds):
            figures.round(say)
    finally:
        os.sched_setaffinity(0, cpus)
        shutil.rmtree(folder)
    return figures.figures()


def _in_memory() -> str | None:
    """A file system in memory that has the room, so that no disk is measured; else the usual."""
    try:
        room = shutil.disk_usage("/dev/shm").free
    except FileNotFoundError:
        return None
    return "/dev/shm" if room > 4 * GIB else None


def draw(figures: list[Figure]) -> Table:
    """The result for people."""
    return table_of("The kexec module", figures)


def main() -> int:
    """Runs the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(description="Figures of the kexec module.")
    parser.add_argument("--quick", action="store_true", help="one short round, for a first look")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how many rounds [{ROUNDS}]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    options = parser.parse_args()
    console = Console()
    with console.status("") as status:
        figures = measure(rounds=options.rounds, quick=options.quick, say=status.update)
    console.print(draw(figures))
    if options.json:
        result = {
            "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
            "python": platform.python_version(),
            "figures": as_objects(figures),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
