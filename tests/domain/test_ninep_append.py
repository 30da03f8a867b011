"""Appending to a file through the 9pfs front end, with backends that are and are not honest."""

from __future__ import annotations

import errno

import pytest
from domain.ninepworld import World
from domain.test_ninep_front import Puppet, rstat

from xenlive.errors import NinePError, OutOfSpace, PeerError
from xenlive.ninep import messages as m
from xenlive.ninep.codec import encode


def test_a_file_gets_longer() -> None:
    front = World().first_kernel()
    assert front.append_file("/log", b"") == 0
    assert front.append_file("/log", b"one\n") == 4
    big = bytes(range(256)) * 1000
    assert front.append_file("/log", big) == 4 + len(big)
    assert front.append_file("/log", b"") == 4 + len(big)
    assert front.read_file("/log") == b"one\n" + big
    front.save()


def test_another_kernel_goes_on() -> None:
    world = World()
    front = world.first_kernel()
    front.append_file("/log", b"one\n")
    front.save()
    assert world.next_kernel().append_file("/log", b"two\n") == 8


@pytest.mark.parametrize(
    ("path", "number"),
    [("/", errno.EISDIR), ("log", errno.EINVAL), ("/no/log", errno.ENOENT)],
)
def test_what_is_no_file(path: str, number: int) -> None:
    front = World().first_kernel()
    with pytest.raises(NinePError) as refused:
        front.append_file(path, b"x")
    assert refused.value.errno == number
    front.save()


@pytest.mark.parametrize("length", [8, (1 << 64) - 1])
def test_a_length_that_leaves_no_room(length: int) -> None:
    puppet = Puppet()
    puppet.instead(m.TSTAT, lambda tag: rstat(tag, length))
    with pytest.raises(OutOfSpace):
        puppet.front.append_file("/state", b"xyz", 10)
    puppet.answer = puppet.serve
    assert len(puppet.front.read_file("/state")) == 50_000
    puppet.front.save()


def test_more_written_than_was_sent_is_a_lie() -> None:
    puppet = Puppet()
    puppet.instead(m.TWRITE, lambda tag: encode(m.RWRITE, tag, count=4))
    with pytest.raises((PeerError, NinePError)):
        puppet.front.append_file("/state", b"xyz")
