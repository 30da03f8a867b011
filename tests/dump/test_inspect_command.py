"""`xenlive inspect` and `xenlive verify`: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from vectors import minios

from xenlive.cli.root import run
from xenlive.dump import describe_image
from xenlive.memory.address import PAGE_SIZE

DEVICE = minios.module_image("p9-18-64", "boot1-prekexec")
ADDRESS = 0x3FEE000

PRINTED = """\
kexec module of 18 pages at 0x3fee000

memory  0x0 [-------------------------------------------------------#] 0x4000000

0x3fee000  0i 0< 0< 0< 0< 0< 0< 0< 0< 0> 0> 0> 0> 0> 0> 0> 0> #
  0  9PFS, 17 pages, 16 bytes: grant 2047, port 4
     i interface page 0, < in ring 1-8, > out ring 9-16
  1  record of type 2, 0 pages, 24 bytes
  #  administration page: 2 of 16 records, 3,960 bytes free
  .  free: 0 pages

record 0: type 1 (9PFS), 16 bytes at 96, pages 0-16
    ring_ref 2047, evtchn 4, prod_pvt_out 40342, cons_pvt_in 40326
    interface page 0: in_cons 80633, in_prod 80633, out_cons 73988, out_prod 73988, ring_order 4
    ref 2046-2031
    ring pages 1-16, by the order of the pages
    in ring: empty
    out ring: empty
record 1: type 2 (unknown), 24 bytes at 112, pages none
    171a1d202326292c2f3235383b3e4144474a4d505356595c
sound
"""

BROKEN = """\
record-outside at 32: record 0 ends at 5016, the page at 4096
owner-without-record at 14: 1 page belongs to record 9, which is unused
bytes-outside-records at 96: 16 bytes belong to no record (suspicion)
bytes-outside-records at 4000: 8 bytes belong to no record (suspicion)
"""
SUSPICION = "page-two-users at 14: the interface page 0 of record 0 belongs to record 1 (suspicion)"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A module image by itself."""
    path = tmp_path / "device"
    path.write_bytes(DEVICE)
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A module image with four problems; the third follows from the first."""
    data = bytearray(minios.module_image("mix-18-64", "entry1"))
    start = len(data) - PAGE_SIZE
    data[start + 32 : start + 34] = (5000).to_bytes(2, "little")
    data[start + 14] = 9
    data[start + 4000 : start + 4008] = b"\xf1leftover"[:8]
    path = tmp_path / "broken"
    path.write_bytes(data)
    return path


@pytest.fixture
def rundir(tmp_path: Path) -> Path:
    """A run directory whose `ram` has the device's module."""
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / "ram").open("wb") as ram:
        ram.truncate(64 << 20)
        ram.seek(ADDRESS)
        ram.write(DEVICE)
    return folder


def test_inspect_of_a_run_directory(rundir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(rundir)]) == 0
    assert capsys.readouterr() == (PRINTED, "")


def test_without_an_image_it_is_the_default_run_directory(
    rundir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENLIVE_RUNDIR", str(rundir))
    assert run(["inspect"]) == 0
    assert run(["verify"]) == 0
    assert capsys.readouterr() == (PRINTED, "")


def test_json_is_the_description(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(device), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == describe_image(device)
    assert (out.count("\n"), err) == (1, "")


def test_inspect_shows_an_unsound_module(broken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(broken)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-4:] == [f"problem: {line}" for line in BROKEN.splitlines()]
    assert err == ""


def test_a_suspicion_is_told_from_what_makes_a_module_unsound(
    device: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(DEVICE)
    data[len(data) - PAGE_SIZE + 14] = 1  # record 1 was given page 0
    device.write_bytes(data)
    assert run(["verify", str(device)]) == 1
    assert capsys.readouterr() == (SUSPICION + "\n", "")
    assert run(["inspect", str(device)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"problem: {SUSPICION}",
        "suspicions only: a kernel attaches to it",
    ]
    kinds = []
    for path in (device, broken):
        assert run(["verify", "--json", str(path)]) == 1
        said = json.loads(capsys.readouterr().out)
        kinds.append((said["sound"], said["attachable"], [p["kind"] for p in said["problems"]]))
    assert kinds == [
        (False, True, ["suspicion"]),
        (False, False, ["unsound", "unsound", "suspicion", "suspicion"]),
    ]


def test_verify_of_a_sound_module_says_nothing(
    device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(device)]) == 0
    assert capsys.readouterr() == ("", "")


def test_verify_has_a_line_for_each_problem(
    broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(broken)]) == 1
    assert capsys.readouterr() == (BROKEN, "")


@pytest.mark.parametrize("words", [[], ["--as", "module"]])
def test_verify_of_a_module_image_of_an_odd_size(
    device: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    device.write_bytes(DEVICE + b"x")
    assert run(["verify", str(device), *words]) == 1
    said = "bad-size at 0: a size of 73729 is no whole number of pages\n"
    assert capsys.readouterr() == (said, "")
    assert run(["inspect", str(device), *words]) == 0
    assert said.strip() in capsys.readouterr().out


def test_as_says_what_the_image_is(device: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(device), "--as", "memory", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["address"] == 0


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{tmp}/missing"], "xenlive: {tmp}/missing: no such file or directory"),
        (["{tmp}/empty"], "xenlive: {tmp}/empty is empty"),
        (["{tmp}"], "xenlive: no domain runs in {tmp} (no ram in it)"),
        ([], "xenlive: no domain runs in {tmp}/rundir (no ram in it)"),
        (["{tmp}/elf"], "xenlive: {tmp}/elf is a broken ELF file (Invalid EI_CLASS b'\\x00')"),
        (["{tmp}/empty/below"], "xenlive: {tmp}/empty/below: Not a directory"),
        (["/dev/null"], "xenlive: /dev/null is no regular file"),
        (["{tmp}/empty", "more"], "xenlive {command}: Got unexpected extra argument (more)"),
        (
            ["--as", "elf"],
            "xenlive {command}: Invalid value for '--as': 'elf' is not one of 'auto', 'module', "
            "'memory', 'xen-core', 'elf-core'.",
        ),
    ],
)
def test_nothing_to_describe_is_one_line_and_exit_2(
    command: str,
    arguments: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XENLIVE_RUNDIR", str(tmp_path / "rundir"))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "elf").write_bytes(b"\x7fELF" + bytes(5000))
    code = run([command, *(argument.format(tmp=tmp_path) for argument in arguments)])
    assert code == 2
    assert capsys.readouterr() == ("", says.format(tmp=tmp_path, command=command) + "\n")
