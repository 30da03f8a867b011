"""The posted format's kernel in C (`posted.c`) as a process that shares memory with the test.

    test process                         kernel.c
    KexecModule ──▶ a file, mapped ◀── posted.c      the same bytes, so that each can go on
                                                     where the other stopped

Commands go to it by pipe, a sequence at a time. Undefined behaviour and accesses outside of the
module end the process: the memory around the module is not accessible, and gcc's sanitizers are on
where they are installed.

**Invariants.** Whatever the process does, it can change nothing but the file. A process that died
says so as `Died`, with the signal or exit code.
"""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pytest

from xenlive.memory.address import PAGE_SIZE, PhysAddr
from xenlive.memory.guest import GuestMemory

HERE = Path(__file__).parent
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic", "-O1", "-g")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

LAST_PAGE, SIZE, TYPE, FULL, MAKE = 1, 2, 4, 8, 16
ALL_DEFECTS = LAST_PAGE | SIZE | TYPE | FULL | MAKE


class Died(Exception):
    """The kernel's process ended; `code` as in `subprocess`: negative for a signal."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"exit code {code}")


class Answer(NamedTuple):
    """A call's result, the administration page's CRC-32 after it, and what `read` gave."""

    result: int
    crc: int
    data: bytes


class Shown(NamedTuple):
    """A module as the C code sees it: `entries` are (offset, type, size) of the whole table."""

    n_pages: int
    n_records: int
    recs_off: int
    owners: bytes
    entries: list[tuple[int, int, int]]
    end: int


def program(folders: pytest.TempPathFactory) -> Path:
    """The kernel's program, built once a run. Without gcc the test is skipped, or fails in CI."""
    if shutil.which("gcc") is None:
        if os.environ.get("XENLIVE_REQUIRE_PEERS", "") not in ("", "0"):
            pytest.fail("gcc is required", pytrace=False)
        pytest.skip("gcc is missing")
    found = folders.getbasetemp() / "posted"
    if not found.exists():
        _build(found)
    return found


def _build(program: Path) -> None:
    """Compiles the kernel, with sanitizers where gcc has them."""
    sources = [str(HERE / "posted.c"), str(HERE / "kernel.c")]
    plain = ["gcc", *STRICT, *sources, "-o", str(program)]
    done = subprocess.run([*plain, *SANITIZE], capture_output=True, timeout=120, check=False)
    if done.returncode:
        subprocess.run(plain, check=True, timeout=120)


class PostedKernel:
    """A running kernel whose memory, `size_bytes` large, is mapped here as `ram` too."""

    def __init__(self, program: Path, file: Path, size_bytes: int) -> None:
        self._program = program
        self._file = file
        with file.open("wb") as out:
            out.truncate(size_bytes)
        with file.open("r+b") as both:
            self.ram = mmap.mmap(both.fileno(), size_bytes)
        self.memory = GuestMemory([(0, self.ram)])
        self.address = PhysAddr(0)
        self.size_bytes = size_bytes
        self._start()

    def _start(self) -> None:
        # An access outside of the module is to end the process, not to be explained.
        self._process = subprocess.Popen(
            [self._program, self._file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "ASAN_OPTIONS": "handle_segv=0:handle_abort=0:detect_leaks=0"},
        )

    def __enter__(self) -> PostedKernel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()
        self.memory.release()  # the mapping goes with the last module on it

    def _end(self) -> int:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()
        code = process.wait(timeout=60)
        process.stdout.close()
        return code

    def ask(self, commands: Iterable[str]) -> list[str]:
        """Runs commands and gives their lines. Died, with a new process for later, if it did."""
        lines = list(commands)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write("".join(f"{line}\n" for line in [*lines, "sync"]))
            self._process.stdin.flush()
        answers = [self._process.stdout.readline() for _ in lines]
        if not all(answer.endswith("\n") for answer in answers):
            code = self._end()
            self._start()
            raise Died(code)
        return [answer.rstrip("\n") for answer in answers]

    def calls(self, commands: Iterable[str]) -> list[Answer]:
        """Runs commands that are calls on the module."""
        found = []
        for line in self.ask(commands):
            result, crc, *data = line.split(" ")
            found.append(Answer(int(result), int(crc), bytes.fromhex("".join(data))))
        return found

    def call(self, command: str) -> int:
        """The result of a single call."""
        return self.calls([command])[0].result

    def place(self, address: int, n_module_pages: int, defects: int = 0) -> None:
        """Says where the module is and with which defects the kernel runs; nothing is accessed."""
        self.address, self.size_bytes = PhysAddr(address), n_module_pages * PAGE_SIZE
        commands = [f"map {address} {self.size_bytes}", f"defects {defects}"]
        assert [answer.result for answer in self.calls(commands)] == [0, defects]

    def show(self) -> Shown:
        """What the C code sees in the module."""
        n_pages, n_records, recs_off, owners, table, end = self.ask(["show"])[0].split(" ")
        entries = [[int(word) for word in entry.split(":")] for entry in table.split(",") if entry]
        return Shown(
            int(n_pages),
            int(n_records),
            int(recs_off),
            bytes.fromhex(owners),
            [(offset, type_, size) for offset, type_, size in entries],
            int(end),
        )

    def page(self) -> bytes:
        """The administration page's bytes."""
        end = self.address + self.size_bytes
        return self.ram[end - PAGE_SIZE : end]
