"""The same run is the same, hypercall for hypercall: twice here, and in processes of other luck."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from machine.emulated import worlds
from machine.emulated.worlds import SECOND_NS, Said

from xenlive.machine.emulated.lens.snapshot import digest_of
from xenlive.machine.emulated.world import WORLD_ENDED, World

pytestmark = pytest.mark.peer

TESTS = Path(__file__).parents[2]
MAKERS = {"pair": worlds.pair_world, "small": worlds.small_world}


def trace_of(world: World) -> list[str]:
    """Runs a world to its end; a line for each hypercall and each interrupt or exception."""
    lines: list[str] = []
    clock = world.clock
    for guest in world.guests:

        def note(what: object, name: str = guest.name) -> None:
            lines.append(f"{clock.now_ns} {name} {what}")

        guest.vcpu.on_hypercall = note
        guest.vcpu.on_event = note
    assert world.run(until_ns=20 * SECOND_NS) == WORLD_ENDED
    return lines


def told(which: str) -> list[str]:
    """All that can be seen of a run, in four lines: trace, end, consoles, state."""
    said = Said()
    with MAKERS[which](said) as world:
        trace = trace_of(world)
        consoles = repr(sorted(said.text.items()))
        ends = f"{world.clock.now_ns} {[guest.vcpu.blocks for guest in world.guests]}"
        summed = [
            hashlib.sha256(text.encode()).hexdigest() for text in ("\n".join(trace), consoles)
        ]
        return [str(len(trace)), ends, *summed, digest_of(world)]


@pytest.mark.parametrize("which", sorted(MAKERS))
def test_twice(which: str) -> None:
    first = told(which)
    assert int(first[0]) > 5
    assert told(which) == first


def test_in_other_processes() -> None:
    """With other hashes of strings, other addresses, other sizes of the environment."""
    here = [line for which in sorted(MAKERS) for line in told(which)]
    code = "from machine.emulated import test_emu_determinism as t; t.main()"
    runs = []
    for seed in ("1", "4711"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "LUCK": "x" * int(seed)}
        environment["PYTHONPATH"] = str(TESTS)
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        runs.append(done.stdout.split("\n")[:-1])
    assert runs == [here, here]


def main() -> None:
    """What the other processes do."""
    for which in sorted(MAKERS):
        print("\n".join(told(which)))


def test_a_difference_is_seen() -> None:
    """One byte in one guest's memory, one nanosecond, one character typed."""
    digests = set()
    for change in range(4):
        with worlds.small_world(Said()) as world:
            if change == 1:
                world.guests[3].domain.space.write(0x300000, b"\x01")
            elif change == 2:
                world.clock.advance(1)
            elif change == 3:
                world.guests[1].console.type(b"x")
            digests.add(digest_of(world))
    assert len(digests) == 4
