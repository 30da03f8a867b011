"""Looking at a kexec module from a notebook, from drgn, or from a script of one's own.

    python examples/look_at_a_module.py MODULE_IMAGE

`MODULE_IMAGE` has the pages of a module, the administration page last. In a notebook:

    from xenlive.kexec import KexecModule
    module = KexecModule.from_bytes(open("module.bin", "rb").read())
    module.records()

In drgn, on a crashed or running guest kernel, with the address and size that the start info says:

    module = KexecModule.from_bytes(prog.read(address, size, physical=True), address)

**Invariants.** The image stays as it is: what is looked at is a copy, in which what a kernel left
that died is put in order.
"""

from __future__ import annotations

import sys
from pathlib import Path

from xenlive.errors import ImageError
from xenlive.kexec import KexecModule


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
        module = KexecModule.from_bytes(Path(arguments[0]).read_bytes())
    except (ImageError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(summary(module)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
