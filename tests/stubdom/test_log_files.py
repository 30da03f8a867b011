"""The log's files: on the 9pfs device as long as it plays along, else lines of the console."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from domain.ninepworld import World

from xenlive.errors import NinePError, PeerTimeout
from xenlive.machine.guest import EventLoop
from xenlive.ninep import messages as m
from xenlive.stubdom import logfile
from xenlive.stubdom.boot import StubDomain
from xenlive.stubdom.logfile import BUFFER_BYTES, LogFiles


class Later(EventLoop):
    """Keeps what is to be called."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def call_at(self, when_s: float, callback: Callable[[], None]) -> object:
        self.due.append((when_s, callback))
        return None

    def run(self) -> None:
        due, self.due = self.due, []
        for _, callback in due:
            callback()


class Domain:
    """A domain with a device and a console."""

    def __init__(self, *, has_device: bool = True) -> None:
        self.world = World()
        self.front = self.world.first_kernel()
        self.said: list[str] = []
        machine = SimpleNamespace(console=self.said.append, now_s=lambda: 5.0)
        front = self.front if has_device else None
        domain = SimpleNamespace(front=front, machine=machine)
        self.loop = Later()
        self.files = LogFiles(cast(StubDomain, domain), self.loop, ("/xenstore-state",))

    def read(self, path: str) -> bytes:
        return bytes(self.front.read_file(path))


@pytest.fixture
def domain() -> Domain:
    return Domain()


@pytest.mark.parametrize("name", [b"trace", b"/trace", b"/var/lib/xen/xenstore/trace", b"//trace"])
def test_lines_are_in_the_file_a_moment_later(domain: Domain, name: bytes) -> None:
    write = domain.files.open(name)
    assert domain.read("/trace") == b""
    write(b"one\n")
    write(b"two\n")
    assert domain.read("/trace") == b""
    assert [when_s for when_s, _ in domain.loop.due] == [5.0 + logfile.WRITE_AFTER_S]
    domain.loop.run()
    assert domain.read("/trace") == b"one\ntwo\n"
    domain.loop.run()
    write(b"three\n")
    domain.loop.run()
    assert domain.read("/trace") == b"one\ntwo\nthree\n"
    assert domain.said == []


def test_what_was_there_stays(domain: Domain) -> None:
    domain.front.write_file("/trace", [b"old\n"])
    domain.files.open(b"trace")(b"new\n")
    domain.files.open(b"other")(b"x\n")
    domain.files.open(b"trace")(b"newer\n")
    domain.files.write_all()
    assert domain.read("/trace") == b"old\nnew\nnewer\n"
    assert domain.read("/other") == b"x\n"


def test_much_is_not_kept_until_later(domain: Domain) -> None:
    write = domain.files.open(b"trace")
    for _ in range(3):
        write(b"x" * (BUFFER_BYTES // 2))
    assert len(domain.read("/trace")) == BUFFER_BYTES


@pytest.mark.parametrize(
    "name",
    [
        *(b"", b"/", b"..", b"../x", b"a/../b", b".", b"a/./b"),
        *(b"xenstore-state", b"/xenstore-state", b"/var/lib/xen/xenstore/xenstore-state"),
        *(b"\xff", b"nowhere/x", b"/var/log/x", b"folder"),
    ],
)
def test_a_name_that_will_not_do_is_lines_of_the_console(domain: Domain, name: bytes) -> None:
    if name == b"folder":
        _make_folder(domain)
    write = domain.files.open(name)
    (said,) = domain.said
    assert said.endswith("its lines come here")
    write(b"\n***\n")
    write(b"line\n")
    assert domain.said[1:] == [
        f"{name.decode('utf-8', 'backslashreplace')}: {text}" for text in ("***", "line")
    ]
    assert domain.loop.due == []


def _make_folder(domain: Domain) -> None:
    files: Any = domain.front._files
    fid = files._walk([])
    files._ask(m.TCREATE, fid=fid, name=b"folder", perm=m.DMDIR | 0o700, mode=0, extension=b"")
    files._clunk(fid)


def test_without_a_device_there_is_the_console() -> None:
    domain = Domain(has_device=False)
    domain.files.open(b"trace")(b"line\n")
    assert domain.said == ["trace: line"]


@pytest.mark.parametrize("error", [PeerTimeout("9pfs backend", 3.0), NinePError("no room", 28)])
def test_a_device_that_fails_is_given_up_and_nothing_lost(
    domain: Domain, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = domain.files.open(b"trace")
    patience: list[float] = []

    def fail(*_: object) -> int:
        patience.append(domain.front.timeout_s)
        raise error

    before_s = domain.front.timeout_s
    monkeypatch.setattr(type(domain.front), "append_file", fail)
    write(b"one\n")
    write(b"two\n")
    domain.files.write_all()
    write(b"three\n")
    assert domain.said[1:] == ["trace: one", "trace: two", "trace: three"]
    assert patience == [logfile.BACKEND_TIMEOUT_S]
    assert domain.front.timeout_s == before_s
    domain.files.write_all()
    assert len(patience) == 1


def test_no_file_grows_for_ever(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logfile, "FILE_MAX_BYTES", 10)
    write = domain.files.open(b"trace")
    for line in (b"12345\n", b"123\n", b"45\n"):
        write(line)
        domain.files.write_all()
    assert domain.read("/trace") == b"12345\n123\n"
    assert domain.said[-1] == "trace: 45"
    domain.front.save()
