"""A compiled image: the same kernel, in part machine code, which comes along over updates."""

from __future__ import annotations

import marshal
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.servers import XenliveServer

from xenlive.builder import compiled
from xenlive.client.blocking import Xenstore
from xenlive.errors import BuildError
from xenlive.machine.hosted.host import host_status
from xenlive.machine.hosted.image import installed_image, preflight_command

VERSION = "7.7+compiled"


@pytest.fixture
def server(tmp_path: Path, compiled_image: Path) -> Iterator[XenliveServer]:
    """A domain that was started with a copy of the compiled image."""
    shutil.copytree(compiled_image, tmp_path / "image")
    started = XenliveServer(tmp_path / "run", tmp_path / "image")
    started.start()
    yield started
    started.stop()


def version(server: XenliveServer) -> object:
    return host_status(str(server.rundir))["domain"]["version"]


def machine_code(server: XenliveServer) -> int:
    """How many shared objects from memory the domain's process has."""
    pid = host_status(str(server.rundir))["domain"]["pid"]
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return len({line.split()[4] for line in maps if "/memfd:xenlive.xenstore." in line})


def test_its_modules_travel_as_machine_code(compiled_image: Path) -> None:
    fd = os.memfd_create("modules")
    done = subprocess.run(
        preflight_command(str(compiled_image), fd),
        pass_fds=[fd],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"version={VERSION} " in done.stdout
    with open(fd, "rb") as file:
        file.seek(0)
        modules = marshal.loads(file.read())[2]
    names = [name.removesuffix(".py").replace("/", ".") for name in compiled.MODULES]
    for name in names:
        assert modules[f"xenlive.{name}"][2][:4] == b"\x7fELF", name
    carried = {name for name, (_, _, code) in modules.items() if isinstance(code, bytes)}
    assert len(carried) == len(names) + 1, "none of Python's own travel"


def test_from_byte_code_to_machine_code_and_back(server: XenliveServer) -> None:
    with Xenstore.connect(server.socket_path, timeout_s=30.0) as store:
        store.write("/kept", "1")
        with store.watching("/kept") as watch:
            assert next(watch).path == "/kept"
            for image in (server.image, installed_image(), server.image, server.image):
                assert store.control("live-update", "-f", image) == "OK"
                assert store.control("live-update", "-s") == "OK"
                assert (version(server) == VERSION) == (image == server.image)
                assert bool(machine_code(server)) == (image == server.image)
                store.write("/kept", image)
                assert next(watch).path == "/kept"


def test_it_comes_back_without_its_files(server: XenliveServer, tmp_path: Path) -> None:
    """The old kernel's shared objects are in memory, as its byte code is."""
    dies = tmp_path / "dies"
    dies.mkdir()
    (dies / "__main__.py").write_text(
        "import sys\n"
        "if sys.argv[1] != '--preflight': raise SystemExit('not today')\n"
        "print('xenlive-kernel version=9 streams=1,2')\n"
    )
    with Xenstore.connect(server.socket_path, timeout_s=30.0) as store:
        store.write("/kept", "1")
        assert store.control("live-update", "-f", server.image) == "OK"
        assert store.control("live-update", "-s") == "OK"
        shutil.rmtree(server.image)
        for _ in range(2):
            assert store.control("live-update", "-f", str(dies)) == "OK"
            assert "not today" in store.control("live-update", "-s")
            assert version(server) == VERSION
            assert machine_code(server)
            assert store.read("/kept") == b"1"


def test_what_it_takes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BuildError, match="C compiler"):
        compiled.build_compiled(tmp_path / "image", "1")
    monkeypatch.setitem(sys.modules, "mypyc", None)
    with pytest.raises(BuildError, match="pip install"):
        compiled.build_compiled(tmp_path / "image", "1")
    assert not (tmp_path / "image").exists()


def test_a_compiler_that_gives_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no disk in this machine >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(compiled, "MODULES", ("xenstore/limits.py", "xenstore/words.py"))
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(BuildError, match="mypyc gave up"):
        compiled.build_compiled(tmp_path / "image", "1")
    assert list(tmp_path.iterdir()) == [broken]
