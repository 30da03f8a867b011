"""Loading the next kernel over the running one: what goes where, in which order, and the way back.

Specification: the steps of Mini-OS' `kexec.c` and `arch/x86/kexec.c` (posted July 2025). The image
goes where its ELF file says, the block with the start info 8-aligned behind it. All memory below
the block's end is the next kernel's, so what is in use there moves up first:

    0                              limit                          4 GiB
    |  [segment 1][bss][seg 2][block] |  used  free ...  [module]  ...  |
       ▲           ▲    ▲      ▲              │   ▲
       └── copy ───┼────┴──────┴──────────────┼───┴ the file and the block, before the last step
                  zero      used pages, moved ┘

What is written when:

    plan_kexec   nothing: finds out whether it can be done, and how
    stages       used pages, the file if it is in the way and the block go to free pages; then every
                 callback. Each step can be undone, and then every byte is as it was.
    apply        the actions: the point of no return. Whoever plays the processor does them.

**Invariants.** No action's source lies below `limit` and no target above it, so that none spoils
another, in any order. Nothing that is written is in handed-over pages: checked when planning,
before the first stage and before the first action (`guard.py`). The same input gives the same plan.
At most 16 actions, as the posted code has room for. What fails has changed nothing.

Why the file is moved as a whole, where used pages are moved one by one: an action copies one run of
memory, and page by page there would be more than 16.
"""

from __future__ import annotations

from xenlive.errors import BadAddress, OutOfSpace, UpdateError
from xenlive.kexec.freepages import FreePages
from xenlive.kexec.guard import check_clear, module_range
from xenlive.kexec.stages import Stages
from xenlive.kexec.start_info import build_start_info
from xenlive.memory.address import PAGE_SHIFT, PAGE_SIZE, Frame, PhysAddr, address_of, round_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from xenlive.kexec.elf import KernelImage
    from xenlive.kexec.module import KexecModule
    from xenlive.memory.e820 import MemoryMap
    from xenlive.memory.guest import GuestMemory

    #: Called when a page has moved, with its old and its new frame and what was said to be in it.
    Moved = Callable[[Frame, Frame, str], object]

MAX_ACTIONS = 16
BLOCK_ALIGN = 8

ACTION_COPY = 1
ACTION_ZERO = 2

_LIMIT = 1 << 32


class Action:
    """One step of the processor's last moments: COPY from `source`, or ZERO, `size` bytes."""

    __slots__ = ("kind", "size", "source", "target")

    def __init__(self, kind: int, target: int, size: int, source: int = 0) -> None:
        self.kind = kind
        self.target = PhysAddr(target)
        self.size = size
        self.source = PhysAddr(source)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Action):
            return NotImplemented
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        what = f"copy from {self.source:#x}" if self.kind == ACTION_COPY else "zero"
        return f"<Action {what}: {self.size} bytes at {self.target:#x}>"

    def _fields(self) -> tuple[int, int, int, int]:
        return self.kind, self.target, self.size, self.source


class Move:
    """One page in use that moves from frame `old` to frame `new`; `what` is for people."""

    __slots__ = ("new", "old", "what")

    def __init__(self, old: Frame, new: Frame, what: str) -> None:
        self.old = old
        self.new = new
        self.what = what

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Move):
            return NotImplemented
        return (self.old, self.new, self.what) == (other.old, other.new, other.what)

    def __hash__(self) -> int:
        return hash((self.old, self.new, self.what))

    def __repr__(self) -> str:
        return f"<Move {self.what}: {self.old:#x} to {self.new:#x}>"


class KexecPlan:
    """How the next kernel gets into place; made by `plan_kexec`.

    `entry` and `start_info` are what the processor needs (the latter in `ebx`), `block` the bytes
    that lie there at the end, `actions` what it does before it jumps. `moves` are the pages that
    move out of the way, `file_from` and `file_to` where the ELF file is and will be.
    """

    __slots__ = (
        "_handed_over",
        "_memory",
        "_module",
        "_stages",
        "actions",
        "block",
        "block_from",
        "entry",
        "file_from",
        "file_size",
        "file_to",
        "limit",
        "moves",
        "start_info",
    )

    def __init__(
        self,
        memory: GuestMemory,
        module: KexecModule,
        handed_over: list[tuple[int, int]],
        entry: PhysAddr,
        start_info: PhysAddr,
        block: bytes,
    ) -> None:
        self._memory = memory
        self._module = module
        self._handed_over = handed_over
        self._stages: Stages | None = None
        self.entry = entry
        self.start_info = start_info
        self.block = block
        self.limit = PhysAddr(round_up(start_info + len(block), PAGE_SIZE))
        self.actions: list[Action] = []
        self.moves: list[Move] = []
        self.file_from = self.file_to = self.block_from = PhysAddr(0)
        self.file_size = 0

    def touched(self) -> list[tuple[int, int]]:
        """Address and size in bytes of everything that stages and actions write."""
        ranges = [(int(action.target), action.size) for action in self.actions]
        ranges += [(int(address_of(move.new)), PAGE_SIZE) for move in self.moves]
        ranges.append((self.block_from, len(self.block)))
        if self.file_to != self.file_from:
            ranges.append((self.file_to, self.file_size))
        return ranges

    def check(self) -> None:
        """The guard: BadAddress if anything of this would touch what is handed over now.

        The module is asked where it lies: it may have grown since the plan was made.
        """
        check_clear(self.touched(), [module_range(self._module), *self._handed_over])

    def stages(
        self,
        callbacks: Iterable[tuple[str, Callable[[bool], object]]] = (),
        moved: Moved | None = None,
    ) -> Stages:
        """All steps before the point of no return, in order; `run` does them, or none.

        A callback is its name and what is called with `undo`: false in order, true in reverse when
        a later step fails. `moved` hears of each page after it was copied, in either direction.
        UpdateError if those of an earlier call are done and not undone.
        """
        if self._stages is not None and self._stages.done():
            raise UpdateError("kexec", "the stages of this plan are done already")
        stages = Stages()
        stages.add("guard", self._check_plan)
        for move in self.moves:
            step = _PageMove(self._memory, move, moved)
            stages.add(f"move {move.old:#x} {move.what}".rstrip(), step.do, step.undo)
        if self.file_to != self.file_from:
            data = _Run(self._memory, self.file_to, self.file_size)
            read = self._memory.read
            stages.add("file", lambda: data.fill(read(self.file_from, self.file_size)), data.undo)
        block = _Run(self._memory, self.block_from, len(self.block))
        stages.add("block", lambda: block.fill(self.block), block.undo)
        for name, callback in callbacks:
            stages.add_callback(f"callback {name}", callback)
        self._stages = stages
        return stages

    def apply(self, memory: GuestMemory) -> None:
        """Does the actions, as the processor would: the image, its bss and its block are in place.

        UpdateError if the stages are not all done or the plan was made for another memory,
        BadAddress from the guard: nothing is written.
        """
        if memory is not self._memory:
            raise UpdateError("kexec", "the plan was made for another memory")
        stages = self._stages
        if stages is None or stages.done() != stages.names():
            raise UpdateError("kexec", "the stages before it are not done")
        self._check_plan()
        for action in self.actions:
            if action.kind == ACTION_ZERO:
                memory.fill(action.target, action.size)
            else:
                memory.write(action.target, memory.view(action.source, action.size))

    def _check_plan(self) -> None:
        self.check()
        if module_range(self._module) not in self._handed_over:
            why = "the module has another size than the block says; plan again"
            raise UpdateError("guard", why)


def plan_kexec(
    image: KernelImage,
    memory: GuestMemory,
    memmap: MemoryMap,
    module: KexecModule,
    cmdline: str | bytes,
    used: Iterable[tuple[Frame, str]],
    *,
    file_at: PhysAddr,
    others: Sequence[tuple[int, int]] = (),
    reserved: Iterable[tuple[int, int]] = (),
    rsdp_paddr: int = 0,
) -> KexecPlan:
    """The plan for a kexec into `image`, whose ELF file lies at `file_at` in guest memory.

    `memmap` is this kernel's own; the next one sees it without soft reservations. `used` names the
    frames in use and what is in them; those of the file and of handed-over pages need not be named
    and don't move. `others` are further modules to hand over, address and size, behind ours in the
    list; `reserved` is neither free nor moved, and the last step may overwrite it.

    BadAddress when the image or the block would lie outside of RAM or in handed-over pages, or when
    what is handed over is empty, is not all inside one region of `memory`, or two of it share some;
    OutOfSpace for too many actions or too few free pages, ConfigError for a command line that can't
    be handed over. Nothing is changed.
    """
    handed_over = [module_range(module), *others]
    _validate_handed_over(memory, handed_over)
    start = PhysAddr(round_up(image.end, BLOCK_ALIGN))
    block = build_start_info(start, memmap.for_next_kernel(), handed_over, cmdline, rsdp_paddr)
    plan = KexecPlan(memory, module, handed_over, image.entry, start, block)
    _check_place(memory, memmap, [*image.touched(), (start, len(block))])
    check_clear([*image.touched(), (start, len(block))], handed_over)
    _find_places(plan, memmap, image.size_bytes, file_at, used, reserved)
    plan.actions = _actions(image, plan)
    plan.check()
    return plan


def _validate_handed_over(memory: GuestMemory, ranges: Iterable[tuple[int, int]]) -> None:
    reach = 0
    for address, size in sorted(ranges):
        if size <= 0 or not memory.contains(PhysAddr(address), size):
            raise BadAddress(address, size, "no memory to hand over")
        if address < reach:
            raise BadAddress(address, size, "it would be handed over twice")
        reach = address + size


def _check_place(
    memory: GuestMemory, memmap: MemoryMap, touched: Iterable[tuple[int, int]]
) -> None:
    for address, size in touched:
        place = PhysAddr(address)
        if place + size > _LIMIT:
            raise BadAddress(address, size, "the next kernel does not end below 4 GiB")
        if not memmap.is_ram(place, size) or not memory.contains(place, size):
            raise BadAddress(address, size, "the next kernel would lie outside of RAM")


def _find_places(
    plan: KexecPlan,
    memmap: MemoryMap,
    file_size: int,
    file_at: PhysAddr,
    used: Iterable[tuple[Frame, str]],
    reserved: Iterable[tuple[int, int]],
) -> None:
    """Where the file, the block and the pages in use are while the actions are done."""
    if not plan._memory.contains(file_at, file_size):
        raise BadAddress(file_at, file_size, "the file of the next kernel is not in memory")
    pages = dict(used)
    keep = [*plan._handed_over, *reserved, (file_at, file_size)]
    frames = [(int(address_of(frame)), PAGE_SIZE) for frame in pages]
    there = plan._memory.regions()
    free = FreePages(memmap, there, plan.limit, [*keep, *frames])
    plan.file_from = plan.file_to = file_at
    plan.file_size = file_size
    if file_at < plan.limit:
        plan.file_to = address_of(free.take(round_up(file_size, PAGE_SIZE) >> PAGE_SHIFT))
    plan.block_from = address_of(free.take(round_up(len(plan.block), PAGE_SIZE) >> PAGE_SHIFT))
    in_the_way = [
        frame
        for frame in sorted(pages)
        if address_of(frame) < plan.limit and not _is_inside(frame, keep)
    ]
    if len(in_the_way) > free.count:
        raise OutOfSpace("free pages for those in the kernel's way", len(in_the_way), free.count)
    for frame in in_the_way:
        if not plan._memory.contains(address_of(frame), PAGE_SIZE):
            raise BadAddress(address_of(frame), PAGE_SIZE, "a page in use that is not in memory")
        plan.moves.append(Move(frame, free.take(1), pages[frame]))


def _is_inside(frame: Frame, ranges: Iterable[tuple[int, int]]) -> bool:
    address = address_of(frame)
    return any(at <= address and address + PAGE_SIZE <= at + size for at, size in ranges)


def _actions(image: KernelImage, plan: KexecPlan) -> list[Action]:
    actions = []
    for segment in image.segments:
        if segment.file_size:
            source = plan.file_to + segment.offset
            actions.append(Action(ACTION_COPY, segment.address, segment.file_size, source))
        bss_size = segment.memory_size - segment.file_size
        if bss_size:
            actions.append(Action(ACTION_ZERO, segment.address + segment.file_size, bss_size))
    actions.append(Action(ACTION_COPY, plan.start_info, len(plan.block), plan.block_from))
    if len(actions) > MAX_ACTIONS:
        raise OutOfSpace("kexec actions", len(actions), MAX_ACTIONS)
    return actions


class _Run:
    """A run of free memory that is written to, and can get back what was in it."""

    __slots__ = ("_address", "_before", "_memory", "_size")

    def __init__(self, memory: GuestMemory, address: PhysAddr, size: int) -> None:
        self._memory = memory
        self._address = address
        self._size = size
        self._before = b""

    def fill(self, data: bytes) -> None:
        self._before = self._memory.read(self._address, self._size)
        self._memory.write(self._address, data)

    def undo(self) -> None:
        self._memory.write(self._address, self._before)


class _PageMove:
    """A page in use on its way to another frame, and back with what it became there."""

    __slots__ = ("_memory", "_move", "_moved", "_new")

    def __init__(self, memory: GuestMemory, move: Move, moved: Moved | None) -> None:
        self._memory = memory
        self._move = move
        self._moved = moved
        self._new = _Run(memory, address_of(move.new), PAGE_SIZE)

    def do(self) -> None:
        move = self._move
        self._new.fill(self._memory.read(address_of(move.old), PAGE_SIZE))
        try:
            self._tell(move.old, move.new)
        except BaseException:
            self._new.undo()
            raise

    def undo(self) -> None:
        move = self._move
        page = self._memory.read(address_of(move.new), PAGE_SIZE)
        self._memory.write(address_of(move.old), page)
        try:
            self._tell(move.new, move.old)
        finally:
            self._new.undo()

    def _tell(self, old: Frame, new: Frame) -> None:
        if self._moved is not None:
            self._moved(old, new, self._move.what)
