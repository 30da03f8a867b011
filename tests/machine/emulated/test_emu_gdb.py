"""GDB's protocol without a socket: packets, registers, memory, breakpoints, the guest's end."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.building import build_kernel
from kernels.handover.script_kernel import script_kernel
from machine.emulated import small_guests
from machine.emulated.rsp import RspClient

from xenlive.machine.emulated.lens import gdbpackets
from xenlive.machine.emulated.lens.gdb import Stub
from xenlive.machine.emulated.lens.gdbpackets import (
    Arrived,
    PacketReader,
    decode_number,
    encode_packet,
    unescape,
)
from xenlive.machine.emulated.lens.gdbregisters import registers, target_description
from xenlive.machine.emulated.lens.gdbtarget import Stop, Target
from xenlive.machine.emulated.stop import KILLED
from xenlive.machine.emulated.world import World

pytestmark = pytest.mark.peer

COUNTER = small_guests.kernel("1: incl %eax\n movl %eax, 0x9000\n jmp 1b")


class Debugged:
    """A guest and its debugger; `asked` is what it sends when the guest has stopped."""

    def __init__(self, kernel: bytes, cmdline: str = "") -> None:
        self.world = World()
        self.guest = self.world.add_guest(memory_bytes=16 << 20)
        self.guest.boot(kernel, cmdline)
        assert self.guest.loaded is not None
        #: Where its first instruction is, and the loop of COUNTER.
        self.entry = self.guest.loaded.entry
        self.loop = self.entry + 7
        self.stub = Stub(Target(self.guest, self._on_stop))
        self.client = RspClient(self.stub.receive)
        self.stops: list[bytes] = []
        self.asked: list[bytes] = []
        self.answers: list[bytes] = []

    def _on_stop(self, stop: Stop) -> None:
        self.stops.append(self.client.take(self.stub.stopped(stop)))
        while not self.stub.is_running:
            payload = self.asked.pop(0) if self.asked else b"D"
            self.answers.append(self.client.ask(payload))

    def run(self, *asked: bytes, slices: int = 1) -> list[bytes]:
        """Lets the guest run; at each stop the debugger sends what is next. Its answers."""
        self.asked, self.answers = list(asked), []
        assert self.stub.is_running
        for _ in range(slices):
            self.world.step()
        return self.answers

    def close(self) -> None:
        self.world.close()


@pytest.fixture
def counter() -> Iterator[Debugged]:
    made = Debugged(build_kernel(COUNTER).read_bytes())
    yield made
    made.close()


# ---- packets -------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=60), max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_packets_come_out_as_they_went_in_however_they_are_cut(
    payloads: list[bytes], data: st.DataObject
) -> None:
    stream = b"".join(encode_packet(payload) for payload in payloads)
    cut = data.draw(st.integers(0, len(stream)))
    reader = PacketReader()
    found = reader.receive(stream[:cut]) + reader.receive(stream[cut:])
    assert found == [Arrived(gdbpackets.PACKET, payload) for payload in payloads]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"$?#3f", [Arrived("packet", b"?")]),
        (b"junk$?#3F+", [Arrived("packet", b"?")]),
        (b"$?#40", [Arrived("bad-packet")]),
        (b"$?#zz", [Arrived("bad-packet")]),
        (b"\x03$?", [Arrived("ctrl-c")]),
        (b"-", [Arrived("again")]),
        (b"$lost$?#3f", [Arrived("packet", b"?")]),
        (b"$\x03#03", [Arrived("packet", b"\x03")]),
        (b"$" + b"a" * 0x5000 + b"#00", [Arrived("bad-packet")]),
    ],
)
def test_what_arrives(stream: bytes, expected: list[Arrived]) -> None:
    assert PacketReader().receive(stream) == expected


def test_escapes() -> None:
    assert encode_packet(b"a}$") == b"$a}]}\x04#bc"
    assert unescape(b"a}]}\x04") == b"a}$"
    assert unescape(b"a}") == b"a"


def test_numbers() -> None:
    assert decode_number(b"fFfF") == 0xFFFF
    for text in (b"", b"-1", b"0x1", b" 1", b"1_0", b"1" * 17):
        assert decode_number(text) is None


# ---- registers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_64bit", [True, False])
def test_the_description_has_what_gdb_demands(is_64bit: bool) -> None:
    """Appendix G.5.5, "i386 Features": rax..gs, st0..fop; xmm0.., mxcsr."""
    root = ET.fromstring(target_description(is_64bit).decode().partition("?>")[2])
    assert root.findtext("architecture") == ("i386:x86-64" if is_64bit else "i386")
    names = {
        feature.get("name"): [register.get("name") for register in feature.iter("reg")]
        for feature in root.iter("feature")
    }
    core = names["org.gnu.gdb.i386.core"]
    first = ["rax", "rbx", "rcx", "rdx"] if is_64bit else ["eax", "ecx", "edx", "ebx"]
    assert core[:4] == first
    assert len(core) == (24 if is_64bit else 16) + 8 + 8
    assert len(names["org.gnu.gdb.i386.sse"]) == (17 if is_64bit else 9)
    table = registers(is_64bit)
    for number, element in enumerate(root.iter("reg")):
        assert element.get("regnum") == str(number)
        assert (element.get("name"), element.get("bitsize")) == (
            table[number].shown,
            str(table[number].bits),
        )


def number_of(debugged: Debugged, name: str) -> bytes:
    names = [register.name for register in registers(debugged.guest.kernel[4] == 2)]
    return b"%x" % names.index(name)


def test_registers_one_by_one_and_all(counter: Debugged) -> None:
    client = counter.client
    engine = counter.guest.vcpu.engine
    rip = number_of(counter, "rip")
    expected = engine.reg("rip").to_bytes(8, "little").hex().encode()
    assert client.ask(b"p" + rip) == expected
    for name, value in (("rax", "8877665544332211"), ("eflags", "46000000")):
        assert client.ask(b"P%s=%s" % (number_of(counter, name), value.encode())) == b"OK"
    assert engine.reg("rax") == 0x1122334455667788
    assert engine.eflags == 0x46
    everything = client.ask(b"g")
    assert everything.startswith(b"8877665544332211")
    assert len(everything) == 2 * sum(register.size for register in registers(True))
    changed = b"0100000000000000" + everything[16:]
    assert client.ask(b"G" + changed) == b"OK"
    assert engine.reg("rax") == 1


def test_float_registers(counter: Debugged) -> None:
    client = counter.client
    for name, value in (
        ("xmm15", b"00112233445566778899aabbccddeeff"),
        ("xmm0", b"ff" * 16),
        ("st0", b"0000000000000080ff3f"),
        ("st7", b"35c26821a2da0fc90040"),
        ("mxcsr", b"801f0000"),
    ):
        number = number_of(counter, name)
        assert client.ask(b"P%s=%s" % (number, value)) == b"OK"
        assert client.ask(b"p" + number) == value


@pytest.mark.parametrize("name", ["cs", "cr0", "cr3", "efer", "kernel_gs_base"])
def test_what_can_only_be_read(counter: Debugged, name: str) -> None:
    number = number_of(counter, name)
    value = counter.client.ask(b"p" + number)
    assert counter.client.ask(b"P%s=%s" % (number, value)) == b"OK"
    other = bytes(byte ^ 1 for byte in bytes.fromhex(value.decode())).hex().encode()
    assert counter.client.ask(b"P%s=%s" % (number, other)) == b"E16"
    assert counter.client.ask(b"p" + number) == value


# ---- memory --------------------------------------------------------------------------------------


def test_memory_without_paging(counter: Debugged) -> None:
    client = counter.client
    assert client.ask(b"M8ffe,4:01020304") == b"OK"
    assert client.ask(b"m8ffe,4") == b"01020304"
    assert client.ask(b"X8ffe,2:$#") == b"OK"  # escaped on the way
    assert client.ask(b"x8ffe,3") == b"b$#\x03"
    assert client.ask(b"m8ffe,0") == b""


def test_memory_that_is_not_there(counter: Debugged) -> None:
    client = counter.client
    end = 0x1000000
    assert client.ask(b"m%x,10" % (end - 4)) == b"00000000"
    assert client.ask(b"m%x,10" % end) == b"E0e"
    assert client.ask(b"M%x,8:0102030405060708" % (end - 4)) == b"E0e"
    assert client.ask(b"m%x,4" % (end - 4)) == b"00000000"


def test_code_that_is_written_is_executed(counter: Debugged) -> None:
    counter.client.ask(b"c")
    counter.run()
    assert counter.client.take(counter.stub.receive(b"\x03")).startswith(b"T02")
    for at in range(counter.loop, counter.loop + 8):
        assert counter.client.ask(b"M%x,1:f4" % at) == b"OK"  # hlt, with interrupts off
    counter.client.ask(b"c")
    counter.run()
    assert counter.guest.stop is not None


# ---- stopping and going on -----------------------------------------------------------------------


def test_a_breakpoint_and_steps(counter: Debugged) -> None:
    client = counter.client
    assert client.ask(b"qSupported:swbreak+;hwbreak+").startswith(b"PacketSize=4000;")
    assert client.ask(b"?") == b"T02thread:1;"
    loop = counter.loop
    assert client.ask(b"Z0,%x,1" % loop) == b"OK"
    assert client.ask(b"vCont;c") == b""
    eip = number_of(counter, "rip")
    answers = counter.run(
        *(b"p" + eip, b"p0", b"c", b"p0", b"s", b"p" + eip, b"z0,%x,1" % loop, b"vCont;s:1", b"D")
    )
    assert counter.stops == [b"T05thread:1;swbreak:;"] * 2 + [b"T05thread:1;"] * 2
    where = [answers[0], answers[5]]
    assert [int.from_bytes(bytes.fromhex(w.decode()), "little") for w in where] == [loop, loop + 1]
    assert [answers[1][:2], answers[3][:2]] == [b"00", b"01"]
    assert answers[-1] == b"OK"
    assert counter.stub.is_detached


def test_watchpoints(counter: Debugged) -> None:
    client = counter.client
    assert client.ask(b"Z2,9002,4") == b"OK"
    assert client.ask(b"Z3,9000,4") == b"OK"
    for refused in (b"Z2,1000000,4", b"Z4,9000,0", b"Z4,0,fffffff"):
        assert client.ask(refused) == b"E0e"
    client.ask(b"c")
    rip = number_of(counter, "rip")
    answers = counter.run(
        *(b"p" + rip, b"m9000,4", b"z2,9002,4", b"Z4,9000,1", b"c", b"m9000,4", b"s", b"s", b"D")
    )
    assert counter.stops[:2] == [b"T05thread:1;watch:9002;", b"T05thread:1;awatch:9000;"]
    assert int.from_bytes(bytes.fromhex(answers[0].decode()), "little") == counter.loop + 6
    assert [answers[1], answers[5]] == [b"01000000", b"02000000"]
    assert counter.stops[2:] == [b"T05thread:1;"] * 2


def test_stepping_within_a_range(counter: Debugged) -> None:
    client = counter.client
    start, loop, jump = counter.entry, counter.loop, counter.loop + 6
    assert client.ask(b"vCont;r%x,%x:1" % (start, loop)) == b""
    eip = number_of(counter, "rip")
    answers = counter.run(b"p" + eip, b"vCont;r%x,%x:1" % (loop, jump), b"p" + eip, b"D")
    found = [int.from_bytes(bytes.fromhex(answers[n].decode()), "little") for n in (0, 2)]
    assert found == [loop, jump]


def test_ctrl_c_stops_and_a_second_one_is_nothing(counter: Debugged) -> None:
    counter.client.ask(b"c")
    counter.run()
    assert counter.client.take(counter.stub.receive(b"\x03")) == b"T02thread:1;"
    assert counter.stub.receive(b"\x03") == b""
    assert not counter.stub.is_running


def test_going_on_elsewhere(counter: Debugged) -> None:
    client, loop, rax = counter.client, counter.loop, b"0900000000000000"
    client.ask(b"Z1,%x,1" % loop)
    client.ask(b"c%x" % counter.entry)
    jumps = b"c%x" % (loop + 6), b"C05;%x" % counter.entry
    counter.run(b"P0=" + rax, jumps[0], b"p0", jumps[1], b"p0", b"c", b"p0", b"D")
    assert [counter.answers[n] for n in (2, 4, 6)] == [rax, rax, b"0a" + rax[2:]]
    assert len(counter.stops) == 4


def test_a_hangup_lets_the_guest_go(counter: Debugged) -> None:
    counter.client.ask(b"Z0,%x,1" % counter.loop)
    counter.client.ask(b"s")
    counter.stub.hang_up()
    before = counter.guest.vcpu.blocks
    counter.world.step()
    assert counter.guest.vcpu.blocks - before >= 50_000
    assert counter.stops == []
    assert counter.stub.receive(b"$?#3f") == b""


def test_killing_ends_it(counter: Debugged) -> None:
    assert counter.client.ask(b"vKill;1") == b"OK"
    counter.world.step()
    assert counter.guest.stop is not None
    assert counter.guest.stop.kind == KILLED


@pytest.mark.parametrize(
    ("body", "end", "code", "is_failure"),
    [
        ("shutdown 0", b"W00", 0, False),
        ("shutdown 1", b"W0b", 11, False),
        ("ud2", b"X06", 20, True),
    ],
)
def test_the_end(body: str, end: bytes, code: int, is_failure: bool) -> None:
    debugged = Debugged(build_kernel(small_guests.kernel(body)).read_bytes())
    debugged.client.ask(b"c")
    debugged.run()
    assert debugged.guest.stop is not None
    said = debugged.client.take(debugged.stub.ended(code, is_failure))
    if is_failure:
        assert said == b"T06thread:1;"
        assert debugged.client.ask(b"?") == b"T06thread:1;"
        assert len(debugged.client.ask(b"g")) > 100
        said = debugged.client.ask(b"c")
    assert said == end
    assert debugged.stub.is_detached
    debugged.close()


def test_questions(counter: Debugged) -> None:
    client = counter.client
    for asked, answer in (
        *((b"qC", b"QC1"), (b"qfThreadInfo", b"m1"), (b"qsThreadInfo", b"l"), (b"T1", b"OK")),
        *((b"T2", b"E16"), (b"Hg0", b"OK"), (b"qAttached", b"1"), (b"qSymbol::", b"OK")),
        *((b"vMustReplyEmpty", b""), (b"vCont?", b"vCont;c;C;s;S;r"), (b"Z9,0,1", b"")),
        *((b"qRcmd,zz", b"E16"), (b"p999", b"E16"), (b"m", b"E16"), (b"vCont;c:7", b"E16")),
    ):
        assert client.ask(asked) == answer, asked
    info = bytes.fromhex(client.ask(b"qRcmd," + b"info".hex().encode()).decode()).decode()
    assert "32-bit code, ring 0, no paging" in info
    assert "0 blocks of code" in info


def test_the_description_in_pieces(counter: Debugged) -> None:
    whole, at = b"", 0
    while True:
        part = counter.client.ask(b"qXfer:features:read:target.xml:%x,100" % at)
        whole, at = whole + part[1:], at + 0x100
        if part[:1] == b"l":
            break
    assert whole == target_description(True)


def test_without_acknowledgements(counter: Debugged) -> None:
    assert counter.stub.receive(b"$?#00") == b"-"
    first = counter.stub.receive(b"$qC#b4")
    assert first == b"+$QC1#c5"
    assert counter.stub.receive(b"-") == b"$QC1#c5"
    counter.client.no_acks()
    assert counter.stub.receive(b"$qC#b4") == b"$QC1#c5"
    assert counter.stub.receive(b"$?#00").startswith(b"$E16#")


def test_a_32_bit_kernel_has_32_bit_registers() -> None:
    debugged = Debugged(script_kernel(32))
    assert b"<architecture>i386</architecture>" in debugged.client.ask(
        b"qXfer:features:read:target.xml:0,fff"
    )
    assert len(debugged.client.ask(b"p8")) == 8
    debugged.close()


# ---- anything ------------------------------------------------------------------------------------

_WORDS = st.sampled_from(
    b"g G p P m M X x Z z c s C S v q Q H T vCont; vCont;r qRcmd, qXfer:features:read:".split()
)
_NUMBERS = st.sampled_from([b"0", b"1", b"5", b"100007", b"f" * 16, b"1000000", b"-1", b""])
_MARKS = st.sampled_from([b",", b":", b";", b"=", b"", b"}", b"\x03"])
_PAYLOADS = st.one_of(
    st.binary(max_size=40),
    st.tuples(_WORDS, _NUMBERS, _MARKS, _NUMBERS, _MARKS, st.binary(max_size=12)).map(b"".join),
)


@given(st.lists(_PAYLOADS, max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_packet_gets_one_answer(payloads: list[bytes]) -> None:
    debugged = fuzzed()
    stub = Stub(Target(debugged.guest, lambda _: stub.stopped(Stop("step"))))
    client = RspClient(stub.receive)
    for payload in payloads:
        if stub.is_detached:
            break
        answer = stub.receive(encode_packet(payload))
        if stub._acknowledges or payload == b"QStartNoAckMode":
            assert answer[:1] == b"+"
        if stub.is_running and not stub.is_detached:
            assert answer in (b"", b"+")
            debugged.guest.vcpu.run(5)
            if stub.is_running:
                client.take(stub.receive(b"\x03"))
        elif not stub.is_detached:
            client.take(answer)
            assert b"$" in answer
    stub.hang_up()


_made: list[Debugged] = []


def fuzzed() -> Debugged:
    """A guest at its entry, the same one each time: making it costs more than a run."""
    if not _made:
        _made.append(Debugged(build_kernel(COUNTER).read_bytes()))
    debugged = _made[0]
    debugged.guest.vcpu.enter_pvh(debugged.entry, 0x9000)
    return debugged
