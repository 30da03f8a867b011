"""How a binary layout is declared: once, with offsets, checked at import.

A `Layout` is the Python side of a C structure: its size, and for each field its name (the C
header's own), its offset and its type. The declaration says the offset although it could be
computed, because that is what the specification says; `Layout` checks that both agree, that no
field overlaps another, that gaps are named as padding and that all of it fits the size.

    HEADER = Layout("kexec_module header", 14, [
        Field("eye_catcher", 0, "8s"),
        Field("n_pages", 8, "H"),
        ...
    ])
    HEADER.decode(page)["n_pages"]

**Invariants.** A layout whose fields don't add up never gets past the import of its module. A
short buffer is a `ValueError` before anything is read. Nothing here writes to memory that another
process reads at the same time: `struct.pack_into` shows transient zeros there, so live shared
memory is written through `memoryview.cast`.

Why not ctypes: importing it costs a domain process 4 to 7 ms of the time its clients wait.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from typing_extensions import Buffer


class Field:
    """One field: C name, offset in bytes, `struct` code (`H` u16, `I` u32, `Q` u64, `8s` bytes)."""

    __slots__ = ("code", "name", "offset", "size")

    def __init__(self, name: str, offset: int, code: str) -> None:
        self.name = name
        self.offset = offset
        self.code = code
        self.size = struct.calcsize("<" + code)


class Layout:
    """A C structure of `size` bytes; little endian unless `order` is `">"`.

    Fields named `_pad…` are written as zero and left out of what `decode` returns. `ctype` is the
    C declaration's name, used where a compiler checks the offsets.
    """

    __slots__ = ("_names", "_struct", "ctype", "fields", "name", "order", "size")

    def __init__(
        self, name: str, size: int, fields: Sequence[Field], order: str = "<", ctype: str = ""
    ) -> None:
        end = 0
        for field in fields:
            if field.offset != end:
                raise TypeError(
                    f"{name}.{field.name}: declared at {field.offset}, follows at {end}"
                )
            end += field.size
        if end != size:
            raise TypeError(f"{name}: fields end at {end}, declared size is {size}")
        self.name = name
        self.size = size
        self.fields = tuple(fields)
        self.ctype = ctype
        self.order = order
        codes = []
        names = []
        for field in fields:
            if field.name.startswith("_pad"):
                codes.append(f"{field.size}x")
            else:
                codes.append(field.code)
                names.append(field.name)
        if len(set(names)) != len(names):
            raise TypeError(f"{name}: a field name stands twice")
        self._names = tuple(names)
        self._struct = struct.Struct(order + "".join(codes))
        if self._struct.size != size:
            raise TypeError(f"{name}: struct has {self._struct.size} bytes, declared are {size}")

    def offset_of(self, name: str) -> int:
        """Offset of a field in bytes; KeyError if there is none of that name."""
        for field in self.fields:
            if field.name == name:
                return field.offset
        raise KeyError(name)

    def unpack(self, buffer: Buffer, offset: int = 0) -> tuple[Any, ...]:
        """The fields in order of declaration. ValueError if the buffer ends too early."""
        try:
            return self._struct.unpack_from(buffer, offset)
        except struct.error as error:
            raise ValueError(f"{self.name}: {error}") from None

    def decode(self, buffer: Buffer, offset: int = 0) -> dict[str, Any]:
        """The fields by name. ValueError if the buffer ends before the structure."""
        return dict(zip(self._names, self.unpack(buffer, offset), strict=True))

    def pack(self, *values: object) -> bytes:
        """The structure's bytes from all fields in order. ValueError if a number does not fit."""
        try:
            return self._struct.pack(*values)
        except struct.error as error:
            raise ValueError(f"{self.name}: {error}") from None

    def encode(self, **values: object) -> bytes:
        """The structure's bytes from all fields by name; TypeError for a missing or unknown one."""
        if values.keys() != set(self._names):
            odd = sorted(values.keys() ^ set(self._names))
            raise TypeError(f"{self.name}: fields missing or unknown: {', '.join(odd)}")
        return self.pack(*(values[name] for name in self._names))
