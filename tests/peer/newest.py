"""The C daemon of Xen's development tree, built from its source.

`python -m differential --xen-tree DIR` compares with it. Debian has no package of it. What its
build takes from elsewhere in the tree are a few headers; the libraries are Debian's, and
`shim.c` and `xenmanage.c` stand in for the hypervisor.

**Invariants.** The tree is not changed; all that is made is in the caller's folder.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from peer.c_daemon import CDaemon
from peer.tools import HERE

#: Header as the source names it: where it is in a Xen tree.
HEADERS = {
    "xen/io/xs_wire.h": "xen/include/public/io/xs_wire.h",
    "xen-tools/xenstore-common.h": "tools/include/xen-tools/xenstore-common.h",
    "xen-tools/common-macros.h": "tools/include/xen-tools/common-macros.h",
    "xen-barrier.h": "tools/include/xen-barrier.h",
    "xen-sd-notify.h": "tools/include/xen-sd-notify.h",
    "xenmanage.h": "tools/include/xenmanage.h",
    "xenstore_lib.h": "tools/include/xenstore_lib.h",
}
SOURCES = (
    *("core", "watch", "domain", "transaction", "control", "lu", "talloc", "utils", "hashtable"),
    *("posix", "lu_daemon"),
)
DEFINITIONS = {
    "_DEFAULT_SOURCE": "",
    "_XOPEN_SOURCE": "700",
    "__XEN_TOOLS__": "",
    "INCLUDE_ENDIAN_H": "<endian.h>",
    "DOMID_ANY": "(0x7FF5U)",  # younger than the headers of Xen 4.17
    "XENSTORED_KVA_DEV": '"/proc/xen/xsd_kva"',
    "XENSTORED_PORT_DEV": '"/proc/xen/xsd_port"',
    "XEN_LOG_DIR": '"/nowhere"',
    "XEN_RUN_DIR": '"/nowhere"',
    "XEN_RUN_STORED": '"/nowhere"',
    "XEN_LIB_DIR": '"/nowhere"',
}


def build_newest(tree: Path, folder: Path) -> Path:
    """Builds the daemon of the Xen tree `tree`; CalledProcessError with gcc's words."""
    target = folder / "xenstored-newest"
    if target.exists():
        return target
    include = folder / "include"
    for name, place in HEADERS.items():
        header = include / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.symlink_to((tree / place).resolve(strict=True))
    source = tree / "tools" / "xenstored"
    subprocess.run(
        [
            *("gcc", "-O1", "-w", "-std=gnu99", f"-I{include}", f"-I{source}"),
            *(f"-D{name}={value}" if value else f"-D{name}" for name, value in DEFINITIONS.items()),
            *(str(source / f"{name}.c") for name in SOURCES),
            *(str(HERE / "xenmanage.c"), "-lxenevtchn", "-lxengnttab", "-o", str(target)),
        ],
        check=True,
    )
    return target


class NewestDaemon(CDaemon):
    """Such a daemon; `program` is what `build_newest` gave."""

    def __init__(self, rundir: Path, program: Path, *, shim_folder: Path | None = None) -> None:
        super().__init__(rundir, shim_folder=shim_folder)
        self._program = program

    def _command(self) -> list[str]:
        return [str(self._program), "-N", "-F", str(self.rundir / "pid")]
