"""The commands on images: what they print, byte for byte, and that no bytes upset them.

Golden output is in `golden/`; run the tests with XENLIVE_UPDATE_GOLDEN=1 to write it anew, and look
at what changed.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from cli.image_files import MODULES, STREAM, updating, write_images
from click.testing import CliRunner
from dump.cores import Segment, write_elf_core
from dump.made import ADDRESS, REAL, device_with, put, ram_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xenlive.cli.root import COMMANDS, root, run
from xenlive.memory.address import PAGE_SIZE
from xenlive.ninep.codec import encode
from xenlive.ninep.messages import TCREATE

GOLDEN = Path(__file__).parent / "golden"
IMAGES = [*MODULES, "busy", "ram", "defect", "broken"]
COMMAND_LINES = [
    *(f"inspect {image}" for image in IMAGES),
    *(f"verify {image}" for image in ("device", "defect", "broken")),
    *(f"hexdump {image}" for image in ("device", "mix", "one", "broken")),
    *("inspect --json busy", "inspect --json ram", "inspect --svg - small"),
    *("verify --json defect", "inspect state", "inspect --json state"),
    *("hexdump --page 0 device", "hexdump --page 9 busy", "hexdump --record 0 device"),
    *("hexdump --address 0x3feefe0 --size 64 ram", "hexdump --json --record 0 device"),
    *("diff before after", "diff device mix", "diff --json before after", "diff before before"),
]
EXIT_CODES = {"verify": (0, 1), "diff": (0, 1)}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all images, which is the current one."""
    write_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def golden_file(line: str) -> Path:
    return GOLDEN / (re.sub(r"[^a-z0-9]+", "-", line) + ".txt")


@pytest.mark.parametrize("line", COMMAND_LINES)
@pytest.mark.usefixtures("images")
def test_golden_output(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(line.split())
    out, err = capsys.readouterr()
    said = f"$ xenlive {line}\n{out}{err}[exit {code}]\n"
    path = golden_file(line)
    if updating():
        path.parent.mkdir(exist_ok=True)
        path.write_text(said, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == said
    assert (err, code in EXIT_CODES.get(line.split()[0], (0,))) == ("", True)


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {
        golden_file(line).name for line in COMMAND_LINES
    }


def test_the_commands_are_in_the_table() -> None:
    assert {"inspect", "verify", "diff", "hexdump"} <= set(COMMANDS)


@pytest.mark.parametrize("command", ["inspect", "verify", "hexdump"])
def test_a_run_directory_by_its_option(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ram_with(tmp_path / "ram", REAL)
    assert run([command, "--rundir", str(tmp_path)]) == 0
    by_option = capsys.readouterr()
    assert run([command, str(tmp_path)]) == 0
    assert capsys.readouterr() == by_option
    assert run([command, str(tmp_path), "--rundir", str(tmp_path)]) == 2
    said = f"xenlive {command}: IMAGE and --rundir exclude each other\n"
    assert capsys.readouterr() == ("", said)


def test_an_elf_core_is_described_as_the_memory_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    core = tmp_path / "core"
    write_elf_core(core, [Segment(0x3000000, 0x1000000, [(ADDRESS - 0x3000000, REAL)])])
    assert run(["inspect", "--json", str(core)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["image"]["kind"] == "elf-core"
    assert found["image"]["regions"] == [{"address": 0x3000000, "size_bytes": 0x1000000}]
    assert (found["address"], found["admin_address"]) == (ADDRESS, 0x3FFF000)
    assert run(["diff", str(core), str(ram_with(tmp_path / "ram", REAL))]) == 0


def test_several_modules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The chosen one is described, the others are named; with --all they are described too."""
    path = str(ram_with(tmp_path / "ram", REAL, ADDRESS, (0x100000, MODULES["small"])))
    assert run(["inspect", path]) == 0
    last = "another kexec module of 4 pages at 0x100000, sound (--all describes it)"
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert run(["inspect", "--json", path]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["others"] == [
        {"address": 0x100000, "n_pages": 3, "attachable": True, "problems": []}
    ]
    assert run(["inspect", "--all", "--json", path]) == 0
    every = json.loads(capsys.readouterr().out)
    assert every["others"][0]["records"] != []
    assert {**every, "others": None} == {**found, "others": None}
    assert run(["inspect", "--all", path]) == 0
    said = capsys.readouterr().out
    assert "kexec module of 18 pages at 0x3fee000" in said
    assert "\n\nkexec module of 4 pages at 0x100000" in said
    assert "(--all" not in said
    assert run(["inspect", "--quick", "--json", path]) == 0
    assert json.loads(capsys.readouterr().out)["others"] is None


ESCAPES = b"\x1b]0;owned\x07\x1b[2J\x9b31m\r\n"


def hostile_image(folder: Path) -> Path:
    """Terminal escapes wherever an image can have text."""
    create = encode(TCREATE, 1, fid=1, name=ESCAPES, perm=0, mode=0, extension=ESCAPES)
    data = device_with(create)
    put(data, 112 - PAGE_SIZE, ESCAPES)
    path = folder / "hostile\x1b[31m"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("command", ["inspect", "verify", "hexdump", "diff"])
def test_nothing_acts_on_the_terminal(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(hostile_image(tmp_path))
    (tmp_path / "plain").write_bytes(REAL)
    for words in ([path], [path, "--json"], [path + "missing"]):
        more = [str(tmp_path / "plain")] if command == "diff" else []
        run([command, *words, *more])
        out, err = capsys.readouterr()
        assert (out + err).replace("\n", "").isprintable()
    run(["hexdump", path, "--page", "9"])
    assert capsys.readouterr().out.replace("\n", "").isprintable()


WORDS = st.sampled_from(
    [
        *(["inspect"], ["inspect", "--json"], ["inspect", "--svg", "-"], ["inspect", "--all"]),
        *(["verify"], ["verify", "--json"], ["hexdump"], ["hexdump", "--page", "1"]),
        *(["hexdump", "--record", "0"], ["hexdump", "--address", "0", "--size", "9000"]),
        *(["hexdump", "--json"], ["diff"], ["diff", "--json"]),
    ]
)
PARTS = st.tuples(
    st.one_of(st.integers(0, 200), st.integers(-PAGE_SIZE, 200 - PAGE_SIZE)),
    st.binary(min_size=1, max_size=6),
)


@settings(
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    words=WORDS,
    kind=st.sampled_from(["auto", "module", "memory", "elf-core", "xen-core"]),
    image=st.sampled_from([REAL, *MODULES.values(), STREAM, b"\x7fELF" + bytes(200)]),
    wrong=st.lists(PARTS, max_size=5),
    cut=st.integers(0, 8192),
)
def test_any_bytes_end_in_an_answer_or_one_line(
    words: list[str],
    kind: str,
    image: bytes,
    wrong: list[tuple[int, bytes]],
    cut: int,
    tmp_path: Path,
) -> None:
    data = bytearray(image)
    for at, value in wrong:
        put(data, at, value)
    path = tmp_path / "image"
    path.write_bytes(data[: len(data) - (cut if cut % 5 == 0 else 0)])
    (tmp_path / "other").write_bytes(REAL)
    more = [str(tmp_path / "other")] if words[0] == "diff" else []
    answer = CliRunner().invoke(root, [*words, "--as", kind, str(path), *more])
    assert answer.exception is None or isinstance(answer.exception, SystemExit)
    assert answer.output.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ["image", "link", "other name"])
def test_a_picture_never_overwrites_the_image(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(REAL)
    (tmp_path / "link").symlink_to(image)
    (tmp_path / "other name").hardlink_to(image)
    output = tmp_path / name
    assert run(["inspect", str(image), "--svg", str(output)]) == 2
    assert capsys.readouterr() == (
        "",
        f"xenlive: {output} is the image: nothing is written to it\n",
    )
    assert image.read_bytes() == REAL


def test_a_picture_never_overwrites_the_memory_of_a_run_directory(tmp_path: Path) -> None:
    ram = ram_with(tmp_path / "ram", REAL)
    assert run(["inspect", str(tmp_path), "--svg", str(ram)]) == 2
    assert ram.stat().st_size == 64 << 20


def unsound(module: bytes) -> bytes:
    data = bytearray(module)
    put(data, 14 - PAGE_SIZE, b"\x09")
    return bytes(data)


def test_verify_names_the_unsound_modules_above_the_one_that_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(ram_with(tmp_path / "ram", unsound(REAL), ADDRESS, (0x100000, MODULES["small"])))
    assert run(["verify", path]) == 0
    said = "also at 0x3fee000: owner-without-record, page-two-users"
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{said}; xenlive inspect --all shows it\n")
    assert run(["verify", "--json", path]) == 0
    out, err = capsys.readouterr()
    checked = json.loads(out)
    assert (checked["sound"], checked["attachable"], err) == (True, True, "")
    assert (checked["address"], checked["others_left_out"]) == (0x100000, 0)
    run(["inspect", "--json", path])
    assert json.loads(capsys.readouterr().out)["others"] == checked["others"]
    (other,) = checked["others"]
    assert list(other) == ["address", "n_pages", "attachable", "problems"]
    run(["inspect", "--all", "--json", path])
    (whole,) = json.loads(capsys.readouterr().out)["others"]
    assert {key: whole[key] for key in other} == other


def test_verify_names_some_of_very_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = unsound(MODULES["small"])
    parts = [(page * PAGE_SIZE, bad) for page in range(1024, 1224, 4)]
    path = str(ram_with(tmp_path / "ram", MODULES["small"], 0x100000, *parts))
    assert run(["verify", path]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (9, "and 42 more")
    assert run(["verify", "--json", path]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (len(checked["others"]), checked["others_left_out"]) == (32, 18)
    assert run(["inspect", "--all", "--json", path]) == 0
    described = json.loads(capsys.readouterr().out)
    assert (len(described["others"]), described["others_left_out"]) == (32, 18)
    assert run(["inspect", path]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "and 18 modules more"


OUTPUTS = [
    *("inspect device", "inspect --json device", "inspect --svg - device", "verify broken"),
    *("verify --json device", "hexdump device", "hexdump --json device", "diff device mix"),
    *("diff --json device mix", "abi", "abi --json"),
]


def xenlive(line: str, folder: Path, stdout: IO[bytes] | int) -> tuple[int, str]:
    """A command in a process of its own, as it meets pipes and disks; its exit code and stderr."""
    command = [sys.executable, "-c", "from xenlive.cli.main import main; main()", *line.split()]
    done = subprocess.run(
        command, cwd=folder, stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize("line", ["inspect device", "verify broken", "hexdump --json device"])
def test_a_full_disk_is_no_fault_of_the_image(line: str, images: Path) -> None:
    said = "xenlive: the output can't be written: No space left on device\n"
    with Path("/dev/full").open("wb") as full:
        assert xenlive(line, images, full) == (1, said)


@pytest.mark.parametrize("line", ["inspect device", "verify broken", "hexdump --json device"])
def test_nobody_reads_the_output(line: str, images: Path) -> None:
    """Quietly, with the same exit code for all."""
    there, here = os.pipe()
    os.close(there)
    try:
        assert xenlive(line, images, here) == (1, "")
    finally:
        os.close(here)


class FullDisk(io.StringIO):
    """A stdout that can't be written to."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("line", OUTPUTS)
@pytest.mark.usefixtures("images")
def test_what_is_wrong_with_the_output_is_said_of_the_output(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", FullDisk())
    assert run(line.split()) == 1
    said = "xenlive: the output can't be written: No space left on device\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("line", ["inspect busy", "hexdump busy", "diff before after"])
@pytest.mark.usefixtures("images")
def test_no_color_leaves_plain_text(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    run(line.split())
    coloured = capsys.readouterr().out
    assert "\x1b[" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    run(line.split())
    assert capsys.readouterr().out == re.sub(r"\x1b\[[\d;]*m", "", coloured)


def test_what_is_no_image_says_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lime = tmp_path / "lime"
    lime.write_bytes(b"EMiL\x01\0\0\0" + bytes(24) + REAL)
    assert run(["inspect", str(lime)]) == 2
    said = f"xenlive: {lime} is a LiME image: dump the memory with format=padded\n"
    assert capsys.readouterr() == ("", said)
    for command in ("inspect", "verify", "hexdump"):
        assert run([command, "-"]) == 2
        said = "xenlive: an image can't be read from standard input: save it to a file first\n"
        assert capsys.readouterr() == ("", said)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert run(["verify", str(fifo)]) == 2
    said = f"xenlive: {fifo} is a pipe: save what comes out of it to a file first\n"
    assert capsys.readouterr() == ("", said)


def test_a_module_that_was_read_as_memory_has_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(REAL)
    put(data, 8 - PAGE_SIZE, (10).to_bytes(2, "little"))
    put(data, 12 - PAGE_SIZE, (24).to_bytes(2, "little"))  # as in a module of 11 pages
    path = tmp_path / "image"
    path.write_bytes(data)
    said = (
        f"{path} ends with an administration page, but was read as memory: "
        "if it is a module alone, say --as module\n"
    )
    run(["verify", str(path)])
    assert capsys.readouterr().err == said
    run(["verify", str(path), "--as", "module"])
    assert capsys.readouterr() == (
        "bad-n-pages at 8: n_pages is 10, by the module's size it is 17\n",
        "",
    )
    for size_bytes in (1 << 20, 8 << 20):  # memory of this size may well end with its module
        ram = tmp_path / "ram"
        ram.write_bytes(bytes(size_bytes - len(REAL)) + REAL)
        run(["verify", str(ram)])
        assert capsys.readouterr() == ("", "")
    run(["verify", str(ram_with(tmp_path / "ram", REAL))])
    assert capsys.readouterr() == ("", "")
