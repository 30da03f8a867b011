"""Each hypercall, operation and register, asked as a real Xen was: the same answers.

A kernel of ours was booted as a PVH guest on Debian's Xen 4.17.7 and on this machine, with the
same scripts (`tests/kernels/probe`). What Xen answered is kept there, under the names of the
functions of Xen that decide it. What differs here knowingly is named below, each with its reason.
"""

from __future__ import annotations

import pytest
from kernels.probe.answers import GONE, read_answers
from kernels.probe.probe_kernel import probe_kernel
from kernels.probe.script import MEMORY_BYTES
from kernels.probe.topics import TOPICS, domid, script

from xenlive.machine.emulated import world as worlds
from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.stop import SHUTDOWN
from xenlive.machine.emulated.world import World

pytestmark = pytest.mark.peer

_NO_AVX = "the emulator has no AVX and what came after it; CPUID does not offer them"
_OWN_CLOCK = "the time stamp counter is virtual time, of 1 GHz"
_WIDE_CS = "the emulator keeps 16 bits of SYSENTER_CS, which is all that SYSENTER looks at"
_PAT = "the machine that the real Xen ran on (QEMU) checked and kept PAT unlike a processor"

#: Topic and name of what is answered differently, and why.
DIFFERENT = {
    ("leaves", "leaf 0x1.0x0"): _NO_AVX,
    ("leaves", "leaf 0x7.0x0"): _NO_AVX,
    ("leaves", "leaf 0xd.0x0"): _NO_AVX,
    ("leaves", "leaf 0xd.0x1"): _NO_AVX,
    ("leaves", "leaf 0xd.0x2"): _NO_AVX,
    ("leaves", "leaf 0x80000001.0x0"): _NO_AVX,
    ("leaves", "leaf 0x40000003.0x0"): _OWN_CLOCK,
    ("leaves", "leaf 0x40000003.0x1"): _OWN_CLOCK,
    ("leaves", "leaf 0x40000003.0x2"): _OWN_CLOCK,
    ("registers", "rdmsr 0x174 (2)"): _WIDE_CS,
    ("registers", "rdmsr 0x277"): _PAT,
    ("registers", "wrmsr 0x277 = 0xffffffffffffffff"): _PAT,
    ("registers", "rdmsr 0x277 (2)"): _PAT,
}


@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("topic", TOPICS)
def test_answers_are_those_of_a_real_xen(
    topic: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, console = script(topic, bits), bytearray()
    monkeypatch.setattr(worlds, "FIRST_DOMID", domid(topic, bits))
    with World() as world:
        guest = world.add_guest("probe", MEMORY_BYTES, console.extend)
        guest.boot(probe_kernel(bits), modules=[Module(asked.encode())])
        world.run()
        assert guest.stop is not None
        assert guest.stop.kind == SHUTDOWN
    answers = asked.answers(console.decode())
    real = read_answers(topic, bits)
    assert [one.name for one in asked.asked] == list(real)
    differing = {
        name: f"here {answers.get(name, GONE)}, on Xen {answer} ({one.source})"
        for one, (name, answer) in zip(asked.asked, real.items(), strict=True)
        if answers.get(name, GONE) != answer and (topic, name) not in DIFFERENT
    }
    assert not differing
    # What is excused does differ.
    excused = [name for where, name in DIFFERENT if where == topic]
    assert all(answers[name] != real[name] for name in excused)


def test_every_hypercall_is_asked() -> None:
    answers = read_answers("numbers", 64)
    assert all(f"{number:#x}: no operation" in answers for number in range(64))
