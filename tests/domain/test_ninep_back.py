"""The 9pfs backend against front ends that are slow, partial, greedy or hostile."""

from __future__ import annotations

import struct

import pytest
from domain.ninepworld import World
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.abi import xen9pfs as abi
from xenlive.domain.grants import GrantMapper
from xenlive.domain.ninepback import BUDGET, NinePBack
from xenlive.errors import HypercallError, PeerError
from xenlive.memory.address import PAGE_SIZE, Frame
from xenlive.memory.guest import GuestMemory
from xenlive.ninep import messages as m
from xenlive.ninep.codec import decode, encode
from xenlive.ninep.tree import MemoryTree
from xenlive.ring.area import RingArea
from xenlive.ring.stream import Consumer, Producer

ATTACH = encode(m.TATTACH, 1, fid=0, afid=m.NOFID, uname=b"", aname=b"", n_uname=0)
GTF_IN_USE = 24


class Raw:
    """A front end by hand: pages 1 (interface) and 2 and 3 (a ring of order 1), all granted."""

    def __init__(self, order: int = 1) -> None:
        self.ram = bytearray((3 + (1 << order)) * PAGE_SIZE)
        self.frames = bytearray(PAGE_SIZE)
        self.interface = memoryview(self.ram)[PAGE_SIZE : 2 * PAGE_SIZE].cast("I")
        for place in range(1 + (1 << order)):
            struct.pack_into("<HHI", self.frames, (100 + place) * 8, 1, 0, 1 + place)
        self.interface[abi.RING_ORDER] = order
        for place in range(1 << order):
            self.interface[abi.REF0 + place] = 101 + place
        half = PAGE_SIZE << order >> 1
        rings = memoryview(self.ram)[2 * PAGE_SIZE :]
        inward, outward = RingArea([rings[:half]]), RingArea([rings[half : 2 * half]])
        self.requests = Producer(outward, self.interface, abi.OUT_PROD, abi.OUT_CONS)
        self.replies = Consumer(inward, self.interface, abi.IN_PROD, abi.IN_CONS)
        self.tree = MemoryTree()
        self.notified = 0

    def connect(self, with_notify: bool = False) -> NinePBack:
        mapper = GrantMapper(memoryview(self.frames), GuestMemory([(0, self.ram)]), 0)
        return NinePBack(
            mapper, 100, 3, self.tree, notify=self.count_notify if with_notify else None
        )

    def count_notify(self) -> None:
        self.notified += 1

    def in_use(self) -> int:
        return sum(
            bool(flags & GTF_IN_USE) for flags, _, _ in struct.iter_unpack("<HHI", self.frames)
        )

    def take(self) -> list[int]:
        """Types of the replies that are there."""
        data = self.replies.read()
        found = []
        while data:
            size = int.from_bytes(data[:4], "little")
            found.append(decode(data[:size]).type)
            data = data[size:]
        return found


def test_a_request_in_pieces() -> None:
    raw = Raw()
    back = raw.connect()
    for byte in ATTACH[:-1]:
        raw.requests.write(bytes([byte]))
        assert back.kick()  # the room is worth a notification
        assert raw.take() == []
    raw.requests.write(ATTACH[-1:])
    assert back.kick()
    assert raw.take() == [m.RATTACH]
    assert not back.kick()
    assert (back.bytes_read, back.bytes_written) == (len(ATTACH), 20)


def test_a_notifier_is_called_and_then_not_asked_for() -> None:
    raw = Raw()
    back = raw.connect(with_notify=True)
    raw.requests.write(ATTACH)
    assert not back.kick()
    # once for the room, before the request was handled, once for the reply
    assert raw.notified == 2
    assert raw.take() == [m.RATTACH]
    assert not back.kick()
    assert raw.notified == 2


def test_a_front_end_that_takes_no_replies_holds_up_itself() -> None:
    raw = Raw()
    back = raw.connect()
    file = raw.tree.create((b"f",), 0o600, m.OWRITE)
    file.write(0, b"z" * 5000)
    raw.requests.write(ATTACH)
    raw.requests.write(encode(m.TWALK, 1, fid=0, newfid=1, wname=[b"f"]))
    raw.requests.write(encode(m.TOPEN, 1, fid=1, mode=m.OREAD))
    back.kick()
    assert raw.take() == [m.RATTACH, m.RWALK, m.ROPEN]
    read = encode(m.TREAD, 1, fid=1, offset=0, count=3000)
    written = 0
    while raw.requests.free() >= len(read):
        raw.requests.write(read)
        written += 1
    back.kick()
    assert raw.replies.available() == 4096  # one reply and a part of the next
    assert not back.kick()
    taken = b""
    for _ in range(2 * written):
        taken += raw.replies.read(1000)
        back.kick()
        assert raw.replies.available() <= 4096
        taken += raw.replies.read()
    while data := raw.replies.read():
        taken += data
        back.kick()
    assert len(taken) == written * (3000 + m.RREAD_BYTES)
    assert raw.requests.queued() == 0


def test_others_have_their_turn() -> None:
    raw = Raw(order=4)
    back = raw.connect()
    stat = encode(m.TCLUNK, 1, fid=7)
    for _ in range(BUDGET + 10):
        raw.requests.write(stat)
    assert back.kick()
    assert back.wants_kick
    assert len(raw.take()) == BUDGET
    assert back.kick()
    assert not back.wants_kick
    assert len(raw.take()) == 10


@pytest.mark.parametrize("order", [0, 10, 31, 2**32 - 1])
def test_a_wild_ring_order(order: int) -> None:
    raw = Raw()
    raw.interface[abi.RING_ORDER] = order
    with pytest.raises(PeerError) as caught:
        raw.connect()
    assert (caught.value.offset, caught.value.value) == (128, order)
    assert raw.in_use() == 0


@pytest.mark.parametrize("ref", [0, 99, 512, 2**32 - 1])
def test_a_ring_page_that_is_not_granted(ref: int) -> None:
    raw = Raw()
    raw.interface[abi.REF0 + 1] = ref
    with pytest.raises(HypercallError, match="GNTST_bad_gntref"):
        raw.connect()
    assert raw.in_use() == 0


def test_an_interface_page_that_is_not_granted() -> None:
    raw = Raw()
    struct.pack_into("<H", raw.frames, 100 * 8, 5)
    with pytest.raises(HypercallError, match="GNTST_permission_denied"):
        raw.connect()
    assert raw.in_use() == 0


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (abi.OUT_PROD, 4097),
        (abi.OUT_PROD, 2**32 - 1),
        (abi.IN_CONS, 1),
        (abi.IN_CONS, 2**31),
        (abi.OUT_CONS, 5),
        (abi.IN_PROD, 5),
    ],
)
def test_a_wild_index_ends_this_device_only(word: int, value: int) -> None:
    raw, other = Raw(), Raw()
    back, other_back = raw.connect(), other.connect()
    raw.requests.write(ATTACH)
    raw.interface[word] = value
    with pytest.raises(PeerError):
        back.kick()
    assert back.is_dead
    assert raw.in_use() == 0
    assert not back.kick()
    back.close()
    other.requests.write(ATTACH)
    assert other_back.kick()
    assert other.take() == [m.RATTACH]


def test_a_wild_message_length_ends_the_device() -> None:
    raw = Raw()
    back = raw.connect()
    raw.requests.write(struct.pack("<IBH", 4097, m.TATTACH, 1))
    with pytest.raises(PeerError):
        back.kick()
    assert back.is_dead


def test_the_order_is_read_once() -> None:
    raw = Raw()
    back = raw.connect()
    raw.interface[abi.RING_ORDER] = 9
    raw.interface[abi.REF0] = 0
    raw.requests.write(ATTACH)
    back.kick()
    assert raw.take() == [m.RATTACH]
    back.close()
    assert raw.in_use() == 0


def test_closing_leaves_other_devices_of_the_domain_mapped() -> None:
    raw = Raw()
    mapper = GrantMapper(memoryview(raw.frames), GuestMemory([(0, raw.ram)]), 0)
    struct.pack_into("<HHI", raw.frames, 200 * 8, 1, 0, 0)
    mapper.map(200)
    NinePBack(mapper, 100, 3, raw.tree).close()
    assert raw.in_use() == 1


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_whatever_a_domain_does(data: st.DataObject) -> None:
    """Wild indices, wild bytes: PeerError or service, and no byte outside of the granted pages."""
    raw = Raw()
    raw.tree.create((b"f",), 0o600, m.OWRITE).write(0, b"z" * 9000)
    outside = bytes(raw.ram[:PAGE_SIZE]), bytes(raw.ram[4 * PAGE_SIZE :])
    back = raw.connect()
    raw.requests.write(ATTACH)
    for _ in range(data.draw(st.integers(1, 8))):
        what = data.draw(st.sampled_from(["index", "bytes", "requests", "take"]))
        if what == "index":
            word = data.draw(
                st.sampled_from([abi.IN_CONS, abi.OUT_PROD, abi.OUT_CONS, abi.IN_PROD])
            )
            change = data.draw(st.one_of(st.integers(-40, 40), st.integers(0, 2**32 - 1)))
            raw.interface[word] = (raw.interface[word] + change) % 2**32
        elif what == "bytes":
            at = data.draw(st.integers(PAGE_SIZE, 4 * PAGE_SIZE - 64))
            raw.ram[at : at + 16] = data.draw(st.binary(min_size=16, max_size=16))
        else:
            fid = data.draw(st.integers(0, 2))
            try:
                if what == "take":
                    raw.replies.read(data.draw(st.integers(1, 5000)))
                raw.requests.write(encode(m.TWALK, 1, fid=0, newfid=fid, wname=[b"f"]))
                raw.requests.write(encode(m.TOPEN, 1, fid=fid, mode=2))
                raw.requests.write(encode(m.TREAD, 1, fid=fid, offset=0, count=4000))
            except PeerError:
                pass
        try:
            back.kick()
        except PeerError:
            assert back.is_dead
            assert raw.in_use() == 0
            break
    assert (bytes(raw.ram[:PAGE_SIZE]), bytes(raw.ram[4 * PAGE_SIZE :])) == outside


def test_a_backend_for_pages_that_are_not_neighbours() -> None:
    world = World()
    pages = [3, 9, 1, 12, 7]
    base = world.address >> 12
    grants = world.grants()
    refs = [grants.grant_access(0, Frame(base + page)) for page in pages]
    interface = world.memory.page(Frame(base + pages[0])).cast("I")
    interface[abi.RING_ORDER] = 2
    for place, ref in enumerate(refs[1:]):
        interface[abi.REF0 + place] = ref
    world.connect(refs[0], world.events.alloc_unbound(0))
    views = [world.memory.page(Frame(base + page)) for page in pages[1:]]
    requests = Producer(RingArea(views[2:]), interface, abi.OUT_PROD, abi.OUT_CONS)
    replies = Consumer(RingArea(views[:2]), interface, abi.IN_PROD, abi.IN_CONS)
    assert world.back is not None
    for _ in range(600):  # round both halves a few times
        requests.write(ATTACH)
        world.back.kick()
        assert len(replies.read()) > 0
    assert replies.cons > 2 * 8192
