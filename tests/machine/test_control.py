"""The host's door: one JSON object a line, and nobody who knocks can hurt it."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenlive.machine.hosted.control import CLIENTS_MAX, LINE_MAX, ControlDoor, ask


@pytest.fixture
def door(tmp_path: Path) -> Iterator[ControlDoor]:
    made = ControlDoor(str(tmp_path / "control"), {"echo": lambda r: {"said": r.get("word")}})
    yield made
    made.close()
    assert not (tmp_path / "control").exists()


def connect(door: ControlDoor) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(door.path)
    client.setblocking(False)
    door.serve()
    return client


def talk(door: ControlDoor, sent: bytes, answers: int = 1) -> bytes:
    """What the door answers to `sent`, served until there are so many lines."""
    with connect(door) as client:
        client.sendall(sent)
        received = b""
        for _ in range(answers + 1):
            door.serve()
            with contextlib.suppress(BlockingIOError):
                received += client.recv(65536)
        client.shutdown(socket.SHUT_WR)
        door.serve()
        assert door.clients == 0
    return received


def test_a_verb_is_answered(door: ControlDoor) -> None:
    assert talk(door, b'{"verb": "echo", "word": "hi"}\n') == b'{"ok": true, "said": "hi"}\n'


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"7", b'{"verb": 3}', b'{"verb": ["a"]}', b"\xff", b"[" * 5000]
)
def test_nonsense_is_answered_with_what_would_make_sense(door: ControlDoor, line: bytes) -> None:
    assert b'"ok": false' in talk(door, line + b"\n")


def test_many_lines_at_once_get_an_answer_each_in_turns_of_their_own(door: ControlDoor) -> None:
    assert talk(door, b'{"verb": "echo"}\n{"verb": "x"}\n' * 3, answers=6).count(b"\n") == 6
    with connect(door) as client:
        client.sendall(b"{}\n" * 100)
        door.serve()
        assert client.recv(65536).count(b"\n") == 1


def test_an_endless_line_is_cut_off(door: ControlDoor) -> None:
    with connect(door) as client:
        for _ in range(3 * LINE_MAX // 4096):
            try:
                client.sendall(b"x" * 4096)
            except BrokenPipeError:
                break
            door.serve()
        assert door.clients == 0


def test_who_does_not_read_is_not_waited_for_and_gets_all_in_the_end(tmp_path: Path) -> None:
    text = "x" * 50_000
    door = ControlDoor(str(tmp_path / "control"), {"long": lambda request: {"text": text}})
    asked = 50
    try:
        with connect(door) as silent, connect(door) as other:
            silent.sendall(b'{"verb": "long"}\n' * asked)
            for _ in range(2 * asked):
                door.serve()
            # No room for the answers any more: the host's loop has nothing to do for this client.
            assert not select.select([door], [], [], 0)[0]
            other.sendall(b'{"verb": "none"}\n')
            door.serve()
            assert b'"ok": false' in other.recv(65536)
            received = bytearray()
            while received.count(b"\n") < asked:
                door.serve()
                received += silent.recv(1 << 20)
        assert len(received) == asked * len(json.dumps({"ok": True, "text": text}) + "\n")
    finally:
        door.close()


def test_a_newcomer_takes_the_place_of_the_one_that_was_quiet_for_longest(
    door: ControlDoor,
) -> None:
    clients = [connect(door) for _ in range(CLIENTS_MAX)]
    try:
        clients[0].sendall(b'{"verb": "echo"}\n')
        door.serve()
        with connect(door) as newcomer:
            assert door.clients == CLIENTS_MAX
            newcomer.sendall(b'{"verb": "echo"}\n')
            door.serve()
            assert newcomer.recv(100) == clients[0].recv(100)
            assert clients[1].recv(100) == b""
            with pytest.raises(BlockingIOError):
                clients[2].recv(100)
    finally:
        for client in clients:
            client.close()


def test_a_file_that_took_the_place_of_the_door_stays(tmp_path: Path) -> None:
    path = tmp_path / "control"
    door = ControlDoor(str(path), {})
    path.unlink()
    path.write_text("a user's")
    door.close()
    assert path.read_text() == "a user's"


def test_ask_speaks_to_a_door(door: ControlDoor) -> None:
    asked = threading.Event()

    def serve() -> None:
        while not asked.is_set():
            select.select([door], [], [], 0.01)
            door.serve()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ask(door.path, {"verb": "echo", "word": 1}) == {"ok": True, "said": 1}
    finally:
        asked.set()
        thread.join(10)


def test_ask_says_when_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        ask(str(tmp_path / "nobody"), {"verb": "status"})
