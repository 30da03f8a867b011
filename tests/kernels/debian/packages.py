"""Kernels that Debian packages: GRUB's PVH image, and the cloud kernel with a busybox beside it.

The kernel's package is not installed, as that would run the hooks of a boot loader: it is unpacked
into a folder (`.ci/run` does that), by default `~/.cache/xenlive/debian`; `XENLIVE_DEBIAN` names
another one. What is missing skips a test, unless XENLIVE_REQUIRE_PEERS is set.
"""

from __future__ import annotations

import ctypes
import lzma
import os
import struct
import zlib
from functools import cache
from pathlib import Path

import pytest

GRUB = Path("/usr/lib/grub-xen/grub-i386-xen_pvh.bin")
BUSYBOX = Path("/bin/busybox")
_FOLDER = Path.home() / ".cache" / "xenlive" / "debian"

# Documentation/x86/boot.rst: where the compressed kernel is in the file that boot loaders get.
_SETUP_SECTORS, _PAYLOAD = 0x1F1, 0x248
# Where they begin, how large each is, and how many there are.
_PROGRAM_HEADERS = (("<Q", 0x20), ("<H", 0x36), ("<H", 0x38))
_PT_INTERP = b"\3\0\0\0"
_LZ4_LEGACY = 0x184C2102
_LZ4_BLOCK_BYTES = 8 << 20


def unpacked() -> Path:
    """The folder that packages were unpacked into."""
    return Path(os.environ.get("XENLIVE_DEBIAN", _FOLDER))


def linux_image() -> Path | None:
    """The newest cloud kernel that is there."""
    places = (unpacked() / "boot", Path("/boot"))
    found = [path for place in places for path in place.glob("vmlinuz-*-cloud-amd64")]
    return max(found, default=None)


def busybox() -> Path | None:
    """A busybox without shared libraries."""
    for path in (unpacked() / "bin" / "busybox", BUSYBOX):
        if path.exists() and not _needs_interpreter(path.read_bytes()):
            return path
    return None


def _needs_interpreter(elf: bytes) -> bool:
    """Whether one of its program headers is a PT_INTERP."""
    first, size, count = (struct.unpack_from(f, elf, at)[0] for f, at in _PROGRAM_HEADERS)
    headers = (elf[first + number * size :][:4] for number in range(count))
    return _PT_INTERP in headers


def require(path: Path | None, package: str) -> Path:
    """The path; skips the test if it is not there, or fails it where peers are demanded."""
    if path is not None and path.exists():
        return path
    if os.environ.get("XENLIVE_REQUIRE_PEERS"):
        pytest.fail(f"package {package} is not there (.ci/run has it)")
    pytest.skip(f"package {package} is not there")


@cache
def linux_elf() -> bytes:
    """The cloud kernel as the ELF file it is inside of its package's."""
    return extract(require(linux_image(), "linux-image-cloud-amd64").read_bytes())


def extract(image: bytes) -> bytes:
    """The ELF file inside of a bzImage. ValueError if it is packed in a way not known here."""
    offset, size = struct.unpack_from("<II", image, _PAYLOAD)
    at = (image[_SETUP_SECTORS] + 1) * 512 + offset
    payload = image[at : at + size]
    if payload[:2] == b"\x1f\x8b":
        return zlib.decompressobj(wbits=31).decompress(payload)
    if payload[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(payload)
    if struct.unpack_from("<I", payload) == (_LZ4_LEGACY,):
        return _lz4_legacy(payload)
    raise ValueError(f"a kernel packed in an unknown way: {payload[:6].hex()}")


def _lz4_legacy(payload: bytes) -> bytes:
    """Blocks, each behind its size; the size of all of it unpacked is the last word."""
    library = ctypes.CDLL("liblz4.so.1")  # apt itself needs it
    buffer = ctypes.create_string_buffer(_LZ4_BLOCK_BYTES)
    unpacked_bytes = struct.unpack_from("<I", payload, len(payload) - 4)[0]
    kernel, at = bytearray(), 4
    while len(kernel) < unpacked_bytes:
        size = struct.unpack_from("<I", payload, at)[0]
        block = payload[at + 4 : at + 4 + size]
        got = library.LZ4_decompress_safe(block, buffer, size, _LZ4_BLOCK_BYTES)
        if got <= 0:
            raise ValueError(f"a damaged block at {at:#x} of the packed kernel")
        kernel += buffer.raw[:got]
        at += 4 + size
    return bytes(kernel)
