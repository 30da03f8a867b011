"""The 9pfs front end against backends that lie, fall silent or send anything at all."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

import pytest
from domain.ninepworld import World
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.abi import xen9pfs as abi
from xenlive.domain.ninepfront import NinePFront
from xenlive.errors import NinePError, OutOfSpace, PeerError, PeerTimeout, UpdateError
from xenlive.memory.address import PAGE_SIZE
from xenlive.ninep import messages as m
from xenlive.ninep.codec import decode, encode
from xenlive.ninep.messages import Stat
from xenlive.ninep.tree import MemoryTree, OpenFile
from xenlive.ring.area import RingArea
from xenlive.ring.stream import Consumer, Producer


class Puppet:
    """A front end whose backend is a function from one request's bytes to the bytes of a reply."""

    def __init__(self) -> None:
        self.world = World()
        self.front = self.world.first_kernel()
        self.front.write_file("/state", [b"x" * 50_000])
        assert self.world.back is not None
        self.server = self.world.back.server
        self.interface = memoryview(self.world.ram)[:PAGE_SIZE].cast("I")
        rings = memoryview(self.world.ram)[PAGE_SIZE : 17 * PAGE_SIZE]
        half = len(rings) // 2
        word = self.interface
        self.requests = Consumer(
            RingArea([rings[half:]]), word, abi.OUT_PROD, abi.OUT_CONS, word[abi.OUT_CONS]
        )
        self.replies = Producer(
            RingArea([rings[:half]]), word, abi.IN_PROD, abi.IN_CONS, word[abi.IN_PROD]
        )
        self.owed = b""
        self.answer: Callable[[bytes], bytes] = self.serve
        self.world.events.listen(self.front.device.port, self.kick)

    def serve(self, request: bytes) -> bytes:
        """What an honest backend answers."""
        self.server.receive(request)
        reply = self.server.next_reply()
        assert reply is not None
        return reply

    def kick(self) -> None:
        data = self.requests.read()
        while data:
            size = int.from_bytes(data[:4], "little")
            self.owed += self.answer(data[:size])
            data = data[size:]
        self.owed = self.owed[self.replies.write(self.owed) :]
        self.world.events.ring(self.front.device.port)

    def instead(self, type: int, reply: Callable[[int], bytes]) -> None:
        """Answers requests of one kind with `reply(tag)`, all others honestly."""

        def answer(request: bytes) -> bytes:
            if request[4] == type:
                return reply(int.from_bytes(request[5:7], "little"))
            return self.serve(request)

        self.answer = answer


def test_the_puppet_is_honest_by_itself() -> None:
    puppet = Puppet()
    assert puppet.front.read_file("/state") == b"x" * 50_000
    puppet.front.save()


LIES: list[tuple[str, int, Callable[[int], bytes]]] = [
    ("another tag", m.TWALK, lambda tag: encode(m.RWALK, tag + 1, wqid=[m.Qid(0, 0, 0)])),
    ("another kind", m.TWALK, lambda tag: encode(m.RCLUNK, tag)),
    ("a request", m.TWALK, lambda tag: encode(m.TCLUNK, tag, fid=0)),
    ("too many qids", m.TWALK, lambda tag: encode(m.RWALK, tag, wqid=[m.Qid(0, 0, 0)] * 2)),
    ("length 0", m.TSTAT, lambda tag: bytes(7)),
    ("length of all memory", m.TSTAT, lambda tag: b"\xff" * 7),
    ("a body cut short", m.TOPEN, lambda tag: struct.pack("<IBH", 9, m.ROPEN, tag) + b"ab"),
    ("more data than asked", m.TREAD, lambda tag: encode(m.RREAD, tag, data=bytes(32760))),
    ("the same answer twice", m.TSTAT, lambda tag: rstat(tag, 5) * 2),
]


def rstat(tag: int, length: int) -> bytes:
    return encode(m.RSTAT, tag, stat=Stat(b"state", m.Qid(0, 0, 1), 0o600, length))


@pytest.mark.parametrize(("why", "type", "lie"), LIES, ids=[why for why, _, _ in LIES])
def test_a_lie_ends_the_device(why: str, type: int, lie: Callable[[int], bytes]) -> None:
    puppet = Puppet()
    puppet.instead(type, lie)
    with pytest.raises(PeerError) as first:
        puppet.front.read_file("/state")
    puppet.answer = puppet.serve
    for operation in (puppet.front.read_file, puppet.front.stat, puppet.front.remove):
        with pytest.raises(PeerError) as again:
            operation("/state")
        assert again.value is first.value
    with pytest.raises(UpdateError, match="broken"):
        puppet.front.save()


@pytest.mark.parametrize("length", [2**30 + 1, 2**63, 2**64 - 1])
def test_a_length_that_nobody_has(length: int) -> None:
    puppet = Puppet()
    puppet.instead(m.TSTAT, lambda tag: rstat(tag, length))
    with pytest.raises(OutOfSpace):
        puppet.front.read_file("/state")
    puppet.answer = puppet.serve
    assert len(puppet.front.read_file("/state")) == 50_000
    puppet.front.save()


@pytest.mark.parametrize("said", [50_001, 80_000, 1_000_000])
def test_a_file_that_shrank(said: int) -> None:
    puppet = Puppet()
    puppet.instead(m.TSTAT, lambda tag: rstat(tag, said))
    assert puppet.front.read_file("/state") == b"x" * 50_000
    puppet.front.save()


class DripTree(MemoryTree):
    """A tree whose files give at most 100 bytes at a time, and take 10 fewer than they should."""

    def open(self, path: tuple[bytes, ...], mode: int) -> OpenFile:
        return DripFile(super().open(path, mode))


class DripFile(OpenFile):
    def __init__(self, file: OpenFile) -> None:
        self.file = file

    def read(self, offset: int, count: int) -> bytes:
        return self.file.read(offset, min(count, 100))

    def close(self) -> None:
        self.file.close()


def test_short_reads_are_put_together() -> None:
    world = World(tree=DripTree())
    front = world.first_kernel()
    data = bytes(i % 251 for i in range(5000))
    front.write_file("/state", [data])
    assert front.read_file("/state") == data


def test_a_short_write_is_no_success() -> None:
    puppet = Puppet()
    puppet.instead(m.TWRITE, lambda tag: encode(m.RWRITE, tag, count=10))
    with pytest.raises(NinePError) as caught:
        puppet.front.write_file("/other", [bytes(100_000)])
    assert caught.value.errno == errno.ENOSPC
    puppet.answer = puppet.serve
    puppet.front.save()


def test_a_refusal_in_the_middle_of_many_writes() -> None:
    puppet = Puppet()
    count = 0

    def answer(request: bytes) -> bytes:
        nonlocal count
        if request[4] == m.TWRITE:
            count += 1
            if count == 3:
                tag = int.from_bytes(request[5:7], "little")
                return encode(m.RERROR, tag, ename=b"disk on fire", errno=errno.EIO)
        return puppet.serve(request)

    puppet.answer = answer
    with pytest.raises(NinePError, match="disk on fire"):
        puppet.front.write_file("/other", [bytes(500_000)])
    assert puppet.server.fids() == {0: ()}
    puppet.front.save()


@pytest.mark.parametrize("silent", [m.TWALK, m.TCREATE, m.TWRITE, m.TCLUNK])
def test_a_backend_that_falls_silent_and_comes_back(silent: int) -> None:
    puppet = Puppet()
    held: list[bytes] = []

    def answer(request: bytes) -> bytes:
        if request[4] == silent or held:
            held.append(request)
            return b""
        return puppet.serve(request)

    puppet.answer = answer
    with pytest.raises(PeerTimeout):
        puppet.front.write_file("/other", [bytes(100_000)])
    with pytest.raises(UpdateError):
        puppet.front.save()
    puppet.answer = puppet.serve
    puppet.owed = b"".join(map(puppet.serve, held))
    assert len(puppet.front.read_file("/state")) == 50_000
    assert puppet.server.fids() == {0: ()}
    puppet.front.save()


def test_without_tremove_a_file_is_removed_on_close() -> None:
    """As with Xen's own backend, which does not know Tremove."""
    puppet = Puppet()
    puppet.instead(
        m.TREMOVE, lambda tag: encode(m.RERROR, tag, ename=b"no", errno=errno.EOPNOTSUPP)
    )
    puppet.front.remove("/state")
    with pytest.raises(NinePError):
        puppet.front.stat("/state")
    assert puppet.server.fids() == {0: ()}


def test_writes_are_pipelined() -> None:
    """The second write is in the ring before the first is answered, when there is room for both."""
    puppet = Puppet()
    puppet.front._client.msize = 4096
    most = 0

    def kick() -> None:
        nonlocal most
        most = max(most, puppet.front._client.in_flight)

    def idle() -> bool:
        if puppet.requests.available() == 0:
            return False
        puppet.kick()
        return True

    puppet.world.events.listen(puppet.front.device.port, kick)
    puppet.world.events.idle = idle
    puppet.front.write_file("/other", [bytes(100_000)])
    assert most >= 8
    most = 0
    assert puppet.front.read_file("/other") == bytes(100_000)
    assert most == 8


def test_the_wait_ends_although_the_bell_rings_on() -> None:
    puppet = Puppet()
    puppet.front.timeout_s = 0.05
    port = puppet.front.device.port
    puppet.world.events.listen(port, None)

    def idle() -> bool:
        puppet.world.events.ring(port)
        return True

    puppet.world.events.idle = idle
    with pytest.raises(PeerTimeout, match=r"within 0\.05 s"):
        puppet.front.stat("/state")


def any_operation(front: NinePFront, which: int) -> None:
    operations: list[Callable[[], object]] = [
        lambda: front.read_file("/state"),
        lambda: front.stat("/state"),
        lambda: front.write_file("/state", [b"y" * 40_000]),
        lambda: front.remove("/state"),
    ]
    operations[which]()


@settings(deadline=None, max_examples=120)
@given(st.data())
def test_whatever_a_backend_does(data: st.DataObject) -> None:
    """Wild indices, wild bytes, wild replies: an answer or an error of the tree, and an end."""
    puppet = Puppet()
    outside = bytes(puppet.world.ram[17 * PAGE_SIZE :])
    left = 12

    def answer(request: bytes) -> bytes:
        nonlocal left
        what = data.draw(st.sampled_from(["honest", "honest", "bytes", "type", "index", "none"]))
        if what == "honest" or left == 0:
            return puppet.serve(request)
        left -= 1
        reply = bytearray(puppet.serve(request))
        if what == "bytes":
            at = data.draw(st.integers(0, len(reply) - 1))
            reply[at] = data.draw(st.integers(0, 255))
        elif what == "type":
            reply[4] = data.draw(st.integers(100, 127))
        elif what == "index":
            word = data.draw(st.sampled_from([abi.IN_CONS, abi.OUT_CONS, abi.OUT_PROD]))
            puppet.interface[word] = data.draw(st.integers(0, 2**32 - 1))
        else:
            return b""
        return bytes(reply)

    puppet.answer = answer

    def kick() -> None:
        try:
            puppet.kick()
        except PeerError:  # the puppet tripped over its own wild index
            puppet.world.events.ring(puppet.front.device.port)

    puppet.world.events.listen(puppet.front.device.port, kick)
    for which in data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4)):
        try:
            any_operation(puppet.front, which)
        except (NinePError, PeerError, PeerTimeout, OutOfSpace):
            continue
    assert bytes(puppet.world.ram[17 * PAGE_SIZE :]) == outside


def test_requests_are_what_mini_os_sends() -> None:
    """The kinds Mini-OS uses, and Tremove; paths are walked from the root fid."""
    puppet = Puppet()
    kinds: list[int] = []

    def answer(request: bytes) -> bytes:
        kinds.append(decode(request).type)
        return puppet.serve(request)

    puppet.answer = answer
    puppet.front.write_file("/state", [b"1"])
    assert kinds == [
        *(m.TWALK, m.TCREATE, m.TCLUNK),
        *(m.TWALK, m.TOPEN, m.TWRITE, m.TCLUNK),
    ]
    kinds.clear()
    puppet.front.read_file("/state")
    assert kinds == [m.TWALK, m.TSTAT, m.TOPEN, m.TREAD, m.TCLUNK]
