"""The formats of memory images: telling them apart, and where each has its memory.

| first bytes | what it is |
|---|---|
| `\\x7fELF` | an ELF core: Xen's if it has a section `.xen_pages`, else one with program headers |
| `KDUMP   `, `makedumpfile` | a compressed kdump: not read here |
| `EMiL` | a LiME image: not read here |
| all else | raw: the file is the memory, or a module |

**Invariants.** A memfd is raw whatever its first bytes are: it is a live domain's memory, and those
are the domain's. `open_space` gives the memory or raises
`ImageError`.
"""

from __future__ import annotations

from xenlive.dump.source import Source
from xenlive.dump.space import Extent, Space
from xenlive.errors import ImageError

KINDS = ("auto", "module", "memory", "xen-core", "elf-core")

ELF_MAGIC = b"\x7fELF"
_LIME_MAGIC = b"EMiL"
_KDUMP_MAGICS = (b"KDUMP   ", b"DISKDUMP", b"makedumpfile")
_PACKED_MAGICS = {
    b"\x1f\x8b\x08": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
}
_HEAD_BYTES = 16


def open_space(source: Source, kind: str) -> tuple[str, Space]:
    """What kind of image a file is, and the memory in it.

    `kind` is one of `KINDS`; `auto` comes back for a raw file, whose bytes say no more. ImageError
    if the file is not of that kind, not sound, or of a format that is not read.
    """
    if kind == "auto":
        if source.unlinked:
            kind = "memory"
        elif source.read(0, _HEAD_BYTES).startswith(ELF_MAGIC):
            kind = "core"
        elif source.read(0, _HEAD_BYTES).startswith(_KDUMP_MAGICS):
            what = "is a compressed kdump: dump the memory as ELF, without -z, -l or -s"
            raise source.error("kdump-image", what, 0)
        elif source.read(0, _HEAD_BYTES).startswith(_LIME_MAGIC):
            what = "is a LiME image: dump the memory with format=padded"
            raise source.error("lime-image", what, 0)
    if kind in ("auto", "module", "memory"):
        return kind, Space(source, [Extent(0, source.size_bytes, 0)])
    from xenlive.dump import elfcore, xencore  # only now: the library they need takes its time

    core = elfcore.ElfCore(source)
    if kind == "core":
        kind = "xen-core" if xencore.is_one(core) else "elf-core"
    return kind, xencore.space_of(core) if kind == "xen-core" else elfcore.space_of(core)


def no_module(source: Source) -> ImageError:
    """What to raise for a file without a module: a packed one can't show any."""
    if not source.size_bytes:
        return source.error("no-module", "is empty")
    head = source.read(0, _HEAD_BYTES)
    for magic, name in _PACKED_MAGICS.items():
        if head.startswith(magic):
            return source.error("no-module", f"is packed with {name}: unpack it first")
    return source.error("no-module", "has no kexec module in it")
