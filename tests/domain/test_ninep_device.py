"""The 9pfs device over kernels: made, used, handed over, taken over."""

from __future__ import annotations

import errno
import json
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from domain.ninepworld import World

from xenlive.abi import xen9pfs as abi
from xenlive.errors import BootError, HypercallError, NinePError, OutOfSpace, UpdateError
from xenlive.memory.address import PAGE_SIZE, Frame
from xenlive.ninep.tree import MemoryTree

RECORDINGS = Path(__file__).parent.parent / "vectors" / "minios.tar.gz"
WRAP = 2**32


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


# -- one kernel ----------------------------------------------------------------------------------


def test_files() -> None:
    world = World()
    front = world.first_kernel()
    data = bytes(i * 7 % 253 for i in range(200_000))
    assert front.write_file("/state", pieces(data, 70_001)) == len(data)
    assert front.stat("/state").length == len(data)
    assert front.read_file("/state") == data
    assert front.write_file("/state", [b"shorter"]) == 7
    assert front.read_file("/state") == b"shorter"
    assert front.write_file("/empty", []) == 0
    assert front.read_file("/empty") == b""
    front.remove("/state")
    with pytest.raises(NinePError) as caught:
        front.stat("/state")
    assert caught.value.errno == errno.ENOENT
    assert world.back is not None
    assert world.back.server.fids() == {0: ()}
    assert (world.refused, world.n_connects) == (None, 1)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_other_ring_orders(order: int) -> None:
    world = World(n_module_pages=2 + (1 << order))
    front = world.first_kernel(order)
    data = bytes(i % 251 for i in range(300_000))
    front.write_file("/state", [data])
    assert front.read_file("/state") == data
    front.save()
    assert world.next_kernel().read_file("/state") == data


def test_paths() -> None:
    world = World()
    front = world.first_kernel()
    path: tuple[bytes, ...] = ()
    for _ in range(40):
        path = (*path, b"d")
        world.tree.mkdir(path, 0o700)
    deep = "/" + "d/" * 40 + "state"
    front.write_file(deep, [b"deep"])
    assert front.read_file(deep) == b"deep"
    for bad, number in (
        ("/" + "d/" * 20 + "x/y/z", errno.ENOENT),
        ("/" + "d/" * 39 + "x", errno.ENOENT),
        ("/x/y", errno.ENOENT),
        ("/..", errno.ENOENT),
        ("/d/../d", errno.ENOENT),
        ("state", errno.EINVAL),
    ):
        with pytest.raises(NinePError) as caught:
            front.read_file(bad)
        assert caught.value.errno == number, bad
    for bad in ("/", "/d"):
        with pytest.raises(NinePError):
            front.write_file(bad, [b"x"])
    assert world.back is not None
    assert world.back.server.fids() == {0: ()}
    front.save()


def test_space_ends_in_the_middle() -> None:
    world = World(tree=MemoryTree(100_000))
    front = world.first_kernel()
    with pytest.raises(NinePError) as caught:
        front.write_file("/state", [bytes(60_000), bytes(60_000)])
    assert caught.value.errno == errno.ENOSPC
    front.remove("/state")
    front.write_file("/state", [b"fits"])
    front.save()


def test_a_writer_that_fails_leaves_no_file_open() -> None:
    world = World()
    front = world.first_kernel()

    def chunks() -> Iterator[bytes]:
        yield bytes(50_000)
        raise KeyError("no such node")

    with pytest.raises(KeyError):
        front.write_file("/state", chunks())
    assert world.back is not None
    assert world.back.server.fids() == {0: ()}
    front.save()


def test_a_chunk_may_be_used_again_for_the_next_one() -> None:
    world = World()
    front = world.first_kernel()
    buffer = bytearray(50_000)

    def chunks() -> Iterator[bytearray]:
        for n in range(5):
            buffer[:] = bytes([n]) * len(buffer)
            yield buffer

    front.write_file("/state", chunks())
    assert front.read_file("/state") == b"".join(bytes([n]) * 50_000 for n in range(5))


def test_a_file_that_is_too_long_is_not_read() -> None:
    front = World().first_kernel()
    front.write_file("/state", [bytes(1000)])
    with pytest.raises(OutOfSpace):
        front.read_file("/state", limit_bytes=999)
    assert len(front.read_file("/state", limit_bytes=1000)) == 1000


# -- making a device -----------------------------------------------------------------------------


def test_pages_references_and_record_are_as_recorded_from_mini_os() -> None:
    files, index = recordings()
    world = World()
    world.events.alloc_unbound(0)  # Mini-OS' timer has the first free port, 3
    world.first_kernel()
    recorded = files["p9-18-64.02.boot0-prekexec.module.bin"]
    assert world.module().owners() == bytes(17)
    assert world.module().read_record(0) == recorded[17 * PAGE_SIZE + 96 :][:16]
    # ring_order and ref[]
    assert world.ram[128 : 132 + 64] == recorded[128 : 132 + 64]
    assert grants_of(world) == recorded_grants(index)


def test_making_a_device_clears_its_pages() -> None:
    world = World()
    world.ram[: 17 * PAGE_SIZE] = b"\xaa" * (17 * PAGE_SIZE)
    assert world.first_kernel().read_file is not None
    assert b"\xaa" not in world.ram[: 17 * PAGE_SIZE]


def snapshot(world: World) -> tuple[bytes, bytes, int, dict[int, int]]:
    module = world.module()
    return module.owners(), bytes(world.grant_frames), len(module.records()), world.events.ports()


@pytest.mark.parametrize("error", [HypercallError("connect", 22), OutOfSpace("pages", 1, 0)])
def test_a_device_that_is_not_connected_is_given_back(error: Exception) -> None:
    world = World()
    owners, _, _, ports = snapshot(world)

    def refuse(ring_ref: int, port: int) -> None:
        raise error

    for _ in range(3):
        with pytest.raises(type(error)):
            world.first_kernel(connect=refuse)
        now = snapshot(world)
        assert (now[0], now[2], now[3]) == (owners, 1, ports)
        assert all(
            flags == 0 for flags, _, _ in struct.iter_unpack("<HHI", bytes(world.grant_frames))
        )
    with pytest.raises(BootError, match="9pfs-dead-grant"):
        world.next_kernel()
    front = world.first_kernel()
    front.write_file("/state", [b"works"])
    assert (front.device.record, len(world.module().records())) == (0, 1)


def test_a_backend_that_never_answers_keeps_its_pages() -> None:
    """Its grants are in use: the pages must not be given to anybody else."""
    world = World()

    def connect_only(ring_ref: int, port: int) -> None:
        world.connect(ring_ref, port)
        world.events.listen(port, None)

    with pytest.raises(Exception, match="no answer within"):
        world.first_kernel(connect=connect_only)
    assert world.module().owners() == bytes(17)
    with pytest.raises(OutOfSpace):
        world.first_kernel()
    assert len(world.module().records()) == 1


@pytest.mark.parametrize("what", ["pages", "records", "references", "ports"])
def test_running_out_changes_nothing(what: str) -> None:
    world = World(n_module_pages=17 if what == "pages" else 18)
    module, grants = world.module(), world.grants()
    if what == "records":
        while True:
            try:
                module.add_record(2, b"")
            except OutOfSpace:
                break
    elif what == "references":
        while grants.free_refs >= 17:
            grants.grant_access(0, Frame(1))
    elif what == "ports":
        while True:
            try:
                world.events.alloc_unbound(0)
            except HypercallError:
                break
    before = snapshot(world)
    with pytest.raises((OutOfSpace, HypercallError)):
        world.first_kernel()
    after = snapshot(world)
    assert (after[0], after[1], after[3]) == (before[0], before[1], before[3])
    assert world.n_connects == 0


# -- over kernels --------------------------------------------------------------------------------


def test_three_kernels_one_device() -> None:
    """A writes, B reads and writes more, and so on: nothing connects again, indices go on."""
    world = World()
    front = world.first_kernel()
    back = world.back
    data: dict[str, bytes] = {}
    seen: list[tuple[int, int]] = []
    for kernel in range(4):
        name = f"/state{kernel}"
        data[name] = bytes((i + kernel) % 256 for i in range(90_000 + kernel))
        front.write_file(name, pieces(data[name], 33_333))
        for known, content in data.items():
            assert front.read_file(known) == content
        assert world.module().read_record(0)[8:] == (
            struct.pack("<II", *seen[-1]) if seen else bytes(8)
        )
        front.save()
        record = abi.RECORD_9PFS.decode(world.module().read_record(0))
        interface = memoryview(world.ram)[:PAGE_SIZE].cast("I")
        assert record["prod_pvt_out"] == interface[abi.OUT_PROD] == interface[abi.OUT_CONS]
        assert record["cons_pvt_in"] == interface[abi.IN_CONS] == interface[abi.IN_PROD]
        seen.append((record["prod_pvt_out"], record["cons_pvt_in"]))
        refs, grants = front.device.refs, grants_of(world)
        front = world.next_kernel()
        assert front.device.refs == refs
        assert grants_of(world) == grants
    assert seen == sorted(set(seen))
    assert (world.back, world.n_connects, world.refused) == (back, 1, None)
    assert back is not None
    assert back.server.fids() == {0: ()}


def test_indices_run_over_32_bits_and_over_kernels() -> None:
    world = World()
    front = world.first_kernel()
    front.save()
    interface = memoryview(world.ram)[:PAGE_SIZE].cast("I")
    for word, value in ((abi.OUT_PROD, WRAP - 100), (abi.IN_PROD, WRAP - 70)):
        interface[word] = interface[word - 1] = value
    interface[abi.OUT_CONS] = interface[abi.OUT_PROD]
    interface[abi.IN_CONS] = interface[abi.IN_PROD]
    world.module().update_record(0, struct.pack("<II", WRAP - 100, WRAP - 70), 8)
    world.connect(front.device.ring_ref, front.device.port)
    front = world.next_kernel()
    data = bytes(i % 255 for i in range(100_000))
    front.write_file("/state", [data])
    front.save()
    assert world.next_kernel().read_file("/state") == data


def test_a_server_that_forgot_the_root_is_attached_again() -> None:
    world = World()
    front = world.first_kernel()
    front.write_file("/state", [b"kept"])
    front.save()
    assert world.back is not None
    world.back.server.close()
    assert world.next_kernel().read_file("/state") == b"kept"


def test_a_root_that_is_no_directory_is_refused() -> None:
    world = World()
    front = world.first_kernel()
    front.write_file("/state", [b"x"])
    front.save()
    assert world.back is not None
    world.back.server.session.fids[0].path = (b"state",)
    with pytest.raises(BootError, match="9pfs-refused"):
        world.next_kernel()


def test_save_wants_empty_rings() -> None:
    world = World()
    front = world.first_kernel()
    interface = memoryview(world.ram)[:PAGE_SIZE].cast("I")
    interface[abi.IN_PROD] += 7  # a reply that nobody asked for
    before = world.module().read_record(0)
    with pytest.raises(UpdateError, match="7 bytes are on their way"):
        front.save()
    assert world.module().read_record(0) == before


def test_save_insists_on_rest() -> None:
    world = World()
    front = world.first_kernel()
    front.write_file("/state", [b"x"])
    interface = memoryview(world.ram)[:PAGE_SIZE].cast("I")
    world.events.listen(front.device.port, None)
    with pytest.raises(Exception, match="no answer within"):
        front.stat("/state")
    before = world.module().read_record(0)
    with pytest.raises(UpdateError, match="not answered yet"):
        front.save()
    assert world.module().read_record(0) == before
    # the backend comes back to life: the next operation takes the late answer, and all is well
    port = front.device.port
    world.events.listen(port, lambda: world.kick(port))
    assert front.read_file("/state") == b"x"
    front.save()
    assert world.module().read_record(0)[8:12] == struct.pack("<I", interface[abi.OUT_PROD])


# -- taking over what Mini-OS left ---------------------------------------------------------------


def recordings() -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    files = {}
    with tarfile.open(RECORDINGS) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                files[member.name.removeprefix("./")] = content.read()
    index: list[dict[str, Any]] = json.loads(files["index.json"])
    return files, [entry for entry in index if entry["file"].startswith("p9-18-64")]


def recorded_grants(index: list[dict[str, Any]]) -> dict[int, tuple[int, int, int]]:
    entry = next(e for e in index if "grants_v1_flags_domid_frame" in e)
    grants: dict[str, list[int]] = entry["grants_v1_flags_domid_frame"]
    return {int(ref): (e[0], e[1], e[2]) for ref, e in sorted(grants.items())}


def grants_of(world: World) -> dict[int, tuple[int, int, int]]:
    entries = struct.iter_unpack("<HHI", bytes(world.grant_frames))
    return {ref: (e[0], e[1], e[2]) for ref, e in enumerate(entries) if e[0]}


def test_a_device_that_mini_os_left_is_taken_over() -> None:
    files, index = recordings()
    for name in ("p9-18-64.04.entry1.module.bin", "p9-18-64.08.entry2.module.bin"):
        world = World()
        world.ram[:] = files[name]
        for ref, (flags, domid, frame) in recorded_grants(index).items():
            # as the toolstack would find it: granted, mapped by nobody yet
            struct.pack_into("<HHI", world.grant_frames, ref * 8, flags & ~24, domid, frame)
        while world.events.alloc_unbound(0) != 4:
            pass
        world.connect(2047, 4)
        assert grants_of(world) == recorded_grants(index)
        record = world.module().read_record(0)
        front = world.next_kernel()
        assert (front.device.ring_ref, front.device.port) == (2047, 4)
        assert front.device.refs == list(range(2047, 2030, -1))
        assert front.device.order == 4
        front.write_file("/state", [bytes(40_000)])
        front.save()
        prod, cons = struct.unpack_from("<II", record, 8)
        new_prod, new_cons = struct.unpack_from("<II", world.module().read_record(0), 8)
        assert prod + 40_000 < new_prod < prod + 41_000
        assert cons < new_cons < cons + 1000
        assert world.next_kernel().read_file("/state") == bytes(40_000)
        assert world.refused is None
