"""Modules for tests, made by the product's own module but for what lies in their pages."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from vectors import minios

from xenlive.abi.xen9pfs import INTERFACE, RECORD_9PFS
from xenlive.kexec import KexecModule
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

REAL = minios.module_image("p9-18-64", "boot1-prekexec")
ADDRESS = 0x3FEE000  # where that one lay, in 64 MiB
RAM_BYTES = 64 << 20
RING_REF, EVTCHN = 2047, 4


def put(data: bytearray, offset: int, value: bytes) -> None:
    """Overwrites bytes; `offset` below zero counts from the end."""
    start = offset % len(data)
    data[start : start + len(value)] = value


def module_with(
    *records: tuple[int, bytes, int], n_module_pages: int = 18, n_records: int = 16
) -> bytearray:
    """A module with records of (type, data, number of pages), and a table of `n_records`."""
    data = bytearray(n_module_pages * PAGE_SIZE)
    module = KexecModule.create(GuestMemory([(0, data)]), PhysAddr(0), n_module_pages)
    if n_records > module.n_records:
        module.extend_table(n_records)
    for type_, content, n_pages in records:
        index = module.add_record(type_, content)
        if n_pages:
            module.alloc_pages(index, n_pages)
    return data


def device_with(
    sent: bytes = b"",
    received: bytes = b"",
    order: int = 4,
    out_cons: int = 0,
    in_cons: int = 0,
    interface: int = 0,
    ring: Sequence[int] = (),
) -> bytearray:
    """A module with a device: `sent` waits in its out ring from `out_cons` on, `received` in in.

    `interface` and `ring` say which pages it has; the rest of its own 1 + 2**order stay empty.
    """
    n_ring = 1 << order
    pages = list(ring) or list(range(1, 1 + n_ring))
    record = RECORD_9PFS.encode(
        ring_ref=RING_REF, evtchn=EVTCHN, prod_pvt_out=out_cons, cons_pvt_in=in_cons
    )
    data = module_with((1, record, 1 + n_ring), n_module_pages=n_ring + 2)
    head = INTERFACE.pack(
        *(in_cons, (in_cons + len(received)) & 0xFFFFFFFF),
        *(out_cons, (out_cons + len(sent)) & 0xFFFFFFFF, order),
    )
    refs = struct.pack(f"<{n_ring}I", *range(RING_REF - 1, RING_REF - 1 - n_ring, -1))
    put(data, interface * PAGE_SIZE, head + refs)
    half = n_ring * PAGE_SIZE // 2
    for first_page, start, content in ((0, in_cons, received), (n_ring // 2, out_cons, sent)):
        for at, byte in enumerate(content):
            place = (start + at) % half
            page = pages[first_page + place // PAGE_SIZE]
            data[page * PAGE_SIZE + place % PAGE_SIZE] = byte
    return data


def ram_with(
    path: Path, module: bytes | bytearray, address: int = ADDRESS, *parts: tuple[int, bytes]
) -> Path:
    """A sparse memory image of 64 MiB with a module and other bytes in it."""
    with path.open("wb") as file:
        file.truncate(RAM_BYTES)
        for offset, data in ((address, module), *parts):
            file.seek(offset)
            file.write(data)
    return path


def grant_page(frames: dict[int, int], flags: int = 0x19) -> bytes:
    """A page of a grant table: the entry of each reference modulo 512 names a frame."""
    page = bytearray(PAGE_SIZE)
    for ref, frame in frames.items():
        put(page, ref % 512 * 8, struct.pack("<HHI", flags, 0, frame))
    return bytes(page)
