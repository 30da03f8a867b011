"""The module target: a hostile administration page through verify, attach and every operation.

Held against each other: `verify`, the plain rules of `soundness.py`, and what attach does; after a
successful attach, each operation and the plain reading of what it must leave.
"""

from __future__ import annotations

import zlib

from hostile.documented import codes_of
from hostile.modulecase import MAX_BYTES, ModuleCase, decode_case
from hostile.modulemutate import mutate_module
from hostile.moduleseeds import module_seeds
from hostile.operations import Player
from hostile.ram import ADMIN_ADDRESS, RAM_START, HostileRam
from hostile.soundness import entries, is_sound, read_state, settled_state
from hostile.target import Target, expect
from xenlive.errors import ImageError
from xenlive.kexec.module import KexecModule
from xenlive.kexec.suspect import suspect
from xenlive.kexec.verify import Problem, verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr

# What costs more than it tells is done for one input in so many.
REPEATED_EVERY = 16

_ram: list[HostileRam] = []


def check_module(data: bytes) -> str:
    """One input; the first problem's code, or `sound` and what the operations did."""
    case = decode_case(data)
    page = bytes(case.page)
    problems = verify(page, case.size_bytes)
    _check_problems(page, case.size_bytes, problems)
    if zlib.crc32(data) % REPEATED_EVERY == 0:
        again = verify(page, case.size_bytes)
        expect(again == problems, "the same page gives the same problems")
    _check_suspicions(case, page)
    sound = is_sound(page, case.size_bytes)
    expect(sound == (not problems), f"sound by the plain rules: {sound}, verify: {problems}")
    if len(page) < PAGE_SIZE:
        return f"short page, {problems[0].code}"
    return _check_attach(case, page, problems)


def _check_problems(page: bytes, size_bytes: int, problems: list[Problem]) -> None:
    for problem in problems:
        expect(problem.code in codes_of(verify), f"{problem.code!r} is documented")
        expect(0 <= problem.offset < PAGE_SIZE, f"{problem.code} has an offset in the page")
        message = problem.message
        expect(bool(message) and message.isprintable(), f"{problem.code} has one line of text")


def _check_suspicions(case: ModuleCase, page: bytes) -> None:
    found = suspect(page, case.size_bytes, case.page_contents)
    for problem in found:
        expect(problem.code in codes_of(suspect), f"{problem.code!r} is documented")
        expect(0 <= problem.offset < PAGE_SIZE, f"{problem.code} has an offset in the page")
        expect(problem.message.isprintable(), f"{problem.code} has one line of text")
    if zlib.crc32(page) % REPEATED_EVERY == 0:
        again = suspect(page, case.size_bytes, case.page_contents)
        expect(again == found, "the same page gives the same suspicions")
        suspect(page, case.size_bytes, lambda index: b"")


def _check_attach(case: ModuleCase, page: bytes, problems: list[Problem]) -> str:
    ram = _the_ram()
    ram.reset(page)
    address = PhysAddr(ADMIN_ADDRESS + PAGE_SIZE - case.size_bytes)
    if not problems and zlib.crc32(page) % REPEATED_EVERY == 0:
        _check_only_reading(ram, address, case.size_bytes, page)
    try:
        module = KexecModule.attach(ram.memory, address, case.size_bytes)
    except ImageError as error:
        expect(bool(problems), f"a sound module is attached to: {error}")
        there = address >= RAM_START and case.size_bytes > 0 and case.size_bytes % PAGE_SIZE == 0
        code = problems[0].code if there or case.size_bytes <= 0 else error.code
        expect(error.code == code, f"attach names the first problem, {code}: {error}")
        expect(ram.page() == page, "what is not sound is left alone")
        expect(ram.only_the_page_was_touched(), "only the administration page is read")
        return problems[0].code
    expect(not problems, f"what is not sound is not attached to: {problems}")
    settled = read_state(ram.page())
    expect(settled == settled_state(page, case.size_bytes), "attaching finishes what was begun")
    unused = [entry for entry in entries(ram.page()) if not entry[2]]
    expect(not any(offset or size for _, offset, _, size in unused), "no reservation is left")
    expect(module.size_bytes == case.size_bytes, "the module has the size that was given")
    player = Player(ram, module)
    news = [player.play(operation) for operation in case.operations]
    player.module.release()
    expect(ram.only_the_page_was_touched(), "operations touch the administration page alone")
    return "sound: " + ", ".join(sorted(set(news)))


def _check_only_reading(ram: HostileRam, address: PhysAddr, size_bytes: int, page: bytes) -> None:
    """In memory that can't be written the same is read, and a resize in flight looks finished."""
    module = KexecModule.attach(ram.readonly, address, size_bytes)
    wanted = settled_state(page, size_bytes)
    found = {r.index: (r.type, module.read_record(r.index)) for r in module.records()}
    expect(found == wanted.records, "the records are read without writing")
    expect(module.owners() == wanted.owners[::-1], "the owners are read without writing")
    expect(ram.page() == page, "reading leaves the page as it is")
    module.release()


def _the_ram() -> HostileRam:
    if not _ram:
        _ram.append(HostileRam())
    return _ram[0]


TARGET = Target(
    name="module",
    about="an administration page through verify, attach and every operation",
    seeds=module_seeds,
    mutate=mutate_module,
    check=check_module,
    max_bytes=MAX_BYTES,
)
