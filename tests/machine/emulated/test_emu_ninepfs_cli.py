"""`xenlive boot --share`: what the guest gets, and what is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kernels.devices.device_kernel import device_kernel

from xenlive.cli.root import run

pytestmark = pytest.mark.peer


def boot(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kernel = folder / "kernel.elf"
    kernel.write_bytes(device_kernel(64))
    return subprocess.run(
        [sys.executable, "-m", "xenlive", "boot", str(kernel), "--memory", "16M", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_directories_are_devices_in_order(tmp_path: Path) -> None:
    for name in ("one", "two", "with=sign"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "f").write_text("seen")
    done = boot(
        tmp_path,
        *("--share-readonly", "two=tag-2", "--share", "one", "--share", "with=sign", "--json"),
        *("--share-files", "1", "--cmdline"),
        "node device/9pfs/0/tag; node device/9pfs/1/tag; node device/9pfs/2/tag;"
        "device 2; rings 1 4; connect; version; attach 0; walk 0 1 f; open 1 0; get 1 0 9;"
        "walk 0 2; create 2 1 420 g; device 0; rings 1 4; offer; back 4; attach 0; walk 0 1;"
        "create 1 1 420 a; walk 0 2; create 2 1 420 b",
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)["console"]
    tags = ["share0", "share1", "tag-2"]
    assert [line.split()[-1] for line in said.splitlines() if "/tag" in line] == tags
    assert "\nseen\n" in said
    results = [int(line.split()[1]) for line in said.splitlines() if line.startswith("> ")]
    assert results[11:13] == [0, -30]
    assert results[-4:] == [0, 0, 0, -28]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--share", "nothing"], "nothing: No such file or directory"),
        (["--share", "kernel.elf"], "kernel.elf: Not a directory"),
        (["--share", ".=a b"], "--share .=a b: 'a b' is no tag"),
        (["--share", ".="], "--share .=: '' is no tag"),
        (["--share", ".=" + "t" * 32], "its tag is longer than 31"),
        (["--share", ".=t", "--share-readonly", ".=t"], "the tag t is another share's"),
    ],
)
def test_what_can_not_be_shared_is_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    why: str,
) -> None:
    (tmp_path / "kernel.elf").write_bytes(device_kernel(64))
    monkeypatch.chdir(tmp_path)
    assert run(["boot", "kernel.elf", "--memory", "16M", *words]) == 1
    said = capfd.readouterr().err
    assert why in said
    assert len(said.splitlines()) == 1
