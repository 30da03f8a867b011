"""`xenlive abi`: tables, JSON and C of the same declarations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xenlive.abi.c_header import c_header
from xenlive.abi.declared import groups
from xenlive.cli.root import run

TABLE = """\
  struct kexec_module: 14 bytes
       0  uint8_t   eye_catcher[8]
       8  uint16_t  n_pages
      10  uint16_t  n_records
      12  uint16_t  recs_off
      14  uint8_t pg2rec[n_pages]; at recs_off struct kexec_module_rec[n_records]

  struct kexec_module_rec: 4 bytes
       0  uint16_t  offset
       2  uint8_t   type
       3  uint8_t   size
"""


def test_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["abi"]) == 0
    printed = capsys.readouterr().out
    assert TABLE in printed
    assert "  KEXEC_EYE_CATCHER          'KexecMem'\n" in printed
    assert "  KEXEC_MAX_MODULE_PAGES     4019 (0xfb3)\n" in printed
    assert "  struct xs_state_preamble: 16 bytes, big endian\n" in printed
    for group in groups():
        assert f"\n{group.title}\n" in f"\n{printed}"
        assert all(f"  struct {structure.name}: " in printed for structure in group.structures)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["abi", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["groups"]
    assert [group["name"] for group in found] == [group.file for group in groups()]
    kexec = found[0]
    assert kexec["constants"]["KEXEC_EYE_CATCHER"] == b"KexecMem".hex()
    assert kexec["constants"]["KEXEC_PAGE_FREE"] == 255
    header, record = kexec["structures"][:2]
    assert header["size"] == 14
    assert record == {
        "name": "kexec_module_rec",
        "title": "kexec module record",
        "size": 4,
        "byte_order": "little",
        "packed": False,
        "followed_by": None,
        "fields": [
            {"name": "offset", "offset": 0, "size": 2, "type": "uint16_t"},
            {"name": "type", "offset": 2, "size": 1, "type": "uint8_t"},
            {"name": "size", "offset": 3, "size": 1, "type": "uint8_t"},
        ],
    }


def test_c(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["abi", "--c"]) == 0
    assert capsys.readouterr().out == c_header()


@pytest.mark.parametrize("option", ["--c", "--json"])
def test_into_a_file(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "abi"
    assert run(["abi", option, "--output", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert run(["abi", option]) == 0
    assert path.read_text(encoding="ascii") == capsys.readouterr().out


def test_a_file_that_can_not_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["abi", "--c", "--output", str(tmp_path / "missing" / "abi.h")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("abi.h: No such file or directory")


def test_two_forms_at_once_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["abi", "--c", "--json"]) == 2
    assert "--c and --json" in capsys.readouterr().err
