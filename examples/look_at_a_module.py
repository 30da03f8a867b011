"""Looking at a kexec module from a notebook, from drgn, or from a script of one's own.

    python examples/look_at_a_module.py MODULE_IMAGE

`MODULE_IMAGE` has the pages of a module, the administration page last. In a notebook:

    from look_at_a_module import attach, summary
    module = attach(open("module.bin", "rb").read())
    module.records()

In drgn, on a crashed or running guest kernel, with the address and size that the start info says:

    module = attach(prog.read(address, size, physical=True), address)

**Invariants.** The image stays as it is: attaching tidies up what a kernel left that died, and that
happens in a copy.
"""

from __future__ import annotations

import sys
from pathlib import Path

from xenlive.errors import ImageError
from xenlive.kexec import KexecModule
from xenlive.memory.address import PhysAddr
from xenlive.memory.guest import GuestMemory


def attach(data: bytes, address: int = 0) -> KexecModule:
    """The module that these bytes are, at the address where they lay. ImageError if not sound."""
    memory = GuestMemory([(address, bytearray(data))])
    return KexecModule.attach(memory, PhysAddr(address), len(data))


def summary(module: KexecModule) -> list[str]:
    """What is in it, a line for each record."""
    lines = [
        f"{module.n_pages + 1} pages at {module.address:#x}, {module.free_page_count()} free, "
        f"{module.free_record_bytes()} bytes for records"
    ]
    for record in module.records():
        pages = module.pages_of(record.index)
        data = module.read_record(record.index)
        lines.append(
            f"record {record.index}: type {record.type}, {len(pages)} pages, {data[:16].hex()}"
        )
    return lines


def main(arguments: list[str]) -> int:
    """Prints what is in the image that the command line names; exit 1 if it is no sound module."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        module = attach(Path(arguments[0]).read_bytes())
    except (ImageError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(summary(module)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
