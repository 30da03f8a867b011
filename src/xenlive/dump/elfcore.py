from __future__ import annotations

from xenlive.dump.source import Source
from xenlive.dump.space import Space
from xenlive.errors import ImageError


def tell(source: Source) -> str:
    raise ImageError("elf-image", f"{source.path} is an ELF file, not raw memory", 0)


def space_of(source: Source, kind: str) -> Space:
    raise ImageError("elf-image", f"{source.path} is an ELF file, not raw memory", 0)
