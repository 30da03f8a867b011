"""The emulated machine as a library: boot a kernel, look, save, change something, go back, go on.

    python examples/try_a_kernel.py KERNEL [COMMAND LINE]

Runs the PVH kernel KERNEL to its first line on the console, shows what is where, and saves the
world. From that snapshot it goes on twice: once as it is, and once with the next hypercall that
the guest makes failing. Whatever the guest does then, the second time begins where the first did.

**Invariants.** Both runs start from the same state, byte for byte; the script says so itself.
"""

from __future__ import annotations

import sys
from pathlib import Path

from xenlive.errors import XenliveError
from xenlive.machine.emulated.lens import report
from xenlive.machine.emulated.lens.snapshot import digest_of, restore_world, save_world
from xenlive.machine.emulated.world import WORLD_IDLE, Guest, World

ENOMEM = 12
LIMIT_NS = 10_000_000_000


def show(guest: Guest) -> None:
    """Where the guest is, and what stands in its memory there."""
    described = report.describe(guest)
    where = described.backtrace[0]
    print(f"  {where.name or 'no name'} at {where.address:#x}, {guest.vcpu.blocks} blocks so far")
    if guest.loaded is not None:
        head = guest.domain.space.read(guest.loaded.start_info, 8)
        print(f"  start info at {guest.loaded.start_info:#x}: {head.hex(' ', 4)}")
    for call in described.calls[-3:]:
        print(f"  {call.strip()}")


def go_on(world: World, guest: Guest) -> None:
    """Runs the guest to its end, and says what that was."""
    if world.run(until_ns=world.clock.now_ns + LIMIT_NS) == WORLD_IDLE:
        world.give_up()
    print(f"  ended: {report.end_name(guest.stop)}, {world.clock.now_ns / 1e6:.3f} ms after boot")


def main(arguments: list[str]) -> int:
    """Tries the kernel that the command line names; exit 1 if it can't be booted."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    said = bytearray()
    with World() as world:
        try:
            guest = world.add_guest("tried", sink=said.extend)
            guest.boot(Path(arguments[0]).read_bytes(), " ".join(arguments[1:]))
        except (XenliveError, OSError) as error:
            print(error, file=sys.stderr)
            return 1
        world.run(until=lambda: b"\n" in said, until_ns=LIMIT_NS)
        print(f"It says: {said.decode(errors='replace').strip()}")
        show(guest)
        saved = save_world(world)

        print("As it is:")
        go_on(world, guest)

        restore_world(world, saved)
        print(f"From the same state ({digest_of(world) == saved.digest()}), and a hypercall fails:")
        guest.domain.refuse = Once(ENOMEM)
        go_on(world, guest)
    return 0


class Once:
    """Fails the first hypercall it is asked about, and no other."""

    def __init__(self, errno: int) -> None:
        self._errno = errno

    def __call__(self, number: int, args: tuple[int, ...]) -> int:
        errno, self._errno = self._errno, 0
        return errno


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
