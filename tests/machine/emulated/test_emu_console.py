"""The console's back end: both rings, their hostile front ends, Xen's own console."""

from __future__ import annotations

import pytest
from machine.emulated.guests import Guest, World

from xenlive.abi import xencons
from xenlive.machine.emulated.backends.console import Console
from xenlive.machine.emulated.build import CONSOLE_GFN

PORT = 2  # the toolstack's second: Xenstore has the first


class Front:
    """A guest's end of its console."""

    def __init__(self) -> None:
        world = World()
        self.guest: Guest = world.guests[0]
        self.domain = self.guest.domain
        self.seen = bytearray()
        self.console = Console(world.host, self.domain, self.seen.extend)
        frame = self.domain.space.lookup(CONSOLE_GFN)
        assert frame is not None
        self.page = frame.frame.view
        self.words = self.page.cast("I")

    def write(self, data: bytes) -> None:
        """Puts `data` on the ring and notifies; no more than there is room for."""
        prod = self.words[xencons.OUT_PROD]
        for byte in data:
            self.page[xencons.OUT_AT + prod % xencons.OUT_SIZE] = byte
            prod = prod + 1 & 0xFFFFFFFF
        self.words[xencons.OUT_PROD] = prod
        self.domain.events.send(PORT)

    def read(self) -> bytes:
        """Takes what is on the ring and notifies."""
        cons, prod = self.words[xencons.IN_CONS], self.words[xencons.IN_PROD]
        data = bytearray()
        while cons != prod:
            data.append(self.page[cons % xencons.IN_SIZE])
            cons = cons + 1 & 0xFFFFFFFF
        self.words[xencons.IN_CONS] = cons
        self.domain.events.send(PORT)
        return bytes(data)

    def was_told(self) -> bool:
        """Whether an event came since the last time."""
        pending = self.domain.shared.is_pending(PORT)
        self.domain.shared.clear_pending(PORT)
        return pending


@pytest.fixture
def front() -> Front:
    made = Front()
    made.was_told()
    return made


def test_what_the_guest_writes_is_handed_on(front: Front) -> None:
    front.write(b"hello\r\n")
    assert front.seen == b"hello\r\n"
    assert front.words[xencons.OUT_CONS] == front.words[xencons.OUT_PROD] == 7
    assert front.was_told()


@pytest.mark.parametrize("start", [0, 2000, 0xFFFFFFF0])
def test_output_goes_around_the_ring(front: Front, start: int) -> None:
    front.words[xencons.OUT_CONS] = front.words[xencons.OUT_PROD] = start
    text = bytes(range(256)) * 8
    front.write(text)
    front.write(text)
    assert front.seen == text + text


def test_what_is_typed_waits_until_the_guest_takes_it(front: Front) -> None:
    typed = bytes(index % 251 for index in range(3000))
    front.console.type(typed)
    assert front.was_told()
    assert front.console.waiting == 3000
    taken = front.read()
    assert len(taken) == xencons.IN_SIZE
    while len(taken) < 3000:
        piece = front.read()
        assert piece
        taken += piece
    assert taken == typed
    assert front.console.waiting == 0
    assert front.read() == b""


@pytest.mark.parametrize(("cons", "prod"), [(0, 2049), (1, 0), (0, 0x80000000), (5000, 4)])
def test_indices_that_cannot_be_move_nothing_out(front: Front, cons: int, prod: int) -> None:
    front.words[xencons.OUT_CONS], front.words[xencons.OUT_PROD] = cons, prod
    before = bytes(front.page)
    front.domain.events.send(PORT)
    assert front.seen == b""
    assert bytes(front.page) == before
    assert not front.was_told()
    front.console.type(b"x")
    assert front.read() == b"x"


@pytest.mark.parametrize(("cons", "prod"), [(0, 1025), (1, 0)])
def test_indices_that_cannot_be_hold_input_back(front: Front, cons: int, prod: int) -> None:
    front.words[xencons.IN_CONS], front.words[xencons.IN_PROD] = cons, prod
    front.console.type(b"later")
    assert (front.words[xencons.IN_CONS], front.words[xencons.IN_PROD]) == (cons, prod)
    front.write(b"still heard")
    assert front.seen == b"still heard"
    front.words[xencons.IN_CONS] = front.words[xencons.IN_PROD] = 0
    front.console.pump()
    assert front.read() == b"later"


def test_the_next_kernel_may_begin_the_ring_anew(front: Front) -> None:
    front.write(b"first ")
    front.console.type(b"a")
    front.page[:] = bytes(len(front.page))
    front.write(b"second")
    front.console.type(b"b")
    assert front.seen == b"first second"
    assert front.read() == b"b"


def test_a_guest_that_closed_its_port_is_left_alone(front: Front) -> None:
    front.domain.events.close(PORT)
    front.console.type(b"nobody")
    assert front.console.waiting == 6
    assert not front.was_told()


def test_what_goes_to_xens_own_console_comes_out_too(front: Front) -> None:
    front.domain.write_console_io(b"(XEN) ")
    front.console.pump()
    front.domain.write_console_io(b"more")
    front.console.pump()
    assert front.seen == b"(XEN) more"
