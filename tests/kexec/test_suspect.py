"""What a module's bytes give away that its numbers don't; and no false alarm on sound modules."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexec.killpoints import recorded
from vectors import minios

from xenlive.abi.kexec_module import PG2REC_OFFSET, RECORD_9PFS
from xenlive.abi.xen9pfs import REF0, RING_ORDER
from xenlive.errors import OutOfSpace
from xenlive.kexec import KexecModule
from xenlive.kexec import suspect as suspect_code
from xenlive.kexec.sealed import add_sealed, update_sealed
from xenlive.kexec.suspect import MAX_SUSPICIONS, suspect
from xenlive.kexec.verify import Problem, verify
from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.e820 import MemoryMap, MemoryRange
from xenlive.memory.guest import GuestMemory

DEVICE = minios.module_image("p9-18-64", "boot1-prekexec")
ENTRY = 32  # of record 0, in a module of 18 pages


def look(image: bytes | bytearray) -> list[Problem]:
    """The suspicions about a whole module's image."""
    pages = memoryview(bytes(image))

    def read_page(index: int) -> bytes:
        return bytes(pages[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])

    return suspect(image[-PAGE_SIZE:], len(image), read_page)


def found(image: bytes | bytearray) -> list[tuple[str, int]]:
    problems = look(image)
    assert all(problem.message and "\n" not in problem.message for problem in problems)
    return [(problem.code, problem.offset) for problem in problems]


def put(image: bytearray, at: int, data: bytes) -> None:
    """Stores into the administration page."""
    start = len(image) - PAGE_SIZE + at
    image[start : start + len(data)] = data


def module_of(
    n_module_pages: int, fill: Callable[[KexecModule], object] | None = None
) -> tuple[bytearray, KexecModule]:
    """A module at address 0, and the bytes behind it."""
    image = bytearray(n_module_pages * PAGE_SIZE)
    module = KexecModule.create(GuestMemory([(0, image)]), PhysAddr(0), n_module_pages)
    if fill is not None:
        fill(module)
    return image, module


def set_interface(image: bytearray, page: int, order: int, first_ref: int) -> None:
    words = memoryview(image)[page * PAGE_SIZE : (page + 1) * PAGE_SIZE].cast("I")
    words[RING_ORDER] = order
    for place in range(1 << order):
        words[REF0 + place] = first_ref + place


def nine(ring_ref: int, evtchn: int) -> bytes:
    return struct.pack("<4I", ring_ref, evtchn, 0, 0)


IMAGES = [entry["file"] for entry in minios.entries("module")]


@pytest.mark.parametrize("name", IMAGES)
def test_no_false_alarm_on_what_a_real_kernel_wrote(name: str) -> None:
    assert found(minios.files()[name]) == []


@pytest.mark.parametrize("name", ["stubdom18", "empty4"])
def test_no_false_alarm_on_images_of_the_posted_functions(name: str) -> None:
    assert found(minios.host_image(name)) == []


# Pages with two users.


@pytest.mark.parametrize(("owner", "whose"), [(1, "record 1"), (255, "nobody")])
@pytest.mark.parametrize("content", ["kept", "overwritten"])
def test_the_interface_page_is_no_longer_the_devices(owner: int, whose: str, content: str) -> None:
    image = bytearray(DEVICE)
    put(image, PG2REC_OFFSET, bytes([owner]))
    where = "page 0"
    if content == "overwritten":
        image[:PAGE_SIZE] = bytes(range(1, 257 - 1)).ljust(256, b"\xff") * 16
        where = "page, once page 0"
    assert verify(image[-PAGE_SIZE:], len(image)) == []
    assert found(image) == [("page-two-users", PG2REC_OFFSET)]
    assert look(image)[0].message == f"the interface {where} of record 0 belongs to {whose}"


@pytest.mark.parametrize("taken", [1, 5, 16])
def test_a_ring_page_is_no_longer_the_devices(taken: int) -> None:
    image = bytearray(DEVICE)
    put(image, PG2REC_OFFSET + taken, b"\x01")
    assert found(image) == [("page-two-users", PG2REC_OFFSET + taken)]
    assert look(image)[0].message == f"the ring page {taken} of record 0 belongs to record 1"


def test_a_run_of_three_over_the_first_of_ring_pages_that_lie_apart() -> None:
    """Pages 1 and 2 were free, page 3 was the ring's: the last page of a run goes unchecked."""
    image, module = module_of(24, lambda m: (m.add_record(1, nine(9, 4)), m.add_record(7, b"")))
    set_interface(image, 0, 4, 100)
    put(image, PG2REC_OFFSET, bytes([0, 1, 1, 1] + [0] * 15 + [255] * 4))
    assert module.pages_of(0) == [0, *range(4, 19)]
    assert found(image) == [("page-two-users", PG2REC_OFFSET + 3)]


def test_several_ring_pages_that_nobody_can_name() -> None:
    image, _ = module_of(40, lambda m: m.add_record(1, nine(9, 4)))
    set_interface(image, 0, 4, 100)
    put(image, PG2REC_OFFSET, bytes([0, *[255, 0] * 9]))
    assert found(image) == [("page-two-users", 54)]
    assert look(image)[0].message == "7 of 16 ring pages of record 0 are not its own"


def test_two_devices_whose_interface_is_page_0() -> None:
    """A second device gets the first one's interface page, and writes its own."""
    image, _ = module_of(
        40, lambda m: (m.add_record(1, nine(2047, 4)), m.add_record(1, nine(2030, 5)))
    )
    put(image, PG2REC_OFFSET, bytes([1] + [0] * 16 + [1] * 16))
    set_interface(image, 0, 4, 2014)
    assert found(image) == [("page-two-users", PG2REC_OFFSET)]
    assert "record 0 belongs to record 1" in look(image)[0].message


def test_two_whole_devices_are_fine() -> None:
    image, module = module_of(
        40, lambda m: (m.add_record(1, nine(2047, 4)), m.add_record(1, nine(2030, 5)))
    )
    for record, first_ref in ((0, 2031), (1, 2014)):
        assert module.alloc_pages(record, 17) == record * 17
        set_interface(image, record * 17, 4, first_ref)
    assert found(image) == []


def test_a_device_that_moved_up_in_a_grown_module_is_fine() -> None:
    image = bytearray(22 * PAGE_SIZE)
    module = KexecModule.create(GuestMemory([(0, image)]), PhysAddr(0), 22)
    module.add_record(RECORD_9PFS, nine(2047, 4))
    put(image, PG2REC_OFFSET, bytes([255] * 4 + [0] * 17))
    image[4 * PAGE_SIZE : 21 * PAGE_SIZE] = DEVICE[: 17 * PAGE_SIZE]
    assert found(image) == []


@pytest.mark.parametrize(
    "data",
    [nine(0, 0), nine(0, 4), nine(9, 0), nine(1 << 20, 4), nine(9, 1 << 17), bytes(range(16))],
    ids=["not connected", "no grant", "no port", "wild grant", "wild port", "a pattern"],
)
def test_what_is_no_device_may_have_any_pages(data: bytes) -> None:
    image, module = module_of(24, lambda m: (m.add_record(7, b""), m.add_record(1, data)))
    module.alloc_pages(0, 1)
    module.alloc_pages(1, 16)
    assert found(image) == []


def test_pages_that_are_not_known_raise_no_suspicion() -> None:
    image = bytearray(DEVICE)
    put(image, PG2REC_OFFSET, b"\x01")
    assert suspect(image[-PAGE_SIZE:], len(image), lambda index: b"") == []
    partly = suspect(image[-PAGE_SIZE:], len(image), lambda index: bytes(PAGE_SIZE * (index < 9)))
    assert partly == []


@pytest.mark.parametrize(
    ("second", "codes"),
    [
        (nine(9, 5), [("same-device-twice", 58)]),
        (nine(10, 4), [("same-device-twice", 58)]),
        (nine(9, 4), [("same-device-twice", 58)]),
        (nine(10, 5), []),
        (nine(0, 0), []),
    ],
)
def test_one_device_in_two_records(second: bytes, codes: list[tuple[str, int]]) -> None:
    image, module = module_of(40, lambda m: (m.add_record(1, nine(9, 4)), m.add_record(1, second)))
    assert module.recs_off == 54
    assert found(image) == codes


# Bytes outside of records.


def with_bytes(*stores: tuple[int, bytes]) -> bytearray:
    """Two records, 20 bytes at 96 and 30 at 116, and further bytes that nobody owns up to."""
    image, _ = module_of(
        18, lambda m: (m.add_record(7, bytes(range(1, 21))), m.add_record(8, bytes(range(40, 70))))
    )
    for at, data in stores:
        put(image, at, data)
    return image


FIRST, SECOND = bytes(range(1, 21)), bytes(range(40, 70))
# Record 0 says 20 bytes, and its size was 276: the rest follows, with record 1 inside.
REST = bytes(value | 1 for value in range(226))


@pytest.mark.parametrize(
    ("stores", "offset"),
    [
        ([(146, REST)], 146),
        ([(150, REST[4:])], 150),
        ([(146, b"\x99")], 146),
        ([(4095, b"\x99")], 4095),
        ([(146, FIRST[:10] + b"\x99")], 146),
        ([(146, FIRST[5:13] + FIRST[3:4])], 146),
        ([(146, FIRST[10:] + b"\x05")], 146),
    ],
    ids=["at once", "later", "one byte", "the last byte", "no copy", "no order", "too long"],
)
def test_bytes_that_belong_to_no_record(stores: list[tuple[int, bytes]], offset: int) -> None:
    image = with_bytes(*stores)
    assert verify(image[-PAGE_SIZE:], len(image)) == []
    assert found(image) == [("bytes-outside-records", offset)]
    message = look(image)[0].message.partition("; ")[0]
    one = sum(len(data) for _, data in stores) == 1
    assert message.endswith("1 byte belongs to no record" if one else " bytes belong to no record")


@pytest.mark.parametrize(
    "stores",
    [
        [(146, FIRST)],
        [(146, SECOND)],
        [(146, SECOND[:11])],
        [(146, SECOND[:3] + bytes(4) + SECOND[7:9])],
        [(200, FIRST[9:])],
        [(200, FIRST[:9])],
        [(40, struct.pack("<HBB", 146, 0, 200)), (146, REST[:200])],
        [(160, struct.pack("<HBBHBB", 96, 7, 20, 116, 8, 30))],
        [(160, struct.pack("<BBHB", 7, 20, 116, 8))],
    ],
    ids=[
        "whole",
        "next",
        "begun",
        "any of it",
        "being cleared",
        "from its end",
        "reserved",
        "the table",
        "from the middle of the table",
    ],
)
def test_what_a_kernel_leaves_that_dies_is_no_suspicion(stores: list[tuple[int, bytes]]) -> None:
    assert found(with_bytes(*stores)) == []


def test_gaps_between_records_are_looked_at() -> None:
    image = with_bytes((36, struct.pack("<HBB", 180, 8, 30)), (180, SECOND), (116, bytes(30)))
    assert found(image) == []
    put(image, 130, b"\x99\x99")
    assert found(image) == [("bytes-outside-records", 130)]
    assert look(image)[0].message == "2 bytes belong to no record"


# Seals.


@pytest.mark.parametrize(
    ("at", "codes"),
    [
        (None, []),
        ([8], [("seal-fell-back", ENTRY)]),  # the newest generation's checksum or payload
        ([24], []),  # the older one is damaged: nobody asks for it
        ([8, 24], [("seal-broken", ENTRY)]),
        ([4], [("seal-broken", ENTRY)]),  # the kind
        ([0], []),  # somebody else's record of the same type
    ],
)
def test_seals(at: list[int] | None, codes: list[tuple[str, int]]) -> None:
    image, module = module_of(18)
    add_sealed(module, 5, b"payload!")
    update_sealed(module, 0, b"PAYLOAD!")
    update_sealed(module, 0, b"payload.")
    for damaged in at or ():
        image[-PAGE_SIZE + 96 + damaged + 4 * (damaged >= 8)] ^= 0x40
    assert found(image) == codes


def test_a_seal_over_pages() -> None:
    image = bytearray(18 * PAGE_SIZE)
    memory = GuestMemory([(0, image)])
    module = KexecModule.create(memory, PhysAddr(0), 18)
    index = add_sealed(module, 5, b"", memory)
    module.alloc_pages(index, 3)
    image[PAGE_SIZE] = 7
    update_sealed(module, index, b"", memory)
    assert found(image) == []
    image[PAGE_SIZE] = 8
    assert found(image) == [("seal-broken", ENTRY)]
    assert suspect(image[-PAGE_SIZE:], len(image), lambda index: b"") == []


# A kernel that dies.


def busy_module() -> tuple[bytearray, KexecModule]:
    """A module of 24 pages with a device, a seal and gaps, at the upper end of 28 pages."""
    image = bytearray(28 * PAGE_SIZE)
    module = KexecModule.create(GuestMemory([(0, image)]), PhysAddr(4 * PAGE_SIZE), 24)
    for size in (50, 16, 255, 3, 90):
        module.add_record(RECORD_9PFS if size == 16 else 7, nine(2047, 4)[:size].ljust(size, b"z"))
    add_sealed(module, 3, b"0123456789")
    module.alloc_pages(0, 3)
    module.alloc_pages(1, 17)
    module.free_pages(0, 3)
    image[7 * PAGE_SIZE : 24 * PAGE_SIZE] = DEVICE[: 17 * PAGE_SIZE]
    module.delete_record(0)
    module.delete_record(3)
    return image, module


RAM = MemoryMap([MemoryRange(0, 28 * PAGE_SIZE, 1)])
CHANGES: dict[str, Callable[[KexecModule], object]] = {
    "add": lambda m: m.add_record(9, b"new data"),
    "delete": lambda m: m.delete_record(4),
    "delete the device": lambda m: m.delete_record(1, free_pages=True),
    "compact": lambda m: m.compact(),
    "extend": lambda m: m.extend_table(40),
    "grow": lambda m: m.grow(3, RAM),
    "shrink": lambda m: m.shrink(2),
    "seal": lambda m: update_sealed(m, 5, b"9876543210"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_kernel_that_dies_raises_no_suspicion(name: str) -> None:
    """Seen as it was left, and in order; pages on their way to being free are the exception."""
    image, module = busy_module()
    with recorded(module) as stores:
        CHANGES[name](module)
    assert len(stores) > 0
    for page in stores.pages(every=2):
        size = (int.from_bytes(page[8:10], "little") + 1) * PAGE_SIZE
        start = len(image) - size

        def read_page(index: int, start: int = start) -> bytes:
            return bytes(image[start + index * PAGE_SIZE : start + (index + 1) * PAGE_SIZE])

        assert verify(page, size) == []
        suspicions = {problem.code for problem in suspect(page, size, read_page)}
        assert suspicions <= ({"page-two-users"} if name == "delete the device" else set())


def chain_of(random: Random) -> tuple[bytearray, KexecModule]:
    """A module at the end of 40 pages, after some changes at random."""
    n = random.choice((2, 6, 18))
    image = bytearray(40 * PAGE_SIZE)
    memory = GuestMemory([(0, image)])
    module = KexecModule.create(memory, PhysAddr((40 - n) * PAGE_SIZE), n)
    sizes = (0, 1, 3, 16, 100, 255)
    for _ in range(random.randrange(3, 25)):
        try:
            for change in (
                lambda: module.add_record(9, random.randbytes(random.choice(sizes))),
                lambda: module.add_record(9, random.randbytes(random.choice(sizes))),
                lambda: add_sealed(module, 3, random.randbytes(random.randrange(20))),
                lambda: module.delete_record(random.choice(module.records()).index),
                lambda: module.extend_table(min(255, module.n_records + random.choice((1, 7)))),
            ):
                if random.random() < 0.4 and (module.records() or random.random() < 0.5):
                    change()
        except (OutOfSpace, IndexError):
            pass
    return image, module


@pytest.mark.parametrize("seed", range(40))
def test_no_suspicion_after_a_death_among_changes_at_random(seed: int) -> None:
    random = Random(seed)
    image, module = chain_of(random)
    changes: list[Callable[[], object]] = [
        module.compact,
        lambda: module.extend_table(min(255, module.n_records + random.choice((1, 9)))),
        lambda: module.grow(random.choice((1, 3)), MemoryMap([MemoryRange(0, len(image), 1)])),
        lambda: module.delete_record(module.records()[0].index),
    ]
    random.shuffle(changes)
    for change in changes:
        if not module.records():
            break
        with recorded(module) as stores:
            try:
                change()
            except OutOfSpace:
                continue
        for page in stores.pages(some=20):
            size = (int.from_bytes(page[8:10], "little") + 1) * PAGE_SIZE
            assert verify(page, size) == []
            assert suspect(page, size, lambda index: bytes(PAGE_SIZE)) == []
        for page in stores.torn(random, 4):
            assert verify(page, (int.from_bytes(page[8:10], "little") + 1) * PAGE_SIZE) == []


def counting(start: int, size: int) -> bytes:
    """A pattern that many records share: each byte is three more than the one before."""
    return bytes((start + 3 * place) & 0xFF for place in range(size))


@pytest.mark.parametrize("start", range(0, 256, 17))
def test_what_a_long_record_left_is_no_copy_of_its_neighbour(start: int) -> None:
    """Record 1 has 300 bytes and says 44; records 0 and 2 hold stretches of the same pattern."""
    image, module = module_of(2, lambda m: m.add_record(200, counting(5, 255)))
    module.add_record(9, counting(start, 44))
    end = module.record(1).end
    put(image, module.record(1).offset, counting(start, 300))
    module.add_record(6, counting(start + 100, 60))
    problems = look(image)
    assert [problem.code for problem in problems] == ["bytes-outside-records"]
    assert problems[0].offset >= end + 60
    assert "record 1 may have 300 bytes, not 44, and record 2 lies inside it" in problems[0].message


# Bounds.


def crowd(n: int, junk: int) -> bytearray:
    """`n` records of `junk` bytes that nobody owns behind each; the last ones lie inside a long."""
    image = bytearray(PAGE_SIZE)
    end = 14 + 4 * n
    struct.pack_into("<8sHHH", image, 0, b"KexecMem", 0, n, 14)
    for index in range(n):
        struct.pack_into("<HBB", image, 14 + 4 * index, end, 7, 1)
        image[end : end + 1 + junk] = b"\x99" + bytes([0xEE, 0x77] * junk)[:junk]
        end += 1 + junk
    return image


def test_the_list_is_short_and_so_is_each_line() -> None:
    for n, junk in ((255, 5), (255, 11), (200, 15), (120, 28), (17, 200)):
        problems = look(crowd(n, junk))
        assert len(problems) == min(n, MAX_SUSPICIONS + 1)
        assert max(len(problem.message) for problem in problems) < 300
        if n > MAX_SUSPICIONS + 1:
            last = problems[-1].message
            assert last.endswith(f"and {n - MAX_SUSPICIONS - 1} more suspicions")


def test_a_record_with_many_inside_names_a_few() -> None:
    """Record 0 says 1 byte and was 257: 80 others lie in what is left of it."""
    image, module = module_of(2, lambda m: m.extend_table(100))
    module.add_record(7, b"a")
    start = module.record(0).offset
    for place in range(80):
        put(image, module.recs_off + 4 + 4 * place, struct.pack("<HBB", start + 2 + place, 7, 1))
        put(image, start + 2 + place, b"q")
    put(image, start + 82, bytes([0xC3, 0x5A] * 88)[:175])
    inside = ", ".join(f"and record {index} lies inside it" for index in range(1, 5))
    assert [problem.message for problem in look(image)] == [
        f"175 bytes belong to no record; record 0 may have 257 bytes, not 1, {inside}, and 76 more"
    ]


def test_a_page_made_to_be_slow_is_looked_at_in_bounded_time() -> None:
    """Counted in places tried, not in seconds: what nearly matches all over the table."""
    copies = suspect_code._Copies(set(), bytes([1]) * 2040)
    for _ in range(255):
        assert not copies.has(b"\1\1\1\0\3")
    assert copies._tries == 0


# Anything at all.


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_bytes_give_a_list(data: st.DataObject) -> None:
    image = bytearray(data.draw(st.sampled_from([DEVICE, minios.host_image("stubdom18")])))
    for _ in range(data.draw(st.integers(0, 12))):
        at = data.draw(st.one_of(st.integers(8, 140), st.integers(0, PAGE_SIZE - 8)))
        put(image, at, data.draw(st.binary(min_size=1, max_size=8)))
    size = data.draw(st.sampled_from([len(image), 0, -1, PAGE_SIZE, len(image) + 1]))
    for problem in suspect(image[-PAGE_SIZE:], size, lambda index: bytes(image[:PAGE_SIZE])):
        assert 0 <= problem.offset < PAGE_SIZE


@pytest.mark.parametrize("page", [b"", b"KexecMem", bytes(PAGE_SIZE), b"KexecMem" + b"\xff" * 4088])
def test_what_is_no_module_has_no_suspicions(page: bytes) -> None:
    assert suspect(page, PAGE_SIZE, lambda index: b"") == []
