"""What a domain does to its host: nothing of it ends the host or keeps it from serving.

Each image here does its worst, before its kernel boots or a moment after, and then is a Xenstore
like any other; a host that has lost its wits would not let it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conformance.servers import XenliveServer
from machine.hosts import descriptors_of, make_image, status, update

from xenlive.client.blocking import Xenstore

# `call` returns the status of a hypercall's answer; `send` waits for none.
TOOLS = """
import errno, os, socket, struct
from xenlive.machine.hosted import hypercall as hc
REAL = sys.argv[1] != "--preflight"
channel = socket.socket(fileno=os.dup(int(sys.argv[1]))) if REAL else None
def send(op, *numbers, payload=b""):
    channel.send(hc.CALL.pack(op, *numbers, *[0] * (4 - len(numbers))) + payload)
def answer():
    packet, ancillary, _, _ = channel.recvmsg(100, 256)
    for _, _, data in ancillary:
        for fd in struct.unpack(f"{len(data) // 4}i", data):
            os.close(fd)
    return hc.ANSWER.unpack(packet)
def call(op, *numbers, payload=b""):
    send(op, *numbers, payload=payload)
    return answer()[0]
"""

# Runs ACT(machine, front) once the kernel is about to serve.
WHEN_BOOTED = """
from xenlive.image import kernel
run = kernel.Kernel.run
def act(machine, front, device):
{act}
def acting(self):
    act(self.machine, self.domain.front, self.domain.front.device)
    run(self)
kernel.Kernel.run = acting
"""


@contextmanager
def serving(tmp_path: Path, before: str = "", act: str = "") -> Iterator[XenliveServer]:
    """A server whose image does `before` before it boots and `act` when it has."""
    indented = "\n".join(f"    {line}" for line in act.splitlines()) or "    pass"
    after = WHEN_BOOTED.format(act=indented)
    image = make_image(tmp_path / "image", before=TOOLS + before, after=after)
    server = XenliveServer(tmp_path / "run", image=image)
    server.start()
    try:
        yield server
    finally:
        server.stop()
    assert not server.rundir.exists(), "something was left behind"


def test_odd_packets_are_answered_one_by_one(tmp_path: Path) -> None:
    before = """
for size in (0, 1, 0, 39, 40 + hc.PAYLOAD_MAX + 1, 60_000, 70_000, 0):
    channel.send(bytes(size))
    status = answer()[0]
    if status != -errno.EINVAL:
        raise SystemExit(f"a packet of {size} bytes is answered with {status}")
"""
    with serving(tmp_path, before) as server:
        assert status(server)["ninepfs"]["connected"]


def test_calls_whose_answers_nobody_reads_wait_and_keep_their_order(tmp_path: Path) -> None:
    # More than a socket holds: the host has to stop taking calls, and must not lose any.
    before = """
channel.setblocking(False)
sent = 0
try:
    while sent < 100_000:
        send(hc.EVTCHN_CLOSE, 500) if sent % 2 else send(99)
        sent += 1
except BlockingIOError:
    pass
channel.setblocking(True)
for number in range(sent):
    status = answer()[0]
    if status != (-errno.EINVAL if number % 2 else -errno.ENOSYS):
        raise SystemExit(f"answer {number} of {sent} is {status}")
"""
    with serving(tmp_path, before) as server:
        assert status(server)["ninepfs"]["connected"]


def test_a_domain_that_dies_with_answers_unread_ends_its_host_in_order(tmp_path: Path) -> None:
    before = "\nif REAL:\n    for _ in range(100):\n        send(hc.MEMORY_MAP)\n    os._exit(7)\n"
    ended = pytest.raises(RuntimeError, match="the domain ended by itself: exit status 7")
    with ended as failure, serving(tmp_path, before):
        pass
    assert "Traceback" not in str(failure.value)
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_closed_takes_its_device_along(tmp_path: Path) -> None:
    act = """
assert call(hc.EVTCHN_CLOSE, device.port) == 0
assert call(hc.NINEPFS_CONNECT, device.ring_ref, device.port) == -errno.EINVAL
machine.notify(device.port)
"""
    with serving(tmp_path, act=act) as server:
        told = status(server)
        assert told["ninepfs"]["connected"] is False
        assert told["ports"] == {}
        with Xenstore.connect(server.socket_path) as store:
            store.write("/a", "1")


def test_closing_and_connecting_in_a_loop_loses_nothing(tmp_path: Path) -> None:
    act = """
for round in range(40):
    machine.notify(device.port)
    assert call(hc.EVTCHN_CLOSE, device.port) == 0
    assert call(hc.EVTCHN_ALLOC_UNBOUND, 0) == 0
    assert call(hc.NINEPFS_CONNECT, device.ring_ref, device.port) == 0
    assert call(hc.NINEPFS_CONNECT, round, device.port) == -errno.EINVAL
assert call(hc.NINEPFS_CONNECT, device.ring_ref, device.port) == 0
"""
    with serving(tmp_path, act=act) as server:
        told = status(server)
        assert told["ninepfs"]["connected"]
        assert (told["ninepfs_connects"], told["ninepfs_losses"]) == (42, 0)
        # Doorbells, the export's root and whatever else a device has: all given back.
        assert len(os.listdir(f"/proc/{server.pid}/fd")) < 40
        assert len(descriptors_of(server.pid)) < 40


def test_doorbells_that_are_full_or_made_to_block_do_not_stop_the_host(tmp_path: Path) -> None:
    act = """
for bell in machine._doorbells[device.port]:
    os.set_blocking(bell, False)
    try:
        os.eventfd_read(bell)
    except BlockingIOError:
        pass
    os.eventfd_write(bell, 2**64 - 2)
    os.set_blocking(bell, True)
# The host takes the one: there is room in it again.
import select
poll = select.poll()
poll.register(machine._doorbells[device.port][0], select.POLLOUT)
assert poll.poll(20_000)
# The other stays full: nobody takes the host's rings.
from xenlive.errors import XenliveError
type(machine).wait = lambda self, port, timeout_s: False
try:
    front.stat("/")
except XenliveError:
    pass
"""
    with serving(tmp_path, act=act) as server:
        assert status(server)["ninepfs"]["connected"]


def test_all_ports_taken_leave_the_host_its_descriptors(tmp_path: Path) -> None:
    act = """
ports = 0
while call(hc.EVTCHN_ALLOC_UNBOUND, 0) == 0:
    ports += 1
assert 1 < ports < 1024, ports
"""
    with serving(tmp_path, act=act) as server:
        assert len(status(server)["ports"]) > 1
        assert update(server).returncode == 0


def test_a_device_that_breaks_the_protocol_is_lost_alone(tmp_path: Path) -> None:
    act = """
frame = machine.grant_frames.cast("Q")[device.ring_ref] >> 32
interface = machine.memory.page(frame).cast("I")
for word in range(64):
    interface[word] ^= 0x5A5A5A5A
machine.notify(device.port)
"""
    with serving(tmp_path, act=act) as server:
        told = status(server)
        assert (told["ninepfs"]["connected"], told["ninepfs_losses"]) == (False, 1)
