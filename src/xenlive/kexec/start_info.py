"""The start info block: built for the next kernel, read from the one before.

Specification: Xen `public/arch-x86/hvm/start_info.h`; the order of the parts is Mini-OS'
(`kexec.c`, posted July 2025), which lays them out 8-aligned right after the next kernel's end:

    hvm_start_info | memory map entries | module list entries | command line, NUL

All addresses in it are final: where things lie when the next kernel runs, not where the block is
put together.

**Invariants.** `parse_start_info` follows no pointer and believes no count before checking it
against the memory that is there, and gives a `StartInfo` or one `ImageError` for any bytes.
`parse` of what `build` made gives the same back.
"""

from __future__ import annotations

from xenlive.abi.start_info import (
    HVM_MEMMAP_TABLE_ENTRY,
    HVM_MODLIST_ENTRY,
    HVM_START_INFO,
    VERSION_0_SIZE,
    XEN_HVM_START_MAGIC_VALUE,
)
from xenlive.errors import BadAddress, ConfigError, ImageError, ModuleError
from xenlive.memory.address import PhysAddr
from xenlive.memory.e820 import MemoryMap, MemoryRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenlive.memory.guest import GuestMemory

# No kernel of ours has use for more; a count above is a damaged block, not a request for work.
MAX_MEMMAP_ENTRIES = 128
MAX_MODULES = 64
MAX_CMDLINE_BYTES = 4096  # with the NUL

START_INFO_VERSION = 1


class StartInfo:
    """What a start info block says. `modules` holds (paddr, size, cmdline_paddr) of each module."""

    __slots__ = ("_block", "cmdline", "flags", "memmap", "modules", "rsdp_paddr", "version")

    def __init__(
        self,
        memmap: MemoryMap,
        modules: Sequence[tuple[int, int, int]] = (),
        cmdline: str = "",
        version: int = START_INFO_VERSION,
        flags: int = 0,
        rsdp_paddr: int = 0,
        block: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._block = list(block)
        self.version = version
        self.flags = flags
        self.modules = list(modules)
        self.cmdline = cmdline
        self.memmap = memmap
        self.rsdp_paddr = rsdp_paddr

    def reserved(self) -> list[tuple[int, int]]:
        """Address and size in bytes of all that must not be overwritten while it is of use.

        These are the parts of the block itself, as it was parsed, and the modules it names.
        """
        return self._block + [(paddr, size) for paddr, size, _ in self.modules]

    @property
    def block(self) -> list[tuple[int, int]]:
        """Address and size in bytes of the parts of the block itself, as it was parsed."""
        return list(self._block)


def build_start_info(
    address: PhysAddr,
    memmap: MemoryMap,
    modules: Sequence[tuple[int, int] | tuple[int, int, int]] = (),
    cmdline: str | bytes = "",
    rsdp_paddr: int = 0,
) -> bytes:
    """The block as it must lie at `address`, which is a multiple of 8.

    A module is its paddr, size and, if it has one, cmdline_paddr.
    `memmap` goes in as it is: `MemoryMap.for_next_kernel` leaves out what is this kernel's own.
    ConfigError for a command line with a NUL, of 4096 bytes and more, or with characters that no
    bytes stand for, ModuleError for too many
    modules, BadAddress for an address that is not aligned.
    """
    line = encode_cmdline(cmdline)
    ranges = memmap.ranges()
    if len(modules) > MAX_MODULES:
        raise ModuleError(f"a start info names at most {MAX_MODULES} modules", len(modules))
    if len(ranges) > MAX_MEMMAP_ENTRIES:
        what = f"a start info has at most {MAX_MEMMAP_ENTRIES} memory ranges"
        raise ImageError("memmap-entries", what, value=len(ranges))
    memmap_at = address + HVM_START_INFO.size
    modlist_at = memmap_at + len(ranges) * HVM_MEMMAP_TABLE_ENTRY.size
    cmdline_at = modlist_at + len(modules) * HVM_MODLIST_ENTRY.size
    size = cmdline_at + len(line) + 1 - address
    if address <= 0 or address % 8:
        raise BadAddress(address, size, "a start info lies at a multiple of 8 above 0")
    head = HVM_START_INFO.encode(
        magic=XEN_HVM_START_MAGIC_VALUE,
        version=START_INFO_VERSION,
        flags=0,
        nr_modules=len(modules),
        modlist_paddr=modlist_at if modules else 0,
        cmdline_paddr=cmdline_at,
        rsdp_paddr=rsdp_paddr,
        memmap_paddr=memmap_at,
        memmap_entries=len(ranges),
        reserved=0,
    )
    parts = [head]
    parts += [HVM_MEMMAP_TABLE_ENTRY.pack(r.addr, r.size, r.type, 0) for r in ranges]
    parts += [HVM_MODLIST_ENTRY.pack(*(*module, 0)[:3], 0) for module in modules]
    return b"".join([*parts, line, b"\0"])


def parse_start_info(memory: GuestMemory, address: PhysAddr) -> StartInfo:
    """The start info at `address`. ImageError if it, or what it points to, is not sound.

    Reserved fields are not looked at: kernels leave junk there.
    """
    fields = _read_head(memory, address)
    block = [(int(address), HVM_START_INFO.size)]
    modules = []
    if fields["nr_modules"]:
        modules = _read_modules(memory, fields["modlist_paddr"], fields["nr_modules"])
        block.append((fields["modlist_paddr"], len(modules) * HVM_MODLIST_ENTRY.size))
    ranges = []
    if fields["memmap_entries"]:
        ranges = _read_memmap(memory, fields["memmap_paddr"], fields["memmap_entries"])
        block.append((fields["memmap_paddr"], len(ranges) * HVM_MEMMAP_TABLE_ENTRY.size))
    line = b""
    if fields["cmdline_paddr"]:
        line = _read_cmdline(memory, fields["cmdline_paddr"])
        block.append((fields["cmdline_paddr"], len(line) + 1))
    return StartInfo(
        MemoryMap(ranges),
        modules,
        line.decode("utf-8", "surrogateescape"),
        fields["version"],
        fields["flags"],
        fields["rsdp_paddr"],
        block,
    )


def _read_head(memory: GuestMemory, address: PhysAddr) -> dict[str, int]:
    block = _read(memory, address, VERSION_0_SIZE, "start-info-outside")
    fields = HVM_START_INFO.decode(block + bytes(HVM_START_INFO.size - VERSION_0_SIZE))
    if fields["magic"] != XEN_HVM_START_MAGIC_VALUE:
        raise ImageError("start-info-magic", "no start info", 0, hex(fields["magic"]))
    if fields["version"] >= 1:
        rest = _read(memory, address, HVM_START_INFO.size, "start-info-outside")
        fields = HVM_START_INFO.decode(block + rest[VERSION_0_SIZE:])
    return fields


def _read_modules(memory: GuestMemory, address: int, count: int) -> list[tuple[int, int, int]]:
    if count > MAX_MODULES:
        raise ImageError("modlist-entries", f"more than {MAX_MODULES} modules", value=count)
    size = HVM_MODLIST_ENTRY.size
    block = _read(memory, address, count * size, "modlist-outside")
    entries = [HVM_MODLIST_ENTRY.unpack(block, i * size) for i in range(count)]
    return [(paddr, size, cmdline) for paddr, size, cmdline, _ in entries]


def _read_memmap(memory: GuestMemory, address: int, count: int) -> list[MemoryRange]:
    if count > MAX_MEMMAP_ENTRIES:
        what = f"more than {MAX_MEMMAP_ENTRIES} memory ranges"
        raise ImageError("memmap-entries", what, value=count)
    size = HVM_MEMMAP_TABLE_ENTRY.size
    block = _read(memory, address, count * size, "memmap-outside")
    entries = [HVM_MEMMAP_TABLE_ENTRY.unpack(block, i * size) for i in range(count)]
    return [MemoryRange(addr, size, type_) for addr, size, type_, _ in entries]


def _read_cmdline(memory: GuestMemory, address: int) -> bytes:
    for base, size in memory.regions():
        if base <= address < base + size:
            readable = min(MAX_CMDLINE_BYTES, base + size - address)
            line, nul, _ = memory.read(PhysAddr(address), readable).partition(b"\0")
            if nul:
                return line
            raise ImageError("cmdline-endless", f"no NUL in {readable} bytes", value=hex(address))
    raise ImageError("cmdline-outside", "the command line is not in memory", value=hex(address))


def _read(memory: GuestMemory, address: int, size: int, code: str) -> bytes:
    if address == 0:
        raise ImageError(code, "address 0 names nothing")
    try:
        return memory.read(PhysAddr(address), size)
    except BadAddress as error:
        raise ImageError(code, str(error)) from None


def encode_cmdline(cmdline: str | bytes) -> bytes:
    """A command line as a kernel gets it, without the NUL after it. ConfigError if it can't be."""
    if isinstance(cmdline, bytes):
        line = cmdline
    else:
        try:
            line = cmdline.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            what = f"has a character at {error.start} that no bytes stand for"
            raise ConfigError("kernel command line", 0, what) from None
    _validate_cmdline(line)
    return line


def _validate_cmdline(line: bytes) -> None:
    if b"\0" in line:
        raise ConfigError("kernel command line", 0, "has a NUL byte in it")
    if len(line) >= MAX_CMDLINE_BYTES:
        what = f"is {len(line)} bytes long, at most {MAX_CMDLINE_BYTES - 1} can be handed over"
        raise ConfigError("kernel command line", 0, what)
