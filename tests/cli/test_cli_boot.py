"""`xenlive boot`: what it says, its exit codes, and the terminal it leaves behind."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from kernels.building import build_kernel
from machine.emulated import small_guests

from xenlive.cli import root

XENLIVE = [sys.executable, "-m", "xenlive"]
LIMIT_S = 30.0
_LOCAL = 3  # place of the flags with ECHO in what tcgetattr gives


class Done(NamedTuple):
    """What came of a command."""

    stdout: str
    stderr: str


Boot = Callable[..., Done]


@pytest.fixture
def boot(capfd: pytest.CaptureFixture[str]) -> Boot:
    """Runs the command here, without a terminal; it must end with `code`."""

    def booted(*words: str | Path, code: int = 0) -> Done:
        capfd.readouterr()
        assert root.run(["boot", *map(str, words)]) == code
        return Done(*capfd.readouterr())

    return booted


@pytest.fixture(scope="module")
def hello() -> Path:
    return build_kernel(small_guests.SAYS_HELLO)


@pytest.fixture(scope="module")
def echo() -> Path:
    return build_kernel(small_guests.ECHOES)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The kernel that does what its command line says, as a file."""
    from kernels.handover.script_kernel import script_kernel

    folder = tmp_path_factory.mktemp("kernels")

    def made(bits: int) -> Path:
        path = folder / f"script{bits}.elf"
        if not path.exists():
            path.write_bytes(script_kernel(bits))
        return path

    return made


# ---- what it costs ------------------------------------------------------------------------------


def test_a_plain_boot_loads_nothing_that_looks_at_guests(hello: Path) -> None:
    """Reading ELF symbols and describing modules takes longer than a small kernel runs."""
    run_it = "import sys; from xenlive.cli.root import run; run()"
    loaded = "; print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", run_it + loaded, "boot", hello],
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    modules = set(done.stderr.split())
    assert "xenlive.machine.emulated.world" in modules
    for library in ("elftools", "rich", "urllib.request", "difflib", "importlib.metadata"):
        assert library not in modules
    for room in ("dump", "client", "ninep", "machine.hosted", "update", "stubdom"):
        assert f"xenlive.{room}" not in modules


# ---- what it says -------------------------------------------------------------------------------


def test_a_guest_that_says_hello(boot: Boot, hello: Path) -> None:
    done = boot(hello)
    assert (done.stdout, done.stderr) == ("hi\n", "")


def test_a_crash_is_reported(boot: Boot, tmp_path: Path) -> None:
    done = boot(build_kernel(small_guests.CRASHES_DEEP), code=13)
    assert done.stderr.startswith("guest ended: crash: the guest asked for it\n")
    for said in ("  backtrace\n", "inner+", "outer+", "last hypercalls", "xen_version.version"):
        assert said in done.stderr


def test_a_triple_fault_and_a_guest_that_waits_for_ever(boot: Boot) -> None:
    assert "#UD" in boot(build_kernel(small_guests.TRIPLE_FAULTS), code=20).stderr
    assert "hung" in boot(build_kernel(small_guests.WAITS_FOR_EVER), code=22).stderr


def test_a_guest_that_spins_has_a_limit_of_its_own_time(boot: Boot) -> None:
    done = boot(build_kernel(small_guests.SPINS), "--time-limit", "0.01", "--json", code=24)
    said = json.loads(done.stdout)
    assert (said["end"], said["exit"], said["handovers"]) == ("time limit", 24, [])


# ---- what can't be booted -----------------------------------------------------------------------


def one_line(done: Done) -> str:
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no ELF file"),
        (b"#!/bin/sh\n", "no ELF file"),
        (b"\x7fELF", "ends in its header"),
        (b"\x7fELF\2\1\1" + bytes(9), "ends"),
        (Path("/proc/self/exe").resolve().read_bytes(), "no PVH kernel"),
    ],
    ids=["empty", "text", "cut", "header", "program"],
)
def test_a_file_that_is_no_kernel(boot: Boot, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "odd"
    path.write_bytes(content)
    line = one_line(boot(path, code=1))
    assert line.startswith(f"xenlive: {path}: ")
    assert says in line
    if content:  # the same of a kernel that is to come next
        hello = build_kernel(small_guests.SAYS_HELLO)
        assert says in one_line(boot(hello, "--next", path, code=1))


def test_files_that_are_not_files(boot: Boot, hello: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, says in [
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "is no regular file"),
        (fifo, "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
    ]:
        for words in ([path], [hello, "--module", path], [hello, "--next", path]):
            assert one_line(boot(*words, code=1)) == f"xenlive: {path}: {says}"


def test_a_kernel_that_does_not_fit(boot: Boot, hello: Path, tmp_path: Path) -> None:
    line = one_line(boot(hello, "--memory", "1M", code=1))
    assert "kernel-too-large: the kernel does not fit" in line
    big = tmp_path / "big"
    big.write_bytes(bytes(2 << 20))
    line = one_line(boot(hello, "--memory", "2M", "--module", big, code=1))
    assert "the module does not fit" in line
    assert "whole pages" in one_line(boot(hello, "--memory", "3000", code=2))


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--fail", "event_chanel_op:1"], 1, "near it: event_channel_op"),
        (["--fail", "sched_op"], 1, "is not CALL[.OPERATION]:N[=ERRNO]"),
        (["--poison-byte", "256"], 2, "is no byte"),
        (["--stop-at-entry", "-1"], 2, "-1"),
        (["--trace-to", "/nowhere/trace"], 1, "/nowhere/trace: No such file or directory"),
        (["--rundir", "/proc/none"], 1, "/proc/none"),
        (["--time-limit", "0"], 2, "0"),
    ],
)
def test_options_that_can_not_be(
    boot: Boot, hello: Path, words: list[str], code: int, says: str
) -> None:
    assert says in one_line(boot(hello, *words, code=code))


# ---- kexec under the lens -----------------------------------------------------------------------


@pytest.mark.peer
def test_a_chain_from_inside_and_from_outside(
    boot: Boot, script: Callable[[int], Path], tmp_path: Path
) -> None:
    done = boot(
        *(script(64), "--memory", "16M", "--cmdline", "make 18; add 7 aa; kexec 0"),
        *("--module", f"{script(32)}=make 1; shutdown 1"),
        *("--next", f"{script(64)}=make 1; read 0 1"),
        *("--poison", "--handovers", "--dump-at-entry", tmp_path / "d"),
        *("--trace-to", tmp_path / "trace", "--fail", "sched_op.poll:7"),
    )
    assert done.stdout.splitlines()[-1] == "done"
    heads = [line for line in done.stderr.splitlines() if line.startswith("handover ")]
    assert [head.split(": ")[1].split(",")[0] for head in heads] == [
        "script64.elf -> script32.elf",
        "script32.elf -> script64.elf",
    ]
    assert done.stderr.count("; unchanged") == 2
    assert done.stderr.splitlines()[-1].startswith("--fail sched_op.poll:7=EINVAL: the guest made")
    trace = (tmp_path / "trace").read_text()
    assert trace.count("at its entry 0x100000 (entry+0x0)") == 3
    assert "reason=reboot does not return  from shutdown+" in trace
    images = sorted(path.name for path in tmp_path.glob("d-*"))
    assert images == [f"d-{n}-{when}.img" for n in (1, 2) for when in ("after", "before")]
    for image in images:
        found = subprocess.run(
            [*XENLIVE, "inspect", "--json", str(tmp_path / image)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert json.loads(found.stdout)["address"] == (16 << 20) - 18 * 4096


@pytest.mark.peer
def test_the_same_in_json(boot: Boot, script: Callable[[int], Path]) -> None:
    done = boot(
        *(script(64), "--cmdline", "make 4; kexec 0", "--module", f"{script(32)}=peek 0"),
        *("--poison-byte", "0x11", "--json", "--fail", "set_timer_op:9"),
    )
    said = json.loads(done.stdout)
    assert done.stderr.splitlines() == [
        "--fail set_timer_op:9=EINVAL: the guest made fewer such calls"
    ]
    (handover,) = said["handovers"]
    assert handover["poisoned_bytes"] > 60 << 20
    assert handover["modules"][0]["kexec"]["n_pages"] == 3
    assert "> 17 0" in said["console"]
    assert (said["faults"], said["faults_waiting"]) == ([], ["set_timer_op:9=EINVAL"])


@pytest.mark.peer
def test_it_stops_at_an_entry(boot: Boot, script: Callable[[int], Path]) -> None:
    words = (script(64), "--cmdline", "kexec 0", "--module", f"{script(32)}=peek 0")
    assert boot(*words, "--stop-at-entry", "0", code=25).stdout == ""
    done = boot(*words, "--stop-at-entry", "1", "--json", code=25)
    said = json.loads(done.stdout)
    assert said["console"].splitlines()[-1] == "kexec"
    assert said["backtrace"][0]["name"] == "entry+0x0"
    assert said["end"] == "stopped at the entry of kernel 1"
    done = boot(*words, "--stop-at-entry", "2")
    assert done.stderr == "--stop-at-entry 2: the chain ended before\n"


@pytest.mark.peer
def test_a_kernel_that_can_not_be_entered_is_one_line(
    boot: Boot, script: Callable[[int], Path]
) -> None:
    done = boot(
        *(script(64), "--memory", "2M", "--cmdline", "shutdown 1"),
        *("--next", f"{script(64)}={'x' * 5000}"),
        code=1,
    )
    assert done.stderr.splitlines() == [
        "xenlive: script64.elf: can't be entered: kernel command line: is 5000 bytes long, at most "
        "4095 can be handed over"
    ]


# ---- a terminal ---------------------------------------------------------------------------------


class Typed:
    """The command at a terminal of its own."""

    def __init__(self, *words: str | Path) -> None:
        self.main, terminal = pty.openpty()
        self.before = termios.tcgetattr(terminal)
        self.terminal = terminal
        self.process = subprocess.Popen(
            [*XENLIVE, "boot", *map(str, words)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            preexec_fn=lambda: _own(terminal),
        )
        self.seen = b""

    def wait_for(self, text: bytes) -> None:
        end_s = time.monotonic() + LIMIT_S
        while text not in self.seen:
            assert select.select([self.main], [], [], end_s - time.monotonic())[0], self.seen
            self.seen += os.read(self.main, 4096)

    def type(self, keys: bytes) -> None:
        """As soon as the terminal is the guest's: before, it echoes by itself."""
        end_s = time.monotonic() + LIMIT_S
        while termios.tcgetattr(self.terminal)[_LOCAL] & termios.ECHO:
            assert time.monotonic() < end_s
            assert self.process.poll() is None, self.seen
            time.sleep(0.01)
        os.write(self.main, keys)

    def end(self) -> int:
        """The exit code; the terminal is as it was."""
        code = self.process.wait(LIMIT_S)
        assert termios.tcgetattr(self.terminal) == self.before
        while select.select([self.main], [], [], 0)[0]:
            self.seen += os.read(self.main, 4096)
        assert b"Traceback" not in self.seen
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.main)
        os.close(self.terminal)


def _own(terminal: int) -> None:
    os.setsid()
    import fcntl

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


@pytest.fixture
def typed() -> Iterator[Callable[..., Typed]]:
    made: list[Typed] = []

    def typed_(*words: str | Path) -> Typed:
        made.append(Typed(*words))
        return made[-1]

    yield typed_
    for one in made:
        one.close()


def test_keys_go_to_the_guest(typed: Callable[..., Typed], echo: Path) -> None:
    one = typed(echo)
    one.type(b"ab")
    one.wait_for(b"ab")
    one.type(b"q")
    assert one.end() == 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_leaves_the_terminal_as_it_was(
    typed: Callable[..., Typed], echo: Path, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    one = typed(echo, "--rundir", tmp_path / "run", "--trace-to", tmp_path / "trace")
    one.type(b"a")
    one.wait_for(b"a")
    link = os.readlink(tmp_path / "run" / "ram")
    assert link.startswith(f"/proc/{one.process.pid}/fd/")
    found = subprocess.run(
        [*XENLIVE, "inspect", "--rundir", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert "has no kexec module in it" in found.stderr
    one.process.send_signal(number)
    assert one.end() == code
    assert not os.path.lexists(tmp_path / "run" / "ram")
    assert "event_channel_op" in (tmp_path / "trace").read_text()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTSTP])
def test_who_is_stopped_goes_on_with_the_terminal(
    typed: Callable[..., Typed], echo: Path, number: signal.Signals
) -> None:
    """A shell sets the terminal to its liking, and leaves it so when the job goes on."""
    one = typed(echo)
    one.type(b"a")
    one.wait_for(b"a")
    one.process.send_signal(number)
    os.waitid(os.P_PID, one.process.pid, os.WSTOPPED)
    if number != signal.SIGSTOP:
        assert termios.tcgetattr(one.terminal) == one.before
    termios.tcsetattr(one.terminal, termios.TCSANOW, one.before)
    one.process.send_signal(signal.SIGCONT)
    one.type(b"q")
    assert one.end() == 0


def test_a_window_that_is_closed_ends_it_as_a_signal_does(
    typed: Callable[..., Typed], echo: Path
) -> None:
    one = typed(echo)
    one.type(b"a")
    one.wait_for(b"a")
    for fd in (one.main, one.terminal):
        os.close(fd)
    code = one.process.wait(LIMIT_S)
    one.main, one.terminal = pty.openpty()  # for the fixture to close
    assert code == 128 + signal.SIGHUP


def test_ctrl_c_ends_a_guest_that_spins(typed: Callable[..., Typed]) -> None:
    one = typed(build_kernel(small_guests.kernel("put $104\n kick\n 1: jmp 1b")))
    one.wait_for(b"h")
    one.type(b"\x03")
    assert one.end() == 130


def test_a_crash_leaves_the_terminal_as_it_was(typed: Callable[..., Typed]) -> None:
    one = typed(build_kernel(small_guests.CRASHES_DEEP))
    one.wait_for(b"last hypercalls")
    assert one.end() == 13


@pytest.mark.peer
def test_a_live_guest_is_inspected(
    boot: Boot, typed: Callable[..., Typed], script: Callable[[int], Path], tmp_path: Path
) -> None:
    """While the second kernel of a chain waits for its timer."""
    rundir = tmp_path / "run"
    one = typed(
        *(script(64), "--memory", "16M", "--rundir", rundir),
        *("--cmdline", "make 18; add 7 aabb; kexec 0"),
        *("--module", f"{script(32)}=make 1; add 8 cc; ticks 60000"),
    )
    one.wait_for(b"handed")
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        found = subprocess.run(
            [*XENLIVE, "inspect", "--json", "--rundir", str(rundir)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        records = json.loads(found.stdout)["records"]
        if len(records) == 2:
            break
    assert [record["data"] for record in records] == ["aabb", "cc"]
    refused = boot(script(64), "--rundir", rundir, code=1)
    assert "another domain runs here" in refused.stderr
    one.process.terminate()
    assert one.end() == 143
