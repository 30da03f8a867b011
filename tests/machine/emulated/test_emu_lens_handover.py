"""Handovers: entries known and unknown, what is said of them, poison, the next kernel from outside.

The kernels are the C kernels that do what their command lines say; chains of them with everything
looked at are in the tests of kexec, whose lab uses the same entries and the same poison.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from kernels.handover.script_kernel import script_kernel

from xenlive.cli.boot_files import split_word
from xenlive.dump.describe import describe_image
from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.lens.entries import Entries, Entry
from xenlive.machine.emulated.lens.handover import Handovers
from xenlive.machine.emulated.lens.handovertext import lines_of
from xenlive.machine.emulated.lens.outside import NextKernel, NextKernels
from xenlive.machine.emulated.lens.pages import (
    changed_between,
    moved_between,
    pages_of,
    runs_of,
    write_image,
)
from xenlive.machine.emulated.lens.poison import poison_all_but
from xenlive.machine.emulated.lens.report import describe as describe_guest
from xenlive.machine.emulated.stop import SHUTDOWN_CRASH, SHUTDOWN_REBOOT
from xenlive.machine.emulated.world import Guest, World
from xenlive.memory.address import PAGE_SIZE

pytestmark = pytest.mark.peer

MEMORY_BYTES = 16 << 20
MODULE_AT = MEMORY_BYTES - 18 * PAGE_SIZE


class Watched:
    """A guest under the lens, and what it wrote."""

    def __init__(self, world: World, kernel: bytes, script: str, modules: Sequence[Module]) -> None:
        self.world = world
        self.written = bytearray()
        self.guest: Guest = world.add_guest(memory_bytes=MEMORY_BYTES, sink=self.written.extend)
        self.guest.boot(kernel, script, modules)
        names = {script_kernel(64): "wide.elf", script_kernel(32): "narrow.elf"}
        self.entries = Entries(self.guest, names)

    def run(self) -> int:
        """The reason for which the guest ended."""
        self.world.run()
        assert self.guest.stop is not None
        assert self.guest.stop.kind == "shutdown", self.guest.stop
        return self.guest.stop.code

    @property
    def console(self) -> list[str]:
        return self.written.decode().splitlines()


Watch = Callable[..., Watched]


@pytest.fixture
def watch() -> Iterator[Watch]:
    with World() as world:

        def watched(kernel: bytes, script: str, *modules: Module) -> Watched:
            return Watched(world, kernel, script, modules)

        yield watched


MAKES = "make 18; add 7 aabb; alloc 0 3; fill 0 3 195"


# ---- entries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(64, 32), (32, 64), (64, 64), (32, 32)])
def test_each_kernel_is_known_at_its_entry(watch: Watch, first: int, second: int) -> None:
    one, other = script_kernel(first), script_kernel(second, 0x300000)
    seen = watch(one, "make 4; kexec 0", Module(other, "make 1"))
    assert seen.run() == 0
    assert [(e.n, e.known.elf, e.from_outside) for e in seen.entries.entries] == [
        (0, one, False),
        (1, other, False),
    ]
    left = seen.entries.entries[1].left
    assert left is not None
    assert left.when_ns < seen.entries.entries[1].when_ns
    assert [elf for _, elf in seen.guest.chain] == [one, other]


def test_a_kernel_that_nobody_told_of_is_found_in_memory(watch: Watch) -> None:
    other = script_kernel(32, 0x300000)
    seen = watch(script_kernel(64), "make 4; kexec 0", Module(other, "make 1"))
    # As if the guest had fetched the file itself.
    seen.guest.files.clear()
    seen.entries = Entries(seen.guest)
    assert seen.run() == 0
    first, second = seen.entries.entries
    assert second.known.name == "a kernel in memory"
    assert second.known.image is not None
    assert second.known.elf == other
    assert first.known.elf == script_kernel(64)


def test_a_kernel_that_is_known_by_its_note_alone(watch: Watch) -> None:
    """Its file is spoilt once it was loaded: an entry, but nobody knows what belongs to it."""
    other = script_kernel(64, 0x300000)
    seen = watch(script_kernel(64), "make 4; kexec 0", Module(other, "make 1"))
    seen.guest.files.clear()
    entries = Entries(seen.guest)
    handovers = Handovers(seen.guest, entries, poison=0xA5)
    space, search = seen.guest.domain.space, entries._search

    def spoil_and_search() -> None:
        memory = space.read(0, MEMORY_BYTES)
        at = memory.find(other[:64])
        while at >= 0:
            space.write(at, b"\0")
            at = memory.find(other[:64], at + 1)
        search()

    entries._search = spoil_and_search  # type: ignore[method-assign]
    assert seen.run() == 0
    assert [entry.known.name for entry in entries.entries] == [
        "kernel",
        "a kernel that is not known",
    ]
    (said,) = handovers.found
    assert said["poisoned_bytes"] == 0
    assert any("not poisoned" in problem for problem in said["problems"])
    assert lines_of(said)


def test_code_that_comes_by_an_entry_is_no_entry(watch: Watch) -> None:
    """Without paging, at the entry, but with no start info in ebx."""
    seen = watch(script_kernel(32), "ticks 1")
    seen.guest.vcpu.engine.set_reg("rbx", 0x1000)
    assert seen.run() == SHUTDOWN_CRASH
    assert seen.entries.entries == []


# ---- reports ------------------------------------------------------------------------------------


def handover_of(watch: Watch, script: str = f"{MAKES}; kexec 0") -> tuple[Watched, dict[str, Any]]:
    seen = watch(script_kernel(64), script, Module(script_kernel(32), "make 1; read 0 2"))
    handovers = Handovers(seen.guest, seen.entries)
    assert seen.run() == 0
    (said,) = handovers.found
    return seen, json.loads(json.dumps(said))


def test_what_is_handed_over_is_said(watch: Watch) -> None:
    _, said = handover_of(watch)
    assert (said["n"], said["from"], said["bits"]) == (1, "inside", 32)
    assert (said["last"], said["file"]) == ("wide.elf", "narrow.elf")
    assert said["cmdline"] == "make 1; read 0 2"
    assert said["problems"] == []
    (module,) = said["modules"]
    assert (module["address"], module["size_bytes"]) == (hex(MODULE_AT), 18 * PAGE_SIZE)
    assert module["changed_pages"] == []
    (record,) = module["kexec"]["records"]
    assert (record["type"], record["data"], record["pages"]) == (7, "aabb", [0, 1, 2])
    assert {run["what"] for run in said["changed"]} <= {"the kernel", "start info"}
    assert said["memory_map"][0] == {"address": "0x0", "size_bytes": MEMORY_BYTES, "type": 1}
    assert [(g["ref"], g["in_ram"], g["handed_over"]) for g in said["grants"]] == [
        (0, False, False),
        (1, False, False),
    ]
    assert [(p["port"], p["state"]) for p in said["ports"]] == [
        (1, "interdomain"),
        (2, "interdomain"),
    ]


def test_the_report_as_text(watch: Watch) -> None:
    _, said = handover_of(watch)
    text = lines_of(said)
    assert text[0].startswith("handover 1 at ")
    assert "wide.elf -> narrow.elf, 32 bit, entry 0x100000 (entry+0x0)" in text[0]
    (module,) = (line for line in text if line.startswith("  module 0"))
    assert module.endswith("kexec module, 17 pages, 14 free, 1 of 16 records; unchanged")
    (picture,) = (line for line in text if line.startswith("    |"))
    assert picture.startswith("    |....K")
    assert picture.endswith("0| 16 MiB")
    assert not any(line.startswith("  wrong") for line in text)


def test_a_page_that_changes_on_the_way_is_named(watch: Watch) -> None:
    seen = watch(script_kernel(64), f"{MAKES}; kexec 0", Module(script_kernel(64), "make 1"))
    handovers = Handovers(seen.guest, seen.entries)
    page = MODULE_AT + PAGE_SIZE
    # As a leaving kernel would that copies a byte too much.
    seen.entries.on_left.append(lambda _: seen.guest.domain.space.write(page, b"\0"))
    assert seen.run() == 0
    (said,) = handovers.found
    assert said["modules"][0]["changed_pages"] == [hex(page)]
    assert any(f"CHANGED on the way: {page:#x}" in line for line in lines_of(said))


def test_pointers_out_of_the_block_are_told(watch: Watch) -> None:
    """The kernel hands over by luck: its block points to where it was put together."""
    seen, said = handover_of(watch, "make 18; add 7 aabb; lucky; kexec 0")
    assert seen.console[-1] == "done"
    assert any("outside of its block" in problem for problem in said["problems"])


def test_a_kernel_without_frame_pointers_has_a_backtrace(watch: Watch) -> None:
    """By what lies on its stack; calls of the kernel before it still have that one's names."""
    seen = watch(script_kernel(64), "kexec 0", Module(script_kernel(64, 0x300000), "fault"))
    assert seen.run() == SHUTDOWN_CRASH
    said = describe_guest(seen.guest)
    names = [frame.name.partition("+")[0] for frame in said.backtrace]
    assert [name for name in names if name != "put"] == [
        *("hypercall_page", "shutdown", "panic", "trap_6", "long_mode")
    ]
    # The one who called the page is known, and no guess.
    guesses = [frame.is_guess for frame in said.backtrace]
    assert guesses == [False, False] + [True] * (len(names) - 2)
    chain = [since for since, _ in seen.guest.chain]
    old = [record for record in seen.guest.vcpu.recent if record.when_ns < chain[1]]
    assert old
    assert len(said.calls) == 10


# ---- pages --------------------------------------------------------------------------------------


def test_pages_that_change_and_move(watch: Watch) -> None:
    space = watch(script_kernel(64), "").guest.domain.space
    space.write(0x800000, b"one")
    space.write(0x900000, b"two")
    before = pages_of(space)
    space.write(0xA00000, b"one")
    space.write(0xA01000, b"new")
    space.write(0x900000, bytes(3))
    after = pages_of(space)
    changed = changed_between(before, after)
    assert changed == [0x900, 0xA00, 0xA01]
    assert moved_between(before, after, changed) == {0xA00: 0x800}
    assert runs_of(changed) == [(0x900, 1), (0xA00, 2)]


def test_looking_makes_no_pages(watch: Watch) -> None:
    space = watch(script_kernel(64), "").guest.domain.space
    used = sorted(pages_of(space))
    assert sorted(pages_of(space)) == used
    assert len(used) < 100


def test_an_image_is_what_inspect_reads(watch: Watch, tmp_path: Path) -> None:
    seen = watch(script_kernel(64), f"{MAKES}; kexec 0", Module(script_kernel(64), "make 1"))
    path = tmp_path / "image"

    def save(entry: Entry) -> None:
        if entry.n:
            write_image(seen.guest.domain, path)

    seen.entries.on_entry.append(save)
    assert seen.run() == 0
    said = describe_image(path)
    assert (said["address"], said["free_pages"], said["problems"]) == (MODULE_AT, 14, [])
    assert path.stat().st_size == MEMORY_BYTES
    assert path.stat().st_blocks * 512 < 2 << 20


# ---- poison -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("poison", "found"), [(None, 90), (0xA5, 0xA5), (0, 0)])
def test_a_kernel_that_lives_by_luck_does_not_with_poison(
    watch: Watch, poison: int | None, found: int
) -> None:
    """It counts on a byte that the kernel before left somewhere."""
    second = Module(script_kernel(64), "peek 8388608")
    seen = watch(script_kernel(64), "poke 8388608 90; kexec 0", second)
    Handovers(seen.guest, seen.entries, poison)
    assert seen.run() == 0
    assert seen.console[-2] == f"> {found} 0"


def test_a_start_info_that_works_by_luck_is_the_end_with_poison(watch: Watch) -> None:
    ends = []
    for poison in (None, 0xA5):
        scripts = ("make 18; add 7 aa; lucky; kexec 0", "make 1; read 0 1")
        seen = watch(script_kernel(64), scripts[0], Module(script_kernel(64), scripts[1]))
        Handovers(seen.guest, seen.entries, poison)
        ends.append(seen.run())
    assert ends == [0, SHUTDOWN_CRASH]


def test_poison_spares_what_is_not_ram(watch: Watch) -> None:
    domain = watch(script_kernel(64), "").guest.domain
    shared = domain.space.xen_frame(0)
    domain.space.place(0x500, shared, "xen")
    before = bytes(shared.view)
    special = domain.space.read(0xFEFF8000, 0x8000)
    filled = poison_all_but(domain, [(0x100010, 0x20), (0x7FF, 2), (0xFFFFF0, 0x100)], 0x5A)
    assert filled == MEMORY_BYTES - PAGE_SIZE - 0x20 - 2 - 0x10
    assert bytes(shared.view) == before
    assert domain.space.read(0xFEFF8000, 0x8000) == special
    assert domain.space.read(0x10000F, 0x22) != b"\x5a" * 0x22
    assert domain.space.read(0x100030, 4) == domain.space.read(0x801, 4) == b"\x5a" * 4


# ---- the next kernel from outside ---------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(64, 32), (32, 64)])
def test_the_next_kernel_finds_the_module(watch: Watch, first: int, second: int) -> None:
    seen = watch(script_kernel(first), f"{MAKES}; crc 0 3; shutdown {SHUTDOWN_REBOOT}")
    handovers = Handovers(seen.guest, seen.entries, poison=0xA5)
    script = "make 1; read 0 2; crc 0 3; add 8 01; shutdown 5"
    last = "make 1; find 0 8; ticks 2; crc 0 3"
    nexts = NextKernels(
        seen.guest,
        seen.entries,
        [
            NextKernel("second.elf", script_kernel(second), script),
            NextKernel("third.elf", script_kernel(first), last),
        ],
    )
    assert seen.run() == 0
    assert nexts.failure is None
    assert nexts.waiting == []
    assert [said["from"] for said in handovers.found] == ["outside", "outside"]
    assert [said["file"] for said in handovers.found] == ["second.elf", "third.elf"]
    assert all(said["problems"] == [] for said in handovers.found)
    assert all(said["modules"][0]["changed_pages"] == [] for said in handovers.found)
    told = [line for line in seen.console if line.startswith("module ")]
    assert told == [f"module {MODULE_AT:x} 12000 {how}" for how in ("made", "handed", "handed")]
    crcs = [line.split()[1] for line in seen.console if line.startswith("> ")]
    assert "aabb" in "\n".join(seen.console)
    assert seen.console[-1] == "done"
    assert crcs.count(crcs[4]) == 3  # the pages' CRC, in each of the three


def test_ports_and_grants_stay_and_the_timer_is_new(watch: Watch) -> None:
    seen = watch(script_kernel(64), f"ticks 1; shutdown {SHUTDOWN_REBOOT}")
    before = [port for port, _ in seen.guest.domain.events.in_use()]
    active = seen.guest.domain.grants.active()
    NextKernels(seen.guest, seen.entries, [NextKernel("b", script_kernel(32), "ticks 1")])
    assert seen.run() == 0
    ports = [port for port, _ in seen.guest.domain.events.in_use()]
    assert ports[:2] == before
    assert seen.guest.domain.grants.active().keys() == active.keys()


def test_queues_of_events_are_given_up(watch: Watch) -> None:
    """The next kernel has a timer, and hears of it by the bits in shared info."""
    seen = watch(script_kernel(64), f"shutdown {SHUTDOWN_REBOOT}")
    domain = seen.guest.domain
    domain.init_event_queues(0x900, 0, 0)
    assert domain.queues.is_on
    NextKernels(seen.guest, seen.entries, [NextKernel("b", script_kernel(64), "ticks 2")])
    assert seen.run() == 0
    assert not domain.queues.is_on
    assert any(line.startswith("ticks ") for line in seen.console)


def test_a_guest_that_powers_off_ends(watch: Watch) -> None:
    seen = watch(script_kernel(64), "")
    nexts = NextKernels(seen.guest, seen.entries, [NextKernel("b", script_kernel(64))])
    assert seen.run() == 0
    assert [kernel.name for kernel in nexts.waiting] == ["b"]


def test_a_next_kernel_that_would_go_over_the_module_is_not_entered(watch: Watch) -> None:
    seen = watch(script_kernel(64), f"{MAKES}; shutdown {SHUTDOWN_REBOOT}")
    over = script_kernel(64, MODULE_AT - 0x4000)
    nexts = NextKernels(seen.guest, seen.entries, [NextKernel("over.elf", over)])
    assert seen.run() == SHUTDOWN_REBOOT
    assert "over.elf: can't be entered: kernel-overlaps" in str(nexts.failure)


def test_memory_is_as_the_map_says_again(watch: Watch) -> None:
    seen = watch(script_kernel(64), f"shutdown {SHUTDOWN_REBOOT}")
    space = seen.guest.domain.space
    space.unhook(0x900)
    space.place(0x901, space.xen_frame(0), "xen")
    NextKernels(seen.guest, seen.entries, [NextKernel("b", script_kernel(64), "peek 9441280")])
    assert seen.run() == 0
    assert space.is_backed(0x900000, 0x2000)
    assert seen.console[-2] == "> 0 0"


def test_a_word_with_a_text(tmp_path: Path) -> None:
    assert split_word("a.elf=x=y") == (Path("a.elf"), "x=y")
    odd = tmp_path / "a=b"
    odd.touch()
    assert split_word(str(odd)) == (odd, "")
