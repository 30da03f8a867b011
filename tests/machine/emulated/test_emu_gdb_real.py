"""GDB itself on our C kernels, through `xenlive boot --gdb`: as a user would."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels.building import build_kernel
from kernels.handover.script_kernel import script_kernel
from machine.emulated import small_guests
from machine.emulated.rsp import RspClient

from xenlive.machine.emulated.lens.gdbpackets import encode_packet
from xenlive.machine.emulated.lens.gdbregisters import registers

pytestmark = pytest.mark.peer

LIMIT_S = 60

#: Goes on for ever: xen_version, again and again.
BUSY = small_guests.kernel("1: hypercall 17, $0, $0\n jmp 1b")


class Boot:
    """`xenlive boot --gdb 0` of a kernel, in a process of its own."""

    def __init__(self, folder: Path, kernel: bytes, *words: str) -> None:
        self.file = folder / "kernel.elf"
        self.file.write_bytes(kernel)
        command = [sys.executable, "-m", "xenlive", "boot", str(self.file), "--gdb", "0", *words]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        found = re.fullmatch(r"waiting for gdb: target remote (127\.0\.0\.1):(\d+)\n", self.said)
        assert found, self.said
        self.port = int(found[2])

    def gdb(self, *commands: str) -> str:
        """What GDB writes when it does `commands` and leaves."""
        words = ["gdb", "-nx", "-batch", str(self.file)]
        first = "set confirm off", "set width 0", f"target remote 127.0.0.1:{self.port}"
        for command in (*first, *commands):
            words += ["-ex", command]
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
        return done.stdout

    def connect(self) -> tuple[socket.socket, RspClient]:
        """A debugger of our own."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)

        def exchange(data: bytes) -> bytes:
            connection.sendall(data)
            return receive(connection)

        return connection, RspClient(exchange)

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr once it has ended."""
        out, errors = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, errors

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def receive(connection: socket.socket) -> bytes:
    """One packet and what stands before it; nothing at the end."""
    data = b""
    while not re.search(rb"#..$", data, re.DOTALL) or data == b"+":
        part = connection.recv(4096)
        if not part:
            break
        data += part
    return data


@pytest.fixture
def boots(tmp_path: Path) -> Iterator[list[Boot]]:
    made: list[Boot] = []
    yield made
    for boot in made:
        boot.close()


def require_gdb() -> None:
    if shutil.which("gdb") is None and not os.environ.get("XENLIVE_REQUIRE_PEERS"):
        pytest.skip("gdb is not there")


def chain(boots: list[Boot], folder: Path, bits: int) -> Boot:
    """A kernel with debug information that enters itself once."""
    require_gdb()
    kernel = script_kernel(bits, for_debugger=True)
    (folder / "next.elf").write_bytes(kernel)
    line = "make 4; ticks 2; kexec 0"
    boots.append(
        Boot(folder, kernel, "--cmdline", line, "--module", f"{folder / 'next.elf'}=make 1; peek 0")
    )
    return boots[-1]


def in_order(text: str, *patterns: str) -> None:
    """Each pattern is found behind the one before."""
    at = 0
    for pattern in patterns:
        found = re.compile(pattern).search(text, at)
        assert found, f"{pattern!r} is not after character {at} of:\n{text}"
        at = found.end()


def test_breakpoints_backtraces_variables_and_steps(boots: list[Boot], tmp_path: Path) -> None:
    boot = chain(boots, tmp_path, 64)
    said = boot.gdb(
        *("break make", "continue", "backtrace", "print n_pages", "next", "step", "finish"),
        *("print start.n_modules", "stepi", "delete", "monitor info", "continue"),
    )
    in_order(
        said,
        r"image_start \(\) at .*entry\.S",
        r"Breakpoint 1, make \(n_pages=4\) at .*script\.c:\d+",
        r"#0 +make \(n_pages=4\)",
        r"#1 .* in run ",
        r"#2 .* in kernel_main ",
        r"\$1 = 4",
        r"posted_attach \(",
        r"Value returned is \$2 = -22",
        r"\$3 = 1",
        r"64-bit code, ring 0, 4 levels of page tables",
        r"\[Inferior 1 \(.*\) exited normally\]",
    )
    code, out, errors = boot.end()
    assert (code, errors) == (0, "")
    assert out.splitlines()[-1] == "done"


@pytest.mark.parametrize("bits", [64, 32])
def test_a_breakpoint_outlives_kexec_and_what_is_set_holds(
    boots: list[Boot], tmp_path: Path, bits: int
) -> None:
    boot = chain(boots, tmp_path, bits)
    said = boot.gdb(
        *("tbreak kexec_enter", "break kernel_main", "continue", "continue", "backtrace"),
        *("monitor info", "continue", "print start_info", "backtrace", "monitor info"),
        *("tbreak make", "continue"),
        *("set var n_pages = 0", "print $eflags", "set $xmm1.uint128 = 7", "print $xmm1.uint128"),
        *("delete", "continue"),
    )
    in_order(
        said,
        r"Breakpoint 2, kernel_main ",
        r"breakpoint 1, (0x\w+ in )?kexec_enter \(",
        r"kernels entered: 1\n",
        r"Breakpoint 2, kernel_main ",  # of the second kernel
        r"\$1 = \d+",
        r"kernels entered: 2\n",
        r"breakpoint 3, make \(n_pages=1\)",
        r"\$2 = \[ .*\]",
        r"\$3 = 7",
        r"exited normally",
    )
    assert boot.end()[0] == 0


def test_watching_memory(boots: list[Boot], tmp_path: Path) -> None:
    boot = chain(boots, tmp_path, 64)
    said = boot.gdb(
        *("break make", "continue", "watch start.n_map", "rwatch module.mod", "continue"),
        *("backtrace 1", "delete", "continue"),
    )
    in_order(
        said,
        r"Breakpoint 1, make ",
        r"Hardware watchpoint 2: start.n_map",
        r"Hardware read watchpoint 3: module.mod",
        r"Hardware (read )?watchpoint [23]: ",
        r"#0 ",
        r"exited normally",
    )
    assert boot.end()[0] == 0


def test_what_gdb_leaves_goes_on(boots: list[Boot], tmp_path: Path) -> None:
    boot = chain(boots, tmp_path, 64)
    assert "Breakpoint 1, kernel_main" in boot.gdb("break kernel_main", "continue", "detach")
    code, out, _ = boot.end()
    assert code == 0
    assert out.count("kernel 64 bit") == 2


def test_a_crash_can_be_looked_at(boots: list[Boot], tmp_path: Path) -> None:
    require_gdb()
    kernel = script_kernel(64, for_debugger=True)
    boots.append(Boot(tmp_path, kernel, "--cmdline", "fault"))
    said = boots[0].gdb("continue", "backtrace", "continue")
    in_order(said, r"SIGABRT", r"in panic|panic \(", r"Program terminated with signal SIGABRT")
    assert boots[0].end()[0] == 13


# ---- without GDB ---------------------------------------------------------------------------------


def test_debuggers_come_and_go(boots: list[Boot], tmp_path: Path) -> None:
    """One hangs up in the middle of a packet; the next finds the guest running, and kills it."""
    kernel = build_kernel(BUSY).read_bytes()
    boots.append(Boot(tmp_path, kernel))
    connection, client = boots[0].connect()
    assert client.ask(b"?") == b"T02thread:1;"
    connection.sendall(b"$m100000,4#")
    connection.close()
    connection, client = boots[0].connect()
    assert client.ask(b"?") == b"T02thread:1;"
    assert client.ask(b"vCont?") != b""
    connection.sendall(b"$c#63")
    assert connection.recv(1) == b"+"
    connection.sendall(b"\x03")
    assert client.take(receive(connection)) == b"T02thread:1;"
    connection.sendall(b"$k#6b")
    assert connection.recv(1) == b"+"
    connection.close()
    code, _, errors = boots[0].end()
    assert (code, errors) == (26, "guest ended: killed by the debugger\n")


def turned_away(port: int) -> bool:
    """Whether a further debugger gets nothing but the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as newcomer:
        with contextlib.suppress(ConnectionError):
            newcomer.sendall(encode_packet(b"?"))
        try:
            return newcomer.recv(1) == b""
        except ConnectionResetError:
            return True


def test_a_second_debugger_is_turned_away_at_once(boots: list[Boot], tmp_path: Path) -> None:
    """While the guest stands still, while it runs, and while it is at a breakpoint."""
    kernel = build_kernel(BUSY).read_bytes()
    boots.append(Boot(tmp_path, kernel))
    connection, client = boots[0].connect()
    assert client.ask(b"?") == b"T02thread:1;"
    assert turned_away(boots[0].port)
    assert client.ask(b"?") == b"T02thread:1;"
    connection.sendall(encode_packet(b"c"))
    assert connection.recv(1) == b"+"
    assert turned_away(boots[0].port)
    connection.sendall(b"\x03")
    assert client.take(receive(connection)) == b"T02thread:1;"
    number = [register.name for register in registers(kernel[4] == 2)].index("rip")
    rip = int.from_bytes(bytes.fromhex(client.ask(b"p%x" % number).decode()), "little")
    assert client.ask(b"Z0,%x,1" % rip) == b"OK"
    assert client.ask(b"c").startswith(b"T05")
    assert turned_away(boots[0].port)
    assert client.ask(b"z0,%x,1" % rip) == b"OK"
    connection.sendall(encode_packet(b"k"))
    connection.close()
    boots[0].end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_connected", [True, False])
def test_signals_end_the_waiting(
    boots: list[Boot], tmp_path: Path, number: int, is_connected: bool
) -> None:
    boots.append(Boot(tmp_path, build_kernel(BUSY).read_bytes()))
    connection = None
    if is_connected:
        connection, client = boots[0].connect()
        client.ask(b"?")
    boots[0].process.send_signal(number)
    code, _, errors = boots[0].end()
    assert code == 128 + number
    assert "Traceback" not in errors
    if connection is not None:
        assert connection.recv(1) == b""
        connection.close()


def test_a_port_that_is_taken_is_one_line(boots: list[Boot], tmp_path: Path) -> None:
    boots.append(Boot(tmp_path, build_kernel(BUSY).read_bytes()))
    command = [sys.executable, "-m", "xenlive", "boot", str(boots[0].file)]
    done = subprocess.run(
        [*command, "--gdb", str(boots[0].port)], capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 1
    assert "can't listen there" in done.stderr
    assert len(done.stderr.splitlines()) == 1
