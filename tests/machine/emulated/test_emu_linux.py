"""Debian's cloud kernel with a busybox: to a shell, a clock that runs, Xenstore by its own driver.

It is booted once; the tests type into the same shell, one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from kernels.debian import packages
from kernels.debian.initrd import PROMPT, build_initrd

from xenlive.machine.emulated.build import Module
from xenlive.machine.emulated.hypervisor.domain import BOOT_S
from xenlive.machine.emulated.lens import report
from xenlive.machine.emulated.world import WORLD_ENDED, WORLD_PAUSED, World

pytestmark = pytest.mark.peer

SECOND_NS = 1_000_000_000
CMDLINE = "console=hvc0 loglevel=7"


class Linux:
    """The guest, its shell's prompt seen."""

    def __init__(self) -> None:
        kernel = packages.linux_elf()
        busybox = packages.require(packages.busybox(), "busybox-static")
        self.world = World()
        self.seen = bytearray()
        self.guest = self.world.add_guest("linux", 256 << 20, self.seen.extend)
        self.guest.boot(kernel, CMDLINE, [Module(build_initrd(busybox))])
        self.wait_for(PROMPT)
        self.boot_log = self.seen.decode()

    def wait_for(self, text: bytes) -> bytes:
        """What was written up to `text`, which comes within 60 seconds of the guest's."""
        until_ns = self.world.clock.now_ns + 60 * SECOND_NS
        state = self.world.run(until=lambda: text in self.seen, until_ns=until_ns)
        assert state == WORLD_PAUSED, self.seen.decode()
        return bytes(self.seen.partition(text)[0])

    def start(self, command: str) -> None:
        """Types a command, without waiting for its end."""
        self.seen.clear()
        self.guest.console.type(command.encode() + b"\n")

    def shell(self, command: str) -> list[str]:
        """The lines that a command wrote."""
        self.start(command)
        echoed, *lines = self.wait_for(b"\n" + PROMPT).decode().splitlines()
        assert echoed == command, echoed
        return lines

    def now_ns(self) -> int:
        """The world's time."""
        return self.world.clock.now_ns


@pytest.fixture(scope="module")
def linux() -> Iterator[Linux]:
    booted = Linux()
    yield booted
    booted.world.close()


def test_it_finds_the_machine_that_xen_gives(linux: Linux) -> None:
    log = linux.boot_log
    for line in (
        "Hypervisor detected: Xen HVM",
        "Switched APIC routing to physical x2apic",
        "installing Xen timer for CPU 0",
        "Grant tables using version 1 layout",
        "clocksource: Switched to clocksource xen",
    ):
        assert line in log
    for line in ("Call Trace", "unchecked MSR access", "firmware bug", "not listed by the BIOS"):
        assert line.lower() not in log.lower()


def test_typed_commands_work(linux: Linux) -> None:
    assert linux.shell("echo $((6 * 7))") == ["42"]
    assert linux.shell("cat /proc/cmdline") == [CMDLINE]
    assert linux.shell("cat /sys/hypervisor/type /sys/hypervisor/version/major") == ["xen", "4"]
    assert linux.shell("nproc; head -c 5 /dev/zero | wc -c") == ["1", "5"]


def test_the_clock_runs(linux: Linux) -> None:
    def seconds() -> int:
        return int(linux.shell("date +%s")[0])

    first, before_ns = seconds(), linux.now_ns()
    assert abs(first - (BOOT_S + before_ns // SECOND_NS)) <= 1
    assert linux.shell("sleep 30; echo awake") == ["awake"]
    slept_ns = linux.now_ns() - before_ns
    assert 30 * SECOND_NS <= slept_ns < 31 * SECOND_NS
    assert 30 <= seconds() - first <= 31


def test_its_timer_is_xens(linux: Linux) -> None:
    lines = linux.shell("grep timer0 /proc/interrupts; sleep 1; grep timer0 /proc/interrupts")
    before, after = (int(line.split()[1]) for line in lines)
    assert before < after
    source = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert linux.shell(f"cat {source}") == ["xen"]


def test_its_driver_reads_and_writes_our_xenstore(linux: Linux) -> None:
    domid = linux.guest.domain.domid
    assert linux.shell("xs read domid") == [str(domid)]
    assert linux.shell("xs read name") == ["linux"]
    assert linux.shell("xs write data/from-linux 'hello, world'") == []
    toolstack = linux.world.toolstack
    assert toolstack.read(f"/local/domain/{domid}/data/from-linux") == b"hello, world"
    assert linux.shell("xs read /local/domain/0/nothing") == ["xs: EACCES"]


def test_it_watches_our_xenstore(linux: Linux) -> None:
    linux.start("xs watch data/mail 3; echo over")
    linux.wait_for(b"event data/mail\r\n")  # a new watch fires at once
    path = f"/local/domain/{linux.guest.domain.domid}/data/mail"
    for letter in (b"one", b"two"):
        linux.seen.clear()
        linux.world.toolstack.write(path, letter.decode())
        linux.wait_for(b"event data/mail\r\n")
    linux.wait_for(b"over\r\n" + PROMPT)
    assert linux.shell("xs read data/mail") == ["two"]


def test_interrupts_and_exceptions_of_programs_are_its_own_affair(linux: Linux) -> None:
    assert linux.shell("c() { i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done; }") == []
    assert "both" in linux.shell("c & c & wait; echo both")
    killed = linux.shell("sh -c 'kill -SEGV $$'; echo $?")
    assert re.fullmatch(r"139", killed[-1])


def test_it_powers_off_when_the_toolstack_asks(linux: Linux) -> None:
    """The last one: it ends."""
    linux.world.ask_to_shut_down(linux.guest)
    until_ns = linux.now_ns() + 60 * SECOND_NS
    assert linux.world.run(until_ns=until_ns) == WORLD_ENDED, linux.seen.decode()
    assert linux.guest.stop is not None
    assert report.exit_code(linux.guest.stop) == 0
