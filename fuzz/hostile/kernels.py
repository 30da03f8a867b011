"""The kernel target: a hostile ELF file, analysed, planned for, staged, undone, and put into place.

     0 file_page  u8, where in RAM the file lies
     1 used       u8, which pages are in use: every so manyth
     2 fail_at    u8, the stage that fails, if there are that many
     3 line       u8, length of the command line, in words
     4 file       up to 12 KiB

RAM is a megabyte from 0, each page full of its own number, with a module near the top.
"""

from __future__ import annotations

from random import Random

from kexec.elves import EHDR_SIZE, PHDR_SIZE, Load, kernel, note
from vectors import minios

from hostile import bytewise
from hostile.documented import codes_of
from hostile.target import Target, expect
from xenlive.errors import BadAddress, ImageError, OutOfSpace, UpdateError
from xenlive.kexec.elf import KernelImage, analyse_kernel
from xenlive.kexec.module import KexecModule
from xenlive.kexec.plan import KexecPlan, plan_kexec
from xenlive.kexec.start_info import parse_start_info
from xenlive.memory.address import PAGE_SIZE, Frame, PhysAddr
from xenlive.memory.e820 import E820_RAM, MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

HEAD_BYTES = 4
FILE_BYTES = 3 * PAGE_SIZE
N_PAGES = 256
MODULE_PAGE = N_PAGES - 12
MODULE_PAGES = 4
WORD = "CONFIG_KEXEC=y "
_MAP = MemoryMap([MemoryRange(0, N_PAGES * PAGE_SIZE, E820_RAM)])
_FILL = b"".join(bytes([page]) * PAGE_SIZE for page in range(N_PAGES))


def check_kernel(data: bytes) -> str:
    """One file: the code of what is wrong with it, why it can't be loaded, or that it was."""
    head, file = data[:HEAD_BYTES].ljust(HEAD_BYTES, b"\0"), data[HEAD_BYTES:]
    try:
        image = analyse_kernel(file)
    except ImageError as error:
        expect(error.code in codes_of(analyse_kernel), f"{error.code!r} is documented")
        expect(str(error).isprintable(), f"{error.code} has one line of text")
        return error.code
    expect(repr(analyse_kernel(file)) == repr(image), "the same file gives the same answer")
    _check_image(image, file)
    return _check_plan(image, head, file)


def _check_image(image: KernelImage, file: bytes) -> None:
    end = 0
    for segment in image.segments:
        expect(end <= segment.address < segment.end <= 1 << 32, "segments in order, below 4 GiB")
        expect(segment.file_size <= segment.memory_size, "no more in the file than in memory")
        if segment.file_size:
            expect(segment.offset + segment.file_size <= len(file), "a segment is in the file")
        end = segment.end
    expect(image.end == end, "the end is that of the last segment")
    loaded = [(s.address, s.address + s.file_size) for s in image.segments]
    expect(any(low <= image.entry < high for low, high in loaded), "the entry is loaded")


class _World:
    """RAM, a module in it, the file, and where the pages in use are as far as was told."""

    def __init__(self, head: bytes, file: bytes) -> None:
        self.ram = bytearray(_FILL)
        self.memory = GuestMemory([(0, self.ram)])
        module_at = PhysAddr(MODULE_PAGE * PAGE_SIZE)
        self.memory.write(module_at, minios.host_image("empty4"))
        self.module = KexecModule.attach(self.memory, module_at, MODULE_PAGES * PAGE_SIZE)
        n_file_pages = -(-len(file) // PAGE_SIZE)
        self.file_at = PhysAddr(min(head[0], MODULE_PAGE - n_file_pages) * PAGE_SIZE)
        self.memory.write(self.file_at, file)
        first = self.file_at // PAGE_SIZE
        busy = {*range(first, first + n_file_pages), *range(MODULE_PAGE, MODULE_PAGE + 4)}
        self.used = [page for page in range(0, N_PAGES, head[1] % 16 + 2) if page not in busy]
        self.where = {page: page for page in self.used}
        self.line = WORD * head[3]

    def plan(self, image: KernelImage) -> KexecPlan:
        """The plan; the same twice."""
        used = [(Frame(page), str(page)) for page in self.used]
        return plan_kexec(
            image, self.memory, _MAP, self.module, self.line, used, file_at=self.file_at
        )

    def moved(self, old: Frame, new: Frame, what: str) -> None:
        """Hears of a page that has moved."""
        expect(self.where[int(what)] == old, "a page moves from where it is")
        self.where[int(what)] = new

    def is_module_whole(self) -> bool:
        """Whether the handed-over pages are as they were."""
        return self.memory.read(self.module.address, MODULE_PAGES * PAGE_SIZE) == minios.host_image(
            "empty4"
        )


def _check_plan(image: KernelImage, head: bytes, file: bytes) -> str:
    world = _World(head, file)
    before = bytes(world.ram)
    try:
        plan = world.plan(image)
    except (BadAddress, OutOfSpace) as error:
        expect(bytes(world.ram) == before, "a plan that fails changes nothing")
        return (
            f"no plan, {error.why if isinstance(error, BadAddress) else error.what}".partition(
                " bytes at"
            )[0]
            .partition(" handed-over")[0]
            .rstrip("0123456789")
        )
    expect(bytes(world.ram) == before, "planning changes nothing")
    expect(world.plan(image).actions == plan.actions, "the same input gives the same plan")
    expect(len(plan.actions) <= 16, "at most 16 actions")
    failed = _check_undone(world, plan, head[2], before)
    plan.stages(moved=world.moved).run()
    plan.apply(world.memory)
    _check_in_place(world, plan, image, file, before)
    return "in place" + failed


def _check_undone(world: _World, plan: KexecPlan, number: int, before: bytes) -> str:
    """Lets one stage fail: every byte and every page is where it was."""
    stages = plan.stages([("last", lambda undo: None)], world.moved)
    names = stages.names()
    if number >= len(names):
        return ""
    stages.fail_at = names[number]
    try:
        stages.run()
    except UpdateError:
        expect(bytes(world.ram) == before, f"undone from {names[number]}, all bytes are back")
        expect(all(at == page for page, at in world.where.items()), "all pages are back")
        return ", undone once"
    expect(False, f"stage {names[number]} was made to fail")
    return ""


def _check_in_place(
    world: _World, plan: KexecPlan, image: KernelImage, file: bytes, before: bytes
) -> None:
    for segment in image.segments:
        wanted = file[segment.offset : segment.offset + segment.file_size]
        wanted = wanted.ljust(segment.memory_size, b"\0")
        found = world.memory.read(segment.address, segment.memory_size)
        expect(found == wanted, f"the segment at {segment.address:#x} is in place")
    parsed = parse_start_info(world.memory, plan.start_info)
    expect(parsed.cmdline == world.line, "the block has the command line")
    expect(parsed.modules[0][:2] == (world.module.address, world.module.size_bytes), "the module")
    expect(world.is_module_whole(), "handed-over pages are untouched")
    for page, now in world.where.items():
        content = bytes(world.ram[now * PAGE_SIZE : (now + 1) * PAGE_SIZE])
        was = before[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
        expect(content == was, f"page {page} in use is whole")
        expect(now * PAGE_SIZE >= plan.limit, f"page {page} is out of the way")


def kernel_seeds() -> list[bytes]:
    """Small good kernels of both widths, low in RAM, with one to many segments."""
    some = [Load(0x10000, b"code" * 500), Load(0x12000, b"data" * 300, memsz=0x4567)]
    many = [Load(0x10000 + n * 0x1000, b"x" * (n + 1), memsz=0x800) for n in range(7)]
    high = [Load(0xF0000, b"\xf4" * 64, memsz=0x3000)]
    other = note(b"GNU\0", 3, bytes(20))
    seeds = []
    for bits in (32, 64):
        for number, loads in enumerate((some, many, high, [Load(0x8000, b"\xf4" * 4)])):
            file = kernel(loads, bits=bits, entry=loads[0].paddr, more_notes=other * number)
            seeds.append(bytes([0x80 >> number, number * 5, number * 3, number]) + file)
        sections = kernel(some, bits=bits, entry=0x10000, notes_in="section")
        seeds.append(bytes([0x11, 1, 0xFF, 9]) + sections)
    return seeds


def mutate_kernel(data: bytes, rng: Random) -> bytes:
    """Another file: a number in one of its headers or notes, or any byte."""
    changed = bytearray(data.ljust(HEAD_BYTES + 64, b"\0"))
    bits = 64 if changed[HEAD_BYTES + 4] == 2 else 32
    kind = rng.randrange(10)
    if kind < 2:
        at = HEAD_BYTES + 16 + rng.randrange(EHDR_SIZE[bits] - 16) // 2 * 2
        bytewise.put_number(changed, rng, at, rng.choice((2, 2, 4, bits // 8)))
    elif kind < 6:
        step = bits // 8
        headers = HEAD_BYTES + EHDR_SIZE[bits]
        at = headers + rng.randrange(4) * PHDR_SIZE[bits] + rng.randrange(8) * step
        bytewise.put_number(changed, rng, at, rng.choice((4, step)))
    elif kind == 6:
        changed[rng.randrange(HEAD_BYTES)] = rng.randrange(256)
    elif kind == 7:
        at = changed.rfind(b"Xen\0")
        bytewise.put_number(changed, rng, at + rng.choice((-12, -8, -4, 4, 8)), 4)
    else:
        bytewise.change(changed, rng, HEAD_BYTES + FILE_BYTES)
    return bytes(changed)


TARGET = Target(
    name="kernel",
    about="an ELF file, analysed, and the kexec into it planned, undone and done",
    seeds=kernel_seeds,
    mutate=mutate_kernel,
    check=check_kernel,
    max_bytes=HEAD_BYTES + FILE_BYTES,
)
