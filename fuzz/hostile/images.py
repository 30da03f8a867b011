"""The image target: hostile memory images and ELF cores, opened, searched and read.

An input is a sparse file (`sparse.py`); its options say which kind of image is asked for.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from random import Random

from dump.cores import MAGIC_PV, Segment, XenCore, write_elf_core
from vectors import minios

from hostile.soundness import is_sound
from hostile.sparse import ScratchFile, SparseCase, decode_sparse, mutate_sparse, pieces_of_file
from hostile.target import Target, expect
from xenlive.dump.image import KINDS, FoundModule, Image
from xenlive.errors import ImageError
from xenlive.memory.address import PAGE_SIZE

MAX_BYTES = 64 << 10
_SOME = 8  # of many regions or modules
_scratch: list[ScratchFile] = []


def scratch_file() -> ScratchFile:
    """The file that this process's inputs are written to."""
    if not _scratch:
        _scratch.append(ScratchFile())
    return _scratch[0]


def check_image(data: bytes) -> str:
    """One file: what it was found to be, or the code of what is wrong with it."""
    case = decode_sparse(data)
    file = scratch_file()
    file.write(case.size, ((offset, bytes(content)) for offset, content in case.pieces))
    kind = KINDS[case.options % len(KINDS)]
    try:
        with Image(file.path, kind) as image:
            return _check_open(image)
    except ImageError as error:
        expect(str(error).isprintable(), f"{error.code} has one line of text")
        return f"{kind}, {error.code}"


def _check_open(image: Image) -> str:
    _check_regions(image)
    modules = image.find_modules()
    for found in modules[:_SOME]:
        _check_found(image, found)
    sound = [is_sound(found.admin_page, found.size_bytes) for found in modules]
    expect(sound == sorted(sound, reverse=True), "sound modules come first")
    if modules:
        expect(image.find_module() == modules[0], "the first of them is the one that counts")
        return f"{image.kind}, {'sound' if sound[0] else 'a module'}"
    try:
        image.find_module()
    except ImageError as error:
        expect(error.code == "no-module", "none is no-module")
        return f"{image.kind}, no module"
    expect(False, "find_module finds what find_modules does")
    return ""


def _check_regions(image: Image) -> None:
    regions = image.regions()
    end = -1
    for region in regions:
        expect(region.size_bytes > 0, "a region is not empty")
        if region.address is not None:
            expect(region.address > end, "regions are in order, and merged")
            end = region.address + region.size_bytes
    for region in regions[:_SOME]:
        if region.address is None:
            expect(image.read_phys(0, 16) == b"", "a module image knows no addresses")
            continue
        last = region.address + region.size_bytes - 1
        expect(image.has(region.address, region.size_bytes), "a region is all there")
        expect(not image.has(last, 2), "behind a region there is none")
        for address in (region.address, last, region.address - 1, region.address + 4095):
            found = image.read_phys(address, 16) if address >= 0 else b""
            expect(len(found) <= 16, "no more is read than was asked for")
            there = image.has(address, 16) if address >= 0 else False
            expect(there or len(found) < 16, "what is read in full is there")


def _check_found(image: Image, found: FoundModule) -> None:
    expect(len(found.admin_page) == PAGE_SIZE, "an administration page is a page")
    expect(found.admin_page.startswith(b"KexecMem"), "it has the eye catcher")
    n_pages = struct.unpack_from("<H", found.admin_page, 8)[0]
    expect((found.address is None) == (image.kind == "module"), "memory says where it lies")
    for index in (0, n_pages - 1, n_pages // 2):
        page = found.read_page(index)
        expect(page is None or len(page) == PAGE_SIZE, "a page is a whole page, or not there")
    expect(found.read_page(-1) is None, "there is no page -1")
    expect(found.read_page(n_pages + 1) is None, "there is no page behind the last")


def image_seeds() -> list[bytes]:
    """Raw images and cores of both kinds, each with a module or two."""
    module = minios.host_image("empty4")
    device = minios.module_image("p9-18-64", "boot1-prekexec")[-PAGE_SIZE:]
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core"
        for bits, order, many in (
            (64, "<", False),
            (32, "<", False),
            (64, ">", False),
            (64, "<", True),
        ):
            segments = [
                Segment(0, 0xA0000, [(0x9000, b"low")]),
                Segment(0x100000, 0x400000, [(0x3FC000, module)]),
            ]
            write_elf_core(path, segments, bits=bits, order=order, many=many, note=b"Q" * 20)
            cases.append(pieces_of_file(path))
        frames = [0, 1, 2, 0x3FEE, (1 << 64) - 1, 9, 8, 7, 6]
        pages = {8: module[:PAGE_SIZE], 5: module[-PAGE_SIZE:], 1: b"x" * PAGE_SIZE}
        cases.append(pieces_of_file(XenCore(frames, pages).write(path)))
        cases.append(pieces_of_file(XenCore(frames, pages, MAGIC_PV).write(path)))
    cases.append(SparseCase(0, len(module), [(0, bytearray(module))]))
    low = (0x10000, bytearray(module))
    high = (0x3FEE000 + 17 * PAGE_SIZE, bytearray(device))
    cases.append(SparseCase(0, 64 << 20, [low, high]))
    cases.append(SparseCase(0, 8 << 30, [low, high, (5 << 30, bytearray(module))]))
    cases.append(SparseCase(0, 18 * PAGE_SIZE, [(17 * PAGE_SIZE, bytearray(device))]))
    seeds = [case.encode() for case in cases]
    return [data for data in seeds if len(data) <= MAX_BYTES]


def mutate_image(data: bytes, rng: Random) -> bytes:
    """Another file."""
    return mutate_sparse(data, rng, MAX_BYTES)


TARGET = Target(
    name="image",
    about="memory images and ELF cores, opened, searched and read",
    seeds=image_seeds,
    mutate=mutate_image,
    check=check_image,
    max_bytes=MAX_BYTES,
)
