"""The server core: requests and replies, sessions that outlive a kernel, limits, and nonsense."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.errors import PeerError
from xenlive.ninep import messages as m
from xenlive.ninep.codec import Message, decode, decode_directory, encode
from xenlive.ninep.server import NinePServer
from xenlive.ninep.tree import MemoryTree

MSIZE = 4096


class Session:
    """A server with a tree in memory, spoken to one request at a time."""

    def __init__(
        self, attached: bool = True, max_fids: int = 256, max_open_files: int = 64
    ) -> None:
        self.tree = MemoryTree()
        self.server = NinePServer(self.tree, MSIZE, max_fids, max_open_files)
        self.tag = 0
        if attached:
            self.ask(m.TATTACH, fid=0, afid=m.NOFID, uname=b"", aname=b"", n_uname=0)

    def ask(self, type: int, **fields: Any) -> Message:
        """The reply, which must be of the request's kind; AssertionError with Rerror otherwise."""
        reply = self.reply(type, **fields)
        assert reply.type == type + 1, reply
        return reply

    def refusal(self, type: int, **fields: Any) -> int:
        """The errno the server refuses a request with."""
        reply = self.reply(type, **fields)
        assert reply.type == m.RERROR, reply
        number = reply["errno"]
        assert isinstance(number, int)
        return number

    def reply(self, type: int, **fields: Any) -> Message:
        self.tag += 1
        self.server.receive(encode(type, self.tag, **fields))
        data = self.server.next_reply()
        assert data is not None
        assert len(data) <= self.server.msize
        assert self.server.next_reply() is None
        reply = decode(data)
        assert reply.tag == self.tag
        return reply

    def make(self, name: bytes, data: bytes = b"", fid: int = 1) -> None:
        """An open file with contents."""
        self.ask(m.TWALK, fid=0, newfid=fid, wname=[])
        self.ask(m.TCREATE, fid=fid, name=name, perm=0o600, mode=m.ORDWR, extension=b"")
        if data:
            self.ask(m.TWRITE, fid=fid, offset=0, data=data)


def test_version() -> None:
    session = Session(attached=False)
    reply = session.ask(m.TVERSION, msize=1 << 20, version=b"9P2000.u")
    assert (reply["msize"], reply["version"]) == (MSIZE, b"9P2000.u")
    reply = session.ask(m.TVERSION, msize=3000, version=b"9P2000.L")
    assert (reply["msize"], reply["version"]) == (3000, b"unknown")
    assert session.refusal(m.TVERSION, msize=2047, version=b"9P2000.u") == errno.EMSGSIZE
    assert session.server.msize == 3000


def test_fids_outlive_a_version() -> None:
    """After kexec a Mini-OS front end sends Tversion, no Tattach, and uses the root fid it had."""
    session = Session()
    session.make(b"state", b"kept")
    session.ask(m.TVERSION, msize=MSIZE, version=b"9P2000.u")
    assert session.ask(m.TREAD, fid=1, offset=0, count=9)["data"] == b"kept"
    session.ask(m.TWALK, fid=0, newfid=2, wname=[b"state"])
    again = {"fid": 0, "afid": m.NOFID, "uname": b"", "aname": b"", "n_uname": 0}
    assert session.refusal(m.TATTACH, **again) == errno.EBADF
    session.ask(m.TSTAT, fid=0)


def test_write_read_stat_clunk_remove() -> None:
    session = Session()
    session.make(b"state", b"hello")
    assert session.ask(m.TWRITE, fid=1, offset=5, data=b" world")["count"] == 6
    assert session.ask(m.TREAD, fid=1, offset=6, count=100)["data"] == b"world"
    assert session.ask(m.TREAD, fid=1, offset=11, count=100)["data"] == b""
    stat = session.ask(m.TSTAT, fid=1)["stat"]
    assert (stat.name, stat.length) == (b"state", 11)
    session.ask(m.TCLUNK, fid=1)
    assert session.refusal(m.TCLUNK, fid=1) == errno.EBADF
    session.ask(m.TWALK, fid=0, newfid=1, wname=[b"state"])
    session.ask(m.TREMOVE, fid=1)
    assert session.refusal(m.TWALK, fid=0, newfid=1, wname=[b"state"]) == errno.ENOENT
    assert session.server.fids() == {0: ()}


def test_remove_lets_go_of_the_fid_even_if_it_fails() -> None:
    session = Session()
    session.ask(m.TWALK, fid=0, newfid=1, wname=[])
    assert session.refusal(m.TREMOVE, fid=1) == errno.EBUSY
    assert session.refusal(m.TSTAT, fid=1) == errno.EBADF


def test_remove_on_close() -> None:
    session = Session()
    session.make(b"f")
    session.ask(m.TCLUNK, fid=1)
    session.ask(m.TWALK, fid=0, newfid=1, wname=[b"f"])
    session.ask(m.TOPEN, fid=1, mode=m.OREAD | m.ORCLOSE)
    session.ask(m.TCLUNK, fid=1)
    assert session.tree.entries(()) == []


def test_walks() -> None:
    session = Session()
    session.tree.mkdir((b"a",), 0o700)
    session.tree.mkdir((b"a", b"b"), 0o700)
    qids = session.ask(m.TWALK, fid=0, newfid=1, wname=[b"a", b"b"])["wqid"]
    assert [qid.type for qid in qids] == [m.QTDIR, m.QTDIR]
    # a walk that gets stuck says how far it came, and makes no fid
    assert len(session.ask(m.TWALK, fid=0, newfid=2, wname=[b"a", b"x", b"y"])["wqid"]) == 1
    assert session.refusal(m.TSTAT, fid=2) == errno.EBADF
    assert session.refusal(m.TWALK, fid=0, newfid=2, wname=[b"x"]) == errno.ENOENT
    assert session.refusal(m.TWALK, fid=9, newfid=2, wname=[]) == errno.EBADF
    assert session.refusal(m.TWALK, fid=0, newfid=1, wname=[]) == errno.EBADF
    session.ask(m.TWALK, fid=1, newfid=1, wname=[])
    assert session.server.fids() == {0: (), 1: (b"a", b"b")}


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/etc/passwd", b"a\0"])
def test_names_that_are_none(name: bytes) -> None:
    session = Session()
    session.tree.mkdir((b"a",), 0o700)
    assert session.refusal(m.TWALK, fid=0, newfid=1, wname=[name]) == errno.ENOENT
    assert session.refusal(m.TWALK, fid=0, newfid=1, wname=[b"a", name]) == errno.ENOENT
    create = {"fid": 0, "name": name, "perm": 0o600, "mode": 0, "extension": b""}
    assert session.refusal(m.TCREATE, **create) == errno.ENOENT


def test_open_modes() -> None:
    session = Session()
    session.make(b"f", b"data")
    assert session.refusal(m.TOPEN, fid=1, mode=0) == errno.EINVAL  # is open
    assert session.refusal(m.TWALK, fid=1, newfid=2, wname=[]) == errno.EINVAL
    for fid, mode in ((2, m.OREAD), (3, m.OWRITE | m.OTRUNC)):
        session.ask(m.TWALK, fid=0, newfid=fid, wname=[b"f"])
        assert session.refusal(m.TREAD, fid=fid, offset=0, count=1) == errno.EBADF
        session.ask(m.TOPEN, fid=fid, mode=mode)
    assert session.refusal(m.TWRITE, fid=2, offset=0, data=b"x") == errno.EBADF
    assert session.refusal(m.TREAD, fid=3, offset=0, count=1) == errno.EBADF
    assert session.ask(m.TREAD, fid=2, offset=0, count=9)["data"] == b""  # truncated by fid 3
    session.ask(m.TWALK, fid=0, newfid=4, wname=[b"f"])
    for mode in (3, 0x20, 0x80, 0x13):
        assert session.refusal(m.TOPEN, fid=4, mode=mode) == errno.EINVAL
    assert session.refusal(m.TOPEN, fid=0, mode=m.OWRITE) == errno.EISDIR


def test_create() -> None:
    session = Session()
    session.make(b"f")
    session.ask(m.TWALK, fid=0, newfid=2, wname=[])
    new = {"fid": 2, "name": b"f", "perm": 0o600, "mode": m.OWRITE, "extension": b""}
    assert session.refusal(m.TCREATE, **new) == errno.EEXIST
    for special in (0x02000000, 0x00800000, 0x00200000, 0x00100000):
        assert session.refusal(m.TCREATE, **{**new, "perm": special}) == errno.EINVAL
    directory = {**new, "name": b"d", "perm": m.DMDIR | 0o700}
    assert session.refusal(m.TCREATE, **directory) == errno.EISDIR
    session.ask(m.TCREATE, **{**directory, "mode": m.OREAD})
    assert session.tree.stat((b"d",)).is_dir


def test_reading_a_directory() -> None:
    session = Session()
    names = [b"file-%03d" % n for n in range(120)]
    for name in names:
        session.tree.create((name,), 0o600, 0).close()
    session.ask(m.TWALK, fid=0, newfid=1, wname=[])
    session.ask(m.TOPEN, fid=1, mode=m.OREAD)
    for _ in range(2):  # offset 0 begins again
        found: list[bytes] = []
        offset = 0
        while data := session.ask(m.TREAD, fid=1, offset=offset, count=1000)["data"]:
            assert len(data) <= 1000
            found += [entry.name for entry in decode_directory(data)]
            offset += len(data)
        assert found == names
    assert session.refusal(m.TREAD, fid=1, offset=3, count=1000) == errno.EINVAL
    assert session.refusal(m.TREAD, fid=1, offset=0, count=10) == errno.EINVAL
    assert session.refusal(m.TWRITE, fid=1, offset=0, data=b"x") == errno.EBADF


def test_limits() -> None:
    session = Session(max_fids=4, max_open_files=1)
    session.make(b"f", fid=1)
    session.ask(m.TWALK, fid=0, newfid=2, wname=[b"f"])
    assert session.refusal(m.TOPEN, fid=2, mode=0) == errno.EMFILE
    session.ask(m.TWALK, fid=0, newfid=3, wname=[])
    create = {"fid": 3, "name": b"g", "perm": 0o600, "mode": 0, "extension": b""}
    assert session.refusal(m.TCREATE, **create) == errno.EMFILE
    assert session.refusal(m.TWALK, fid=0, newfid=4, wname=[]) == errno.EMFILE
    session.ask(m.TCLUNK, fid=1)
    session.ask(m.TOPEN, fid=2, mode=0)
    session.ask(m.TREMOVE, fid=2)
    session.ask(m.TCREATE, **create)


def test_a_path_has_an_end() -> None:
    session = Session()
    session.ask(m.TWALK, fid=0, newfid=1, wname=[])
    deepest = 0
    while True:
        reply = session.reply(
            m.TCREATE, fid=1, name=b"d", perm=m.DMDIR | 0o700, mode=m.OREAD, extension=b""
        )
        if reply.type == m.RERROR:
            break
        deepest += 1
        session.ask(m.TCLUNK, fid=1)
        path = [b"d"] * deepest
        session.ask(m.TWALK, fid=0, newfid=1, wname=path[:16])
        for start in range(16, deepest, 16):
            session.ask(m.TWALK, fid=1, newfid=1, wname=path[start : start + 16])
    assert (reply["errno"], deepest) == (errno.ENAMETOOLONG, 64)


def test_a_read_is_no_longer_than_a_message() -> None:
    session = Session()
    session.make(b"f", b"a" * 4000)
    session.ask(m.TWRITE, fid=1, offset=4000, data=b"b" * 4000)
    data = session.ask(m.TREAD, fid=1, offset=0, count=2**32 - 1)["data"]
    assert len(data) == MSIZE - m.RREAD_BYTES


@pytest.mark.parametrize("offset", [2**63 - 1, 2**63, 2**64 - 1])
def test_offsets_beyond_all_files(offset: int) -> None:
    session = Session()
    session.make(b"f")
    assert session.refusal(m.TREAD, fid=1, offset=offset, count=1) == errno.EFBIG
    assert session.refusal(m.TWRITE, fid=1, offset=offset, data=b"x") == errno.EFBIG


@pytest.mark.parametrize("number", [0, 102, 108, 126, 255, m.RREAD])
def test_requests_nobody_serves(number: int) -> None:
    server = NinePServer(MemoryTree(), MSIZE)
    server.receive(struct.pack("<IBH", 9, number, 7) + b"xy")
    reply = decode(server.next_reply() or b"")
    assert (reply.type, reply.tag, reply["errno"]) == (m.RERROR, 7, errno.EOPNOTSUPP)


def test_a_broken_body_is_refused_and_the_session_goes_on() -> None:
    session = Session()
    session.server.receive(struct.pack("<IBHH", 9, m.TWALK, 7, 1))
    reply = decode(session.server.next_reply() or b"")
    assert (reply.type, reply.tag, reply["errno"]) == (m.RERROR, 7, errno.EINVAL)
    session.ask(m.TSTAT, fid=0)


@pytest.mark.parametrize("size", [0, 6, MSIZE + 1, 2**32 - 1])
def test_a_length_that_cannot_be_ends_the_session(size: int) -> None:
    server = NinePServer(MemoryTree(), MSIZE)
    server.receive(struct.pack("<IBH", size, m.TVERSION, 7))
    with pytest.raises(PeerError):
        server.next_reply()


def test_no_more_than_one_request_is_taken() -> None:
    server = NinePServer(MemoryTree(), MSIZE)
    assert server.room == MSIZE
    server.receive(bytes(100))
    assert server.room == MSIZE - 100
    with pytest.raises(ValueError, match="room"):
        server.receive(bytes(MSIZE))


def test_close_closes_files() -> None:
    session = Session()
    session.make(b"f")
    session.server.close()
    assert session.server.fids() == {}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 60), max_size=200))
def test_any_chunking_gives_the_same_replies(cuts: list[int]) -> None:
    requests = b"".join(
        (
            encode(m.TVERSION, m.NOTAG, msize=3000, version=b"9P2000.u"),
            encode(m.TATTACH, 1, fid=0, afid=m.NOFID, uname=b"", aname=b"", n_uname=0),
            encode(m.TWALK, 2, fid=0, newfid=1, wname=[]),
            encode(m.TCREATE, 3, fid=1, name=b"f", perm=0o600, mode=2, extension=b""),
            encode(m.TWRITE, 4, fid=1, offset=0, data=bytes(range(200))),
            encode(m.TREAD, 5, fid=1, offset=100, count=50),
            encode(m.TSTAT, 6, fid=1),
            encode(m.TCLUNK, 7, fid=1),
        )
    )

    def replies(chunks: list[bytes]) -> bytes:
        server = NinePServer(MemoryTree(), MSIZE)
        out = b""
        for chunk in chunks:
            server.receive(chunk)
            while (reply := server.next_reply()) is not None:
                out += reply
        return out

    chunks = []
    rest = requests
    for cut in cuts:
        chunks.append(rest[:cut])
        rest = rest[cut:]
    assert replies([*chunks, rest]) == replies([requests])


@st.composite
def hostile_request(draw: st.DrawFn) -> bytes:
    """A request with right framing and wild, small or random fields."""
    number = draw(st.sampled_from([n for n, (name, _) in m.MESSAGES.items() if name[0] == "T"]))
    if draw(st.booleans()):
        body = draw(st.binary(max_size=40))
        return struct.pack("<IBH", m.HEADER_BYTES + len(body), number, 1) + body
    names = st.sampled_from([b"a", b"b", b"..", b"", b"a/b", b"\0"])
    small = st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1))
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "u8": st.integers(0, 255),
        "u32": small,
        "u64": st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)),
        "string": names,
        "strings": st.lists(names, max_size=3),
        "data": st.binary(max_size=20),
    }
    fields = {name: draw(kinds[kind]) for name, kind in m.MESSAGES[number][1]}
    if number == m.TCREATE and draw(st.booleans()):
        fields["perm"] = draw(st.sampled_from([0o600, m.DMDIR | 0o700]))
        fields["mode"] = draw(st.integers(0, 2))
    return encode(number, draw(st.integers(0, 0xFFFF)), **fields)


@settings(deadline=None, max_examples=150)
@given(st.lists(hostile_request(), max_size=25))
def test_every_framed_request_gets_one_reply(requests: list[bytes]) -> None:
    session = Session(max_fids=5, max_open_files=2)
    for request in requests:
        session.server.receive(request)
        data = session.server.next_reply()
        assert data is not None
        reply = decode(data)
        assert reply.tag == int.from_bytes(request[5:7], "little")
        assert reply.type in (request[4] + 1, m.RERROR)
        assert len(data) <= session.server.msize
        assert len(session.server.fids()) <= 5
    assert session.tree.used_bytes <= session.tree.max_bytes
