"""The images that the commands on images are shown with, in golden output and in the guide.

`write_images` makes them in a folder, under the names that are used there:

    device before after         a module with a 9pfs device: of kernel B, and as B and C left it
    busy                        the same with requests and replies that wait in the rings
    mix small one stubdom empty modules of the C code, of 1 to 18 pages
    ram                         64 MiB with `device` in it, its grant table and a state stream
    defect                      what the posted code leaves that hands out page 0 twice
    broken                      a module with several problems
    state                       a Xenstore state stream by itself
"""

from __future__ import annotations

import os
from pathlib import Path

from dump.made import ADDRESS, REAL, device_with, grant_page, put, ram_with
from vectors import minios

from xenlive.memory.address import PAGE_SIZE
from xenlive.ninep.codec import encode
from xenlive.ninep.messages import RREAD, TREAD, TWALK, TWRITE

#: Set to write golden output and the guide anew, instead of comparing with them.
UPDATE = "XENLIVE_UPDATE_GOLDEN"

STREAM = (minios.FOLDER / "xs_state" / "c_daemon_4_17_7.bin").read_bytes()
MODULES = {
    "device": REAL,
    "before": REAL,
    "after": minios.module_image("p9-18-64", "boot2-prekexec"),
    "mix": minios.module_image("mix-18-64", "boot1-prekexec"),
    "small": minios.module_image("small-4-64", "boot1-boot"),
    "one": minios.module_image("rec-1-64", "boot1-prekexec"),
    "stubdom": minios.host_image("stubdom18"),
    "empty": minios.host_image("empty4"),
}


def write_images(folder: Path) -> None:
    """Makes all of them."""
    for name, data in MODULES.items():
        (folder / name).write_bytes(data)
    (folder / "state").write_bytes(STREAM)
    (folder / "busy").write_bytes(_busy())
    first = ADDRESS // PAGE_SIZE
    frames = {2047: first} | {2046 - page: first + 1 + page for page in range(16)}
    ram_with(folder / "ram", REAL, ADDRESS, (0x101000, grant_page(frames)), (0x2000000, STREAM))
    defect = bytearray(REAL)
    put(defect, 14 - PAGE_SIZE, b"\x01")  # record 1 was given page 0
    (folder / "defect").write_bytes(defect)
    broken = bytearray(MODULES["mix"])
    put(broken, 32 - PAGE_SIZE, (5000).to_bytes(2, "little"))
    put(broken, 14 - PAGE_SIZE, b"\x09")
    (folder / "broken").write_bytes(broken)


def _busy() -> bytearray:
    requests = [
        encode(TWALK, 3, fid=0, newfid=1, wname=[b"state"]),
        encode(TREAD, 4, fid=2, offset=65536, count=4096),
        encode(TWRITE, 5, fid=3, offset=0, data=bytes(range(256)) * 4),
    ]
    replies = encode(RREAD, 2, data=b"xenstored state " * 8)
    return device_with(b"".join(requests), replies + replies[:40], out_cons=4000, in_cons=77)


def updating() -> bool:
    """Whether golden output is to be written."""
    return bool(os.environ.get(UPDATE))
