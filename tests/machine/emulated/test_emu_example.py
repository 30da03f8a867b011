"""The example of the machine as a library does what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from kernels.pair.pair_kernel import pair_kernel

pytestmark = pytest.mark.peer

EXAMPLE = Path(__file__).parents[3] / "examples" / "try_a_kernel.py"


def test_a_kernel_is_tried_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = tmp_path / "kernel.elf"
    kernel.write_bytes(pair_kernel(64))
    main = runpy.run_path(str(EXAMPLE))["main"]
    assert main([str(kernel), "make 2;nap 3000;ticks 2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("It says: kernel 64 bit")
    assert "start info at 0x116000: 78c56e33 01000000" in out
    assert "As it is:\n  ended: poweroff" in out
    assert "From the same state (True), and a hypercall fails:\n  ended:" in out


def test_a_file_that_is_no_kernel_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(EXAMPLE))["main"]
    assert main([str(EXAMPLE)]) == 1
    assert capsys.readouterr().err.startswith("elf-magic")
    assert main([]) == 2
