"""Byte streams through a ring: any chunking gives the same bytes, a wild index gives PeerError."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.errors import PeerError
from xenlive.memory.address import PAGE_SIZE
from xenlive.ring.area import RingArea
from xenlive.ring.stream import Consumer, Producer

PROD, CONS = 1, 0
WRAP = 2**32


class Ring:
    """Both ends of one ring, whose indices start at `start`."""

    def __init__(self, start: int = 0, size: int = 1024, chunks: int = 1) -> None:
        self.data = [bytearray(size // chunks) for _ in range(chunks)]
        self.indices = memoryview(bytearray(8)).cast("I")
        self.indices[PROD] = self.indices[CONS] = start
        area = RingArea([memoryview(chunk) for chunk in self.data])
        self.producer = Producer(area, self.indices, PROD, CONS, start)
        self.consumer = Consumer(area, self.indices, PROD, CONS, start)

    def state(self) -> tuple[bytes, bytes, int, int]:
        data = b"".join(bytes(chunk) for chunk in self.data)
        return data, self.indices.tobytes(), self.producer.prod, self.consumer.cons


@pytest.mark.parametrize("start", [0, 1023, WRAP - 1, WRAP - 1024, 5])
def test_full_empty_and_round_the_end(start: int) -> None:
    ring = Ring(start)
    data = bytes(i % 256 for i in range(1500))
    assert ring.producer.write(data) == 1024
    assert (ring.producer.free(), ring.producer.write(b"x")) == (0, 0)
    assert ring.consumer.available() == 1024
    assert ring.consumer.read(100) == data[:100]
    assert ring.producer.write(data[1024:]) == 100
    assert ring.consumer.read() == data[100:1124]
    assert (ring.consumer.read(), ring.producer.queued()) == (b"", 0)
    assert ring.indices.tolist() == [(start + 1124) % WRAP] * 2


@settings(deadline=None, max_examples=60)
@given(
    start=st.one_of(st.integers(0, WRAP - 1), st.integers(WRAP - 20000, WRAP - 1)),
    chunks=st.sampled_from([1, 2, 4]),
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(0, 5 * PAGE_SIZE)), min_size=1, max_size=40
    ),
)
def test_any_chunking_gives_the_same_bytes(
    start: int, chunks: int, steps: list[tuple[bool, int]]
) -> None:
    ring = Ring(start, 4 * PAGE_SIZE, chunks)
    sent = received = b""
    pattern = bytes(i * 13 % 255 for i in range(6 * PAGE_SIZE))
    for writes, size in steps:
        if writes:
            data = pattern[len(sent) % 97 :][:size]
            count = ring.producer.write(data)
            assert count == min(len(data), 4 * PAGE_SIZE - (len(sent) - len(received)))
            sent += data[:count]
        else:
            received += ring.consumer.read(size)
        assert ring.producer.queued() == ring.consumer.available() == len(sent) - len(received)
    received += ring.consumer.read()
    assert received == sent


@settings(deadline=None, max_examples=100)
@given(cons=st.integers(0, WRAP - 1), start=st.integers(0, WRAP - 1))
def test_a_producer_takes_no_wild_consumer_index(cons: int, start: int) -> None:
    ring = Ring(start)
    ring.producer.write(b"a" * 10)
    ring.indices[CONS] = cons
    before = ring.state()
    queued = (start + 10 - cons) % WRAP
    if queued <= 1024:
        assert ring.producer.queued() == queued
        return
    with pytest.raises(PeerError) as caught:
        ring.producer.write(b"b" * 2000)
    assert (caught.value.offset, caught.value.value) == (CONS * 4, cons)
    assert ring.state() == before


@settings(deadline=None, max_examples=100)
@given(prod=st.integers(0, WRAP - 1), start=st.integers(0, WRAP - 1))
def test_a_consumer_takes_no_wild_producer_index(prod: int, start: int) -> None:
    ring = Ring(start)
    ring.indices[PROD] = prod
    before = ring.state()
    available = (prod - start) % WRAP
    if available <= 1024:
        assert len(ring.consumer.read()) == available
        return
    with pytest.raises(PeerError) as caught:
        ring.consumer.read()
    assert (caught.value.offset, caught.value.value) == (PROD * 4, prod)
    assert ring.state() == before


def test_an_own_index_that_was_changed() -> None:
    ring = Ring()
    ring.producer.write(b"abc")
    ring.indices[PROD] = 4
    with pytest.raises(PeerError, match="was changed") as caught:
        ring.producer.write(b"d")
    assert (caught.value.offset, caught.value.value) == (PROD * 4, 4)
    ring.indices[PROD] = 3
    ring.indices[CONS] = 1
    with pytest.raises(PeerError, match="was changed"):
        ring.consumer.read()


def test_the_index_follows_the_data() -> None:
    """A consumer that looks in between must not be told of bytes that are not there yet."""
    ring = Ring()
    seen: list[int] = []

    class Watching(RingArea):
        def spans(self, index: int, count: int) -> list[memoryview]:
            seen.append(ring.indices[PROD])
            return super().spans(index, count)

    area = Watching([memoryview(ring.data[0])])
    Producer(area, ring.indices, PROD, CONS).write(b"abc")
    assert seen == [0]
    assert ring.indices[PROD] == 3
