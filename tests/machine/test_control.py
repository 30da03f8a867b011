"""The host's door: one JSON object a line, and nobody who knocks can hurt it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenlive.machine.hosted.control import LINE_MAX, ControlDoor, ask


@pytest.fixture
def door(tmp_path: Path) -> Iterator[ControlDoor]:
    made = ControlDoor(str(tmp_path / "control"), {"echo": lambda r: {"said": r.get("word")}})
    yield made
    made.close()
    assert not (tmp_path / "control").exists()


def talk(door: ControlDoor, sent: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(door.path)
        fd = door.accept()
        assert fd is not None
        client.sendall(sent)
        alive = door.ready(fd)
        client.settimeout(5)
        answer = client.recv(65536)
        if alive:
            client.shutdown(socket.SHUT_WR)
            assert door.ready(fd) is False
        return answer


def test_a_verb_is_answered(door: ControlDoor) -> None:
    assert talk(door, b'{"verb": "echo", "word": "hi"}\n') == b'{"ok": true, "said": "hi"}\n'


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"7", b'{"verb": 3}', b'{"verb": ["a"]}', b"\xff", b"[" * 5000]
)
def test_nonsense_is_answered_with_what_would_make_sense(door: ControlDoor, line: bytes) -> None:
    assert b'"ok": false' in talk(door, line + b"\n")


def test_two_lines_at_once_get_two_answers(door: ControlDoor) -> None:
    assert talk(door, b'{"verb": "echo"}\n{"verb": "x"}\n').count(b"\n") == 2


def test_an_endless_line_is_cut_off(door: ControlDoor) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(door.path)
        fd = door.accept()
        assert fd is not None
        alive = True
        for _ in range(3 * LINE_MAX // 4096):
            try:
                client.sendall(b"x" * 4096)
            except BrokenPipeError:
                break
            alive = door.ready(fd)
            if not alive:
                break
        assert not alive


def test_ask_speaks_to_a_door(door: ControlDoor) -> None:
    def serve() -> None:
        fd = None
        while fd is None:
            fd = door.accept()
        while door.ready(fd):
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ask(door.path, {"verb": "echo", "word": 1}) == {"ok": True, "said": 1}
    finally:
        thread.join(10)


def test_ask_says_when_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ask(str(tmp_path / "nobody"), {"verb": "status"})
