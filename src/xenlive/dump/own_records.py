"""The record types that are this project's own, decoded: sealed records, a resize in flight.

Specification: `abi/kexec_module.py`, `kexec/sealed.py`, `kexec/resize.py`.

| type | decoded |
|---|---|
| SEALED | `kind` `covers_pages` `seal` (see below) `generation` `payload` (hex) |
| RESIZE | `n_small` `n_large` `boundary` `shrinking` |

`seal` is `ok`, `fell-back` (the newest payload is damaged, this is the one before), `broken`, or
`pages-missing` (it covers pages that the image lacks, so that it can't be told).

**Invariants.** A record that starts without its type's magic is somebody else's: None. With it, any
bytes are decoded, and a broken seal is said and no error; its `generation` and `payload` are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xenlive.abi.kexec_module import (
    RECORD_RESIZE,
    RESIZE,
    RESIZE_MAGIC,
    RESIZE_SHRINKING,
    SEALED_HEAD,
    SEALED_SLOT,
)
from xenlive.abi.layout import Layout
from xenlive.dump.device import ReadPage
from xenlive.errors import ImageError
from xenlive.kexec.sealed import covers_pages, decode_sealed, is_sealed
from xenlive.memory.address import PAGE_SIZE


def decode_own(
    type_: int, data: bytes, pages: Sequence[int], read_page: ReadPage
) -> dict[str, Any] | None:
    """A record's fields as in the table above; None if it is none of these."""
    if is_sealed(type_, data) and len(data) >= SEALED_HEAD.size:
        return _decode_sealed(data, pages, read_page)
    if is_resize(type_, data):
        _, n_small, n_large, boundary = RESIZE.unpack(data)
        return {
            "n_small": n_small,
            "n_large": n_large,
            "boundary": boundary & ~RESIZE_SHRINKING,
            "shrinking": bool(boundary & RESIZE_SHRINKING),
        }
    return None


def is_resize(type_: int, data: bytes) -> bool:
    """Whether a record is the journal of a resize."""
    return type_ == RECORD_RESIZE and len(data) == RESIZE.size and data.startswith(RESIZE_MAGIC)


def layouts_in(type_: int, data: bytes) -> list[tuple[str, Layout, int]]:
    """The structures in a record's data, each with what to call it and its offset."""
    if is_resize(type_, data):
        return [("", RESIZE, 0)]
    if not is_sealed(type_, data):
        return []
    slot_bytes = (len(data) - SEALED_HEAD.size) // 2
    if slot_bytes < SEALED_SLOT.size:
        return [("", SEALED_HEAD, 0)]
    slots = [(f"copy {n} ", SEALED_SLOT, SEALED_HEAD.size + n * slot_bytes) for n in (0, 1)]
    return [("", SEALED_HEAD, 0), *slots]


def _decode_sealed(data: bytes, pages: Sequence[int], read_page: ReadPage) -> dict[str, Any]:
    decoded: dict[str, Any] = {
        "kind": SEALED_HEAD.decode(data)["kind"],
        "covers_pages": covers_pages(data),
        "seal": "broken",
        "generation": None,
        "payload": None,
    }
    contents: list[bytes] = []
    if decoded["covers_pages"]:
        contents = [read_page(page) or b"" for page in pages]
        if any(len(content) != PAGE_SIZE for content in contents):
            return decoded | {"seal": "pages-missing"}
    try:
        sealed = decode_sealed(data, contents)
    except ImageError:
        return decoded
    return decoded | {
        "seal": "fell-back" if sealed.fell_back else "ok",
        "generation": sealed.generation,
        "payload": sealed.payload.hex(),
    }
