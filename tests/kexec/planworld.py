"""A kernel about to be replaced: memory full of what it holds, and what must be true afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kexec.elves import Load, kernel

from xenlive.kexec import KexecModule
from xenlive.kexec.elf import KernelImage, analyse_kernel
from xenlive.kexec.find import find_kexec_module
from xenlive.kexec.plan import KexecPlan, plan_kexec
from xenlive.kexec.start_info import parse_start_info
from xenlive.memory.address import PAGE_SIZE, Frame, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

N_PAGES = 256
RAM_BYTES = N_PAGES * PAGE_SIZE
LOADS = (
    Load(0x10000, b"\xf4code" * 1200),
    Load(0x12000, b"data" * 900, memsz=0x4567),
    Load(0x18000, b"", memsz=0x1234),
)
END = 0x19234
CMDLINE = "-U copy=7"


def size_of(load: Load) -> int:
    return len(load.data) if load.memsz is None else load.memsz


class World:
    """A kernel at work: RAM full of what it holds, a module near the top, an ELF file in memory."""

    def __init__(
        self,
        loads: Sequence[Load] = LOADS,
        *,
        file_at: int = 0x80000,
        module_page: int = N_PAGES - 10,
        used: Sequence[int] = (0, 0x10, 0x17, 0x19, 0x1A, 0x40),
        ranges: Sequence[tuple[int, int, int]] = ((0, RAM_BYTES, E820_RAM),),
        **elf: object,
    ) -> None:
        self.ram = bytearray(b"".join(bytes([page]) * PAGE_SIZE for page in range(N_PAGES)))
        self.memory = GuestMemory([(0, self.ram)])
        self.memmap = MemoryMap(MemoryRange(*each) for each in ranges)
        self.module = KexecModule.create(self.memory, PhysAddr(module_page * PAGE_SIZE), 8)
        self.module.alloc_pages(self.module.add_record(1, bytes(16)), 3)
        self.loads = loads
        self.elf = kernel(loads, **elf)  # type: ignore[arg-type]
        self.file_at = PhysAddr(file_at)
        self.memory.write(self.file_at, self.elf)
        self.used = [(Frame(page), f"page {page}") for page in used]
        self.before = bytes(self.ram)
        #: Where each used page is now, as far as `moved` told.
        self.where = {page: page for page in used}
        self.said: list[str] = []

    def image(self) -> KernelImage:
        return analyse_kernel(self.memory.view(self.file_at, len(self.elf)))

    def plan(self, **more: object) -> KexecPlan:
        return plan_kexec(
            self.image(),
            self.memory,
            self.memmap,
            self.module,
            CMDLINE,
            self.used,
            file_at=self.file_at,
            **more,  # type: ignore[arg-type]
        )

    def moved(self, old: Frame, new: Frame, what: str) -> None:
        page = int(what.split()[1])
        assert self.where[page] == old
        self.where[page] = new

    def callback(self, name: str) -> tuple[str, Callable[[bool], None]]:
        return name, lambda undo: self.said.append(f"undo {name}" if undo else name)

    @property
    def image_end(self) -> int:
        return max(load.paddr + size_of(load) for load in self.loads)

    def is_handed_over(self, page: int) -> bool:
        first = self.module.address // PAGE_SIZE
        return first <= page < first + 8

    def module_bytes(self) -> bytes:
        return self.memory.read(self.module.address, self.module.size_bytes)


def check_done(world: World, plan: KexecPlan, module: bytes) -> None:
    """Everything that must be true when the next kernel takes its first step."""
    after = bytes(world.ram)
    expected = bytearray(after)
    for load in world.loads:
        size = size_of(load)
        expected[load.paddr : load.paddr + size] = load.data.ljust(size, b"\0")
    assert after == expected
    assert plan.start_info % 8 == 0
    assert plan.start_info - world.image_end < 8
    parsed = parse_start_info(world.memory, plan.start_info)
    assert parsed.cmdline == CMDLINE
    assert parsed.memmap == world.memmap.for_next_kernel()
    assert parsed.modules[0] == (world.module.address, world.module.size_bytes, 0)
    found, why = find_kexec_module(parsed, world.memory)
    assert why == ""
    assert found is not None
    assert found.address == world.module.address
    assert world.module_bytes() == module
    for page, now in world.where.items():
        content = world.before[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
        assert world.memory.page(Frame(now)) == content, f"page {page} moved to {now}"
        assert now * PAGE_SIZE >= plan.limit or world.is_handed_over(page)
