"""An initrd with a busybox and a shell, as a cpio archive made here.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of Linux ("newc").
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
_FOLDER, _FILE, _LINK, _DEVICE = 0o40755, 0o100755, 0o120777, 0o20600

#: The shell's prompt; it is there when the guest waits for a command.
PROMPT = b"/ # "

_INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin
export PATH=/bin
exec setsid -c sh
"""
# What the kernel calls when it is asked to power off.
_POWEROFF = b"#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n"


def build_initrd(busybox: Path) -> bytes:
    """The archive: busybox, a shell as init, and `xs`, which talks to Xenstore by the kernel."""
    archive = _Archive()
    for folder in ("bin", "sbin", "dev", "proc", "sys"):
        archive.add(folder, _FOLDER)
    archive.add("dev/console", _DEVICE, device=(5, 1))
    archive.add("bin/busybox", _FILE, busybox.read_bytes())
    archive.add("bin/sh", _LINK, b"busybox")
    archive.add("bin/xs", _FILE, _build_xs())
    archive.add("sbin/poweroff", _FILE, _POWEROFF)
    archive.add("init", _FILE, _INIT)
    return archive.end()


def _build_xs() -> bytes:
    """The client for Xenstore, linked so that it needs no library."""

    command = ["gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", str(HERE / "xs.c")]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "xs"
        subprocess.run([*command, "-o", str(built)], check=True)
        return built.read_bytes()


class _Archive:
    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """One file, folder, link or device."""
        self._inode += 1
        named = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(named), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + named
        self._pad()
        self._data += data
        self._pad()

    def end(self) -> bytes:
        """The whole archive."""
        self.add("TRAILER!!!", 0)
        return bytes(self._data)

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)
