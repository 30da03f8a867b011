"""Images: a folder and a zipapp that say who they are, run anywhere, and are always the same."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

import xenlive
from xenlive.builder.images import NOT_IN_A_DOMAIN, build_folder, build_zipapp
from xenlive.demo.hosted import make_images
from xenlive.errors import ConfigError
from xenlive.machine.hosted.image import preflight_command, validate_image


def says(image: Path) -> str:
    """What an image says of itself; the modules it loads go nowhere."""
    with open(os.devnull, "wb") as nowhere:
        done = subprocess.run(
            preflight_command(str(image), nowhere.fileno()),
            pass_fds=[nowhere.fileno()],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    return str(done.stdout)


def test_both_kinds_say_their_version(tmp_path: Path) -> None:
    for image in (build_folder(tmp_path / "b", "7.7+b"), build_zipapp(tmp_path / "c", "7.7+c")):
        validate_image(str(image))
        version = "7.7+b" if image.name == "b" else "7.7+c"
        assert f"version={version} " in says(image)


def test_an_image_holds_what_a_domain_needs_and_no_more(tmp_path: Path) -> None:
    folder = build_folder(tmp_path / "b", "7.7")
    rooms = {path.name for path in (folder / "xenlive").iterdir() if path.is_dir()}
    assert "stubdom" in rooms
    assert not rooms & set(NOT_IN_A_DOMAIN)
    sources = {path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py")}
    with zipfile.ZipFile(build_zipapp(tmp_path / "c", "7.7")) as archive:
        entries = archive.infolist()
    assert {Path(entry.filename).with_suffix("") for entry in entries} == sources
    assert all(entry.filename.endswith(".pyc") for entry in entries)
    assert all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def test_every_module_of_a_folder_is_compiled(tmp_path: Path) -> None:
    folder = build_folder(tmp_path / "b", "7.7")
    compiled = {path.name.split(".")[0] for path in folder.rglob("__pycache__/*.pyc")}
    assert {path.stem for path in folder.rglob("*.py")} == compiled


def test_the_same_twice_is_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    first = build_zipapp(tmp_path / "1" / "k", "7.7").read_bytes()
    assert build_zipapp(tmp_path / "2" / "k", "7.7").read_bytes() == first
    assert list((tmp_path / "1").iterdir()) == [tmp_path / "1" / "k"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError):
        build_folder(tmp_path / "there", "7.7")
    with pytest.raises(FileExistsError):
        build_zipapp(tmp_path / "there", "7.7")
    assert (tmp_path / "there").read_bytes() == b""


@pytest.mark.parametrize("version", ["", 'a"b', "a b", "x" * 41, "1\n2"])
def test_what_is_no_version(tmp_path: Path, version: str) -> None:
    with pytest.raises(ConfigError):
        build_folder(tmp_path / "b", version)
    with pytest.raises(ConfigError):
        build_zipapp(tmp_path / "c", version)
    assert list(tmp_path.iterdir()) == []


def test_the_images_of_the_demo(tmp_path: Path) -> None:
    b, c = make_images(tmp_path, xenlive.__version__)
    assert b.path.is_dir()
    assert c.path.is_file()
    assert len({xenlive.__version__, b.version, c.version}) == 3
    assert "MODULE_PAGES=24" in b.config
    assert "MODULE_PAGES=18" in c.config
