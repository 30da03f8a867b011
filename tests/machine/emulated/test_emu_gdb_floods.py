"""A debugger that sends a flood: what it is answered is bounded."""

from __future__ import annotations

import pytest
from kernels.handover.script_kernel import script_kernel

from xenlive.machine.emulated.lens.gdb import Stub
from xenlive.machine.emulated.lens.gdbpackets import PAYLOAD_MAX, encode_packet, unescape
from xenlive.machine.emulated.lens.gdbtarget import Target
from xenlive.machine.emulated.world import World

pytestmark = pytest.mark.peer


def test_an_answer_is_repeated_once_for_a_flood_of_requests() -> None:
    with World() as world:
        guest = world.add_guest(memory_bytes=16 << 20)
        guest.boot(script_kernel(64), "")
        stub = Stub(Target(guest, lambda _: None))
        answer = stub.receive(encode_packet(b"m0,2000"))
        assert PAYLOAD_MAX <= len(answer) < PAYLOAD_MAX + 16
        assert stub.receive(b"-" * 1000) == answer[1:]
        assert stub.receive(b"-") == answer[1:]


def test_all_bytes_travel_in_packets() -> None:
    payload = bytes(range(256)) + b"}]}}#$*\x03"
    packet = encode_packet(payload)
    assert unescape(packet[1:-3]) == payload
    assert not set(packet[1:-3]) & set(b"#$*")
