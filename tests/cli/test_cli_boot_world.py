"""`xenlive boot` as a process: several domains, worlds that are saved and gone back to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kernels.pair.pair_kernel import pair_kernel

from xenlive.cli import root
from xenlive.cli.boot_world import Lines

pytestmark = pytest.mark.peer

XENLIVE = [sys.executable, "-m", "xenlive"]
FIRST = "peer guest2;offer port;page 0;put 0 5 41;grant 9 0 1;tell ready 1;wait;get 0 6"
SECOND = "peer alice;bind port;hear ready;hole 1;map 1 9 2;get 1 5;put 1 6 42;send;unmap 1"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("kernels")
    for bits in (64, 32):
        (folder / f"pair{bits}.elf").write_bytes(pair_kernel(bits))
    return str(folder / "pair64.elf"), str(folder / "pair32.elf")


def boot(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command without a terminal; it must end with `code`, and without a traceback."""
    command = [*XENLIVE, "boot", *map(str, words)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def test_two_domains_and_whose_lines_are_whose(kernels: tuple[str, str]) -> None:
    one, other = kernels
    done = boot(one, "--name", "alice", "--cmdline", FIRST, "--with", f"{other}={SECOND}")
    lines = done.stdout.splitlines()
    assert "alice| > 42 0" in lines
    assert "guest2| > 41 0" in lines
    assert {line.split("|")[0] for line in lines} == {"alice", "guest2"}
    assert lines[-1] == "alice| done"
    assert done.stderr == "guest2: ended, poweroff\n"


def test_the_exit_code_is_the_first_ones(kernels: tuple[str, str]) -> None:
    one, other = kernels
    done = boot(one, "--cmdline", "nap 9000", "--with", f"{other}=fault")
    assert "guest2: ended, crash" in done.stderr
    assert "last hypercalls" in done.stderr
    # The first one's end is the end, whatever the other would still do.
    found = boot(one, "--cmdline", "shutdown 1", "--with", f"{other}=ticks 1000", "--json", code=11)
    said = json.loads(found.stdout)
    assert said["end"] == "reboot"
    assert [(g["name"], g["domid"], g["exit"]) for g in said["guests"]] == [("guest2", 2, 24)]
    assert said["guests"][0]["console"].startswith("kernel 32 bit")


def test_saved_and_gone_on_with(kernels: tuple[str, str], tmp_path: Path) -> None:
    """Saving changes nothing, and what comes after it comes again."""
    saved = tmp_path / "world.snapshot"
    script = "ticks 40;nap 30000;make 2;ticks 3;crc 0 1"
    straight = boot(kernels[0], "--cmdline", script)
    first = boot(kernels[0], "--cmdline", script, "--save-at", "0.03", saved)
    assert first.stdout == straight.stdout
    assert first.stderr.startswith(f"{saved}: the world at 0.03")
    again = boot("--restore", saved)
    assert again.stdout
    assert again.stdout != straight.stdout
    assert straight.stdout.endswith(again.stdout)


def test_saved_at_an_entry_with_another_domain(kernels: tuple[str, str], tmp_path: Path) -> None:
    saved = tmp_path / "world.snapshot"
    one, other = kernels
    words = ["--name", "alice", "--cmdline", "make 2;kexec 0", "--module", f"{one}=make 2;nap 9000"]
    boot(one, *words, "--with", f"{other}=nap 2000", "--save-at", "entry:1", saved)
    again = boot("--restore", saved)
    assert again.stdout.startswith("alice| kernel 64 bit")
    assert "handed" in again.stdout
    assert again.stderr == "guest2: ended, poweroff\n"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "one of KERNEL and --restore"),
        (["KERNEL", "--restore", "FILE"], 2, "one of KERNEL and --restore"),
        (["--restore", "KERNEL"], 1, "snapshot-magic"),
        (["--restore", "/nonexistent"], 1, "No such file"),
        (["--restore", "KERNEL", "--with", "KERNEL"], 2, "a world of its own"),
        (["KERNEL", "--save-at", "soon", "FILE"], 2, "neither seconds nor entry:N"),
        (["KERNEL", "--save-at", "1e400", "FILE"], 2, "neither seconds nor entry:N"),
        (["KERNEL", "--save-at", "entry:7", "FILE"], 1, "ended before --save-at"),
        (["KERNEL", "--save-at", "0", "/nonexistent/file"], 1, "No such file"),
        (["KERNEL", "--save-at", "0", "FILE", "--share", "/"], 1, "shares a directory"),
    ],
)
def test_what_can_not_be(
    kernels: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    says: str,
) -> None:
    # In this process: what is said and the code are the same, and a process takes its time.
    named = {"KERNEL": kernels[0], "FILE": str(tmp_path / "file")}
    assert root.run(["boot", *(named.get(word, word) for word in words)]) == code
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_lines_are_whole_and_say_whose_they_are() -> None:
    out: list[bytes] = []
    lines = Lines(out.append)
    one, other = lines.of("a"), lines.of("b")
    for sink, data in (
        *((one, b"pro"), (one, b"mpt"), (other, b"x\ny"), (other, b"z\n")),
        *((one, b"\n\n"), (other, b"last")),
    ):
        sink(data)
    assert b"".join(out) == b"a| prompt\nb| x\nb| yz\na| \na| \nb| last"
