"""Snapshots on disk: what is written is read, and whatever else a file says is one ImageError."""

from __future__ import annotations

import binascii
import copy
import io
import json
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine.emulated import worlds
from machine.emulated.worlds import SECOND_NS, Said

from xenlive.errors import ImageError
from xenlive.machine.emulated.lens.snapshot import Snapshot, digest_of, restore_world, save_world
from xenlive.machine.emulated.lens.snapshot_file import (
    VERSION,
    read_from,
    read_snapshot,
    write_snapshot,
)
from xenlive.machine.emulated.world import WORLD_ENDED, World

pytestmark = pytest.mark.peer


@cache
def a_snapshot() -> Snapshot:
    """Of a world in which pages are granted and mapped, a channel is bound and a watch is set."""
    world = worlds.pair_world(Said())
    client = world.guests[1]
    world.run(until=lambda: bool(client.domain.mappings.mapped()))
    found = save_world(world)
    world.close()
    return found


@cache
def a_file() -> bytes:
    """The same as a file."""
    path = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path()
    name = path / f"xenlive-test-{id(a_file)}"
    write_snapshot(a_snapshot(), name)
    try:
        return name.read_bytes()
    finally:
        name.unlink()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A world that is restored again and again; a broken snapshot may leave it in pieces."""
    made = World()
    yield made
    made.close()


def read(data: bytes) -> Snapshot:
    return read_from(io.BytesIO(data), len(data))


def refused(data: bytes) -> str:
    """The code of the one error that a file gives."""
    with pytest.raises(ImageError) as error:
        read(data)
    assert "\n" not in str(error.value)
    assert error.value.offset is None or 0 <= error.value.offset <= len(data)
    return error.value.code


def test_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "world.snapshot"
    path.write_bytes(b"what was there")
    write_snapshot(a_snapshot(), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    found = read_snapshot(path)
    assert found == a_snapshot()
    with World() as elsewhere:
        restore_world(elsewhere, found)
        assert digest_of(elsewhere) == a_snapshot().digest()
        assert elsewhere.run(until_ns=20 * SECOND_NS) == WORLD_ENDED
        assert [guest.stop.code for guest in elsewhere.guests if guest.stop] == [0, 0]


def test_nothing_is_left_of_what_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "a-folder").mkdir()
    with pytest.raises(OSError, match="a-folder"):
        write_snapshot(a_snapshot(), tmp_path / "a-folder")
    assert [file.name for file in tmp_path.iterdir()] == ["a-folder"]


@pytest.mark.parametrize(
    ("at", "put", "code"),
    [
        (0, b"y", "snapshot-magic"),
        (8, b"\x01", "snapshot-version"),
        (8, b"\0\0\0\1", "snapshot-version"),
        (16, b"unicorn 2.2.0", "snapshot-engine"),
        (12, b"\0\0\0\0", "snapshot-records"),
        (12, b"\xff\xff\xff\xff", "snapshot-records"),
        (32, b"\x02", "snapshot-record"),
        (32, b"\x07", "snapshot-record"),
        (48, b"\xff" * 8, "snapshot-record"),
        (60, b"\x01", "snapshot-record"),
        (70, b"\xff", "snapshot-crc"),
    ],
)
def test_what_is_no_file_of_ours(at: int, put: bytes, code: str) -> None:
    data = bytearray(a_file())
    data[at : at + len(put)] = put
    assert refused(bytes(data)) == code


@pytest.mark.parametrize("size", [0, 1, 31, 32, 63, 64, 1000, -1])
def test_a_file_that_was_cut(size: int) -> None:
    assert refused(a_file()[:size]) in ("snapshot-truncated", "snapshot-records")


def test_bytes_after_the_end() -> None:
    assert refused(a_file() + b"x") == "snapshot-records"


def with_state(text: bytes, *records: tuple[int, int, int, bytes]) -> bytes:
    """A file with any state and other records."""
    parts = [struct.pack("<8sII16s", b"XenlvSnp", VERSION, 1 + len(records), b"unicorn 2.1.4")]
    for kind, domid, place, data in ((1, 0, 0, text), *records):
        parts += [struct.pack("<IIQQII", kind, domid, place, len(data), binascii.crc32(data), 0)]
        parts += [data]
    return b"".join(parts)


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"nonsense", b'{"a": NaN}', b"[" * 100000, b'{"a": 1e999}x', b"\xff", b"1" * 5000],
)
def test_states_that_are_none(text: bytes) -> None:
    assert refused(with_state(text)) == "snapshot-json"


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ((3, 1, 5, b"x"), "snapshot-memory"),
        ((3, 1, 1 << 50, b"x"), "snapshot-memory"),
        ((3, 1, 0, b""), "snapshot-memory"),
        ((2, 0, 1, b"x"), "snapshot-record"),
        ((1, 0, 0, b"{}"), "snapshot-record"),
    ],
)
def test_records_that_can_not_be(record: tuple[int, int, int, bytes], code: str) -> None:
    assert refused(with_state(b"{}", record)) == code


def test_memory_twice_and_of_too_many() -> None:
    assert refused(with_state(b"{}", (3, 1, 0, b"x"), (3, 1, 0, b"y"))) == "snapshot-memory"
    many = [(3, domid, 0, b"x") for domid in range(65)]
    assert refused(with_state(b"{}", *many)) == "snapshot-memory"


# ---- states that lie -----------------------------------------------------------------------------


def restored(world: World, state: Any) -> None:
    """Restores a changed state, and lets it run a while if it passed."""
    base = a_snapshot()
    restore_world(world, Snapshot(state, base.memory, base.files))
    world.run(until_ns=world.clock.now_ns + 2_000_000)
    save_world(world)


def put(state: Any, path: str, value: Any) -> Any:
    """A copy of a state with another value at a place."""
    changed = copy.deepcopy(state)
    *steps, last = path.split(".")
    at = changed
    for step in steps:
        at = at[int(step) if isinstance(at, list) else step]
    at[int(last) if isinstance(at, list) else last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("clock_ns", -1),
        ("clock_ns", True),
        ("guests", []),
        ("guests.0.head.domid", 0),
        ("guests.1.head.domid", 1),
        ("guests.0.head.memory_bytes", (1 << 20) + 1),
        ("guests.0.head.memory_bytes", 1 << 40),
        ("guests.0.head.memory_bytes", 1 << 20),
        ("guests.0.head.kernel", 7),
        ("guests.0.head.kernel", None),
        ("guests.0.head.console.1", 900),
        ("guests.0.head.holes", [5]),
        ("guests.0.domain.0.fresh", 1),
        ("guests.0.domain.0.freed", [1, 1]),
        ("guests.0.domain.0.held", []),
        ("guests.0.domain.1.0.1.1.remote_port", 900),
        ("guests.0.domain.1.1", 65),
        ("guests.0.domain.2.3.0.1.readers", 256),
        ("guests.0.domain.2.3.0.1.writers", 0),
        ("guests.1.domain.3.0.0.1.ref", 400),
        ("guests.1.domain.3.2", 1),
        ("guests.1.domain.0.moved.0.1.kind", "nonsense"),
        ("guests.1.domain.4.1", [1, 0]),
        ("guests.0.domain.6.e820", None),
        ("guests.0.vcpu.engine", ""),
        ("guests.0.vcpu.counters.0", 1.5),
        ("store.nodes.0.0", ""),
        ("store.nodes.3.0", "L25vd2hlcmUveA=="),
        ("store.connections.0.who", ["ring", 9]),
        ("store.connections", []),
        ("host.events.0", []),
        ("parts", {"more": 1}),
        ("parts", 1),
    ],
)
def test_states_that_lie(world: World, path: str, value: Any) -> None:
    with pytest.raises(ImageError) as error:
        restored(world, put(a_snapshot().state, path, value))
    assert "\n" not in str(error.value)


def what_is_wrong(trial: Callable[[], None]) -> str:
    """What the one error says that a trial may raise; empty if it raised none."""
    try:
        trial()
    except ImageError as error:
        return str(error)
    return ""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each number, string and null."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, list):
        yield path
        for index, each in enumerate(value):
            yield from leaves(each, (*path, index))
    else:
        yield path


@cache
def places() -> list[tuple[Any, ...]]:
    """All of them in the snapshot, without the MSRs, of which there are hundreds."""
    found = list(leaves(a_snapshot().state))
    return [path for path in found if "msrs" not in path and "nodes" not in path] + [
        path for path in found if "nodes" in path
    ][:200]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([1 << 20, (1 << 31) - 1, 1 << 32, 1 << 63, (1 << 64) - 1, 0x1000]),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.lists(st.integers(0, 5), max_size=3),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 1 << 20), VALUES), min_size=1, max_size=3))
def test_any_change_is_refused_or_harmless(world: World, changes: list[tuple[int, Any]]) -> None:
    state = json.loads(json.dumps(a_snapshot().state))
    for which, value in changes:
        path = places()[which % len(places())]
        at = state
        try:
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    assert "\n" not in what_is_wrong(lambda: restored(world, state))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1 << 24), st.binary(min_size=1, max_size=12))
def test_any_bytes_are_one_error_or_harmless(world: World, at: int, put_there: bytes) -> None:
    data = bytearray(a_file())
    at %= len(data)
    data[at : at + len(put_there)] = put_there
    assert "\n" not in what_is_wrong(lambda: restore_world(world, read(bytes(data))))
