"""`xenlive build`: what it makes, says and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xenlive import __version__
from xenlive.machine.hosted.image import validate_image


def build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xenlive", "build", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_folder_and_a_zipapp(tmp_path: Path) -> None:
    done = build(tmp_path / "b", "--version", "7.7+b")
    assert done.stdout.startswith(f"{tmp_path / 'b'}: folder, kernel 7.7+b, ")
    validate_image(str(tmp_path / "b"))
    done = build(tmp_path / "c", "--zipapp", "--json")
    said = json.loads(done.stdout)
    assert said.pop("seconds") > 0
    assert said == {"path": str(tmp_path / "c"), "kind": "zipapp", "version": __version__}
    validate_image(str(tmp_path / "c"))


def test_a_configuration_comes_along(tmp_path: Path) -> None:
    config = tmp_path / "minios.cfg"
    config.write_text("CONFIG_KEXEC_MODULE_PAGES=24\n")
    assert build(tmp_path / "b", "--config", config).returncode == 0
    assert (tmp_path / "b" / "minios.cfg").read_text() == config.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["there"], 1, "File exists"),
        (["no/such/b"], 1, "No such file"),
        (["b", "--version", "a b"], 1, "can't be a kernel's version"),
        (["b", "--config", "none.cfg"], 1, "none.cfg"),
        (["b", "--config", "bad.cfg"], 1, "bad.cfg:1"),
        (["b", "--compiled", "--zipapp"], 2, "--compiled makes a folder"),
        (["b", "--config", "bad.cfg", "--zipapp"], 2, "--config makes a folder"),
        ([], 2, "TARGET"),
    ],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    (tmp_path / "bad.cfg").write_text("this is no configuration\n")
    done = build(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.cfg", "there"]
