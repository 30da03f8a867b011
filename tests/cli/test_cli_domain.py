"""Commands on a running domain: configured otherwise, reached elsewhere, updated in vain."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conformance.servers import XenliveServer

from xenlive.cli.status import describe_update


class Configured(XenliveServer):
    """`xenlive up` with more words, and its socket perhaps elsewhere."""

    def __init__(self, rundir: Path, *words: str | Path, socket_path: Path | None = None) -> None:
        super().__init__(rundir)
        self._boots = [str(word) for word in words]
        self.socket_path = socket_path or self.socket_path


@contextmanager
def running(server: XenliveServer) -> Iterator[XenliveServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def xenlive(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xenlive", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def answer_of(*words: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(xenlive(*words).stdout)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XenliveServer]:
    """A domain whose socket is not in its run directory."""
    folder = tmp_path_factory.mktemp("domain")
    elsewhere = folder / "elsewhere"
    made = Configured(folder / "run", "--socket", elsewhere, socket_path=elsewhere)
    with running(made):
        yield made


KEXEC = "CONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=18\n"


@pytest.mark.parametrize(
    ("text", "pages", "device"),
    [
        (f"CONFIG_9PFRONT=n\n{KEXEC}", 18, False),
        ("CONFIG_9PFRONT=y\nCONFIG_KEXEC=n\nCONFIG_KEXEC_MODULE_PAGES=18\n", 0, False),
        ("", 0, False),
    ],
    ids=["no device", "no kexec", "empty"],
)
def test_a_given_file_is_the_domains_whole_configuration(
    tmp_path: Path, text: str, pages: int, device: bool
) -> None:
    config = tmp_path / "minios.cfg"
    config.write_text(text)
    with running(Configured(tmp_path / "run", "--config", config)) as server:
        told = answer_of("status", "--rundir", server.rundir, "--json")
    assert (told["module"] or {"pages": 0})["pages"] == pages
    assert (told["ninepfs"] is not None) == device


@pytest.mark.parametrize("command", ["up", "update"])
def test_a_wrong_number_in_the_configuration_is_refused_by_line(
    command: str, tmp_path: Path
) -> None:
    config = tmp_path / "minios.cfg"
    config.write_text("CONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=banana\n")
    answer = xenlive(command, "--rundir", tmp_path / "run", "--config", config)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"{config}:2: " in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_xs_finds_a_socket_outside_of_the_run_directory(
    server: XenliveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert xenlive("xs", "write", "--rundir", server.rundir, "/a", "here").returncode == 0
    monkeypatch.setenv("XENLIVE_RUNDIR", str(server.rundir))
    monkeypatch.delenv("XENSTORED_PATH", raising=False)
    monkeypatch.delenv("XENSTORED_RUNDIR", raising=False)
    assert xenlive("xs", "read", "/a").stdout == "here\n"


def test_a_control_door_that_nobody_answers_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "control").write_bytes(b"")
    answer = xenlive("xs", "ls", "--rundir", tmp_path)
    assert answer.returncode == 1
    assert f"{tmp_path}/socket: no Xenstore" in answer.stderr


def test_every_failed_update_is_one_object_and_one_line(
    server: XenliveServer, tmp_path: Path
) -> None:
    version = answer_of("status", "--rundir", server.rundir, "--json")["domain"]["version"]
    config = tmp_path / "minios.cfg"
    config.write_text("".join(f"CONFIG_LONG_NAME_{k:04}=y\n" for k in range(400)))
    wrong = tmp_path / "wrong.cfg"
    wrong.write_text("what?\n")
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / "__main__.py").write_text("raise SystemExit('not\\ntoday')\n")
    here = ("--rundir", server.rundir)
    for words, who, why in (
        ((*here, tmp_path / "no-such-image"), version, "not accessible"),
        ((*here, tmp_path / "dead"), version, "today"),
        ((*here, "--config", config), version, ""),
        ((*here, "--config", wrong), None, "wrong.cfg:1"),
        (("--rundir", tmp_path / "nobody"), None, "no host process"),
    ):
        answer = xenlive("update", "--json", *words)
        assert answer.returncode == 1, words
        told = json.loads(answer.stdout)
        assert told.keys() == {"ok", "from", "reason"}
        assert (told["ok"], told["from"]) == (False, who)
        assert why in told["reason"]
        assert (answer.stdout.count("\n"), answer.stderr.count("\n")) == (1, 1), answer.stderr


@pytest.mark.parametrize(
    ("update", "line"),
    [
        ({"ok": True, "from": "1", "to": "2", "gap_ms": 3.21, "reason": ""}, "1 -> 2: 3.2 ms"),
        (
            {"ok": False, "from": "1", "to": "1", "reason": "a\n  b\x1b[31m"},
            "1 stayed: failed: a b?[31m",
        ),
        ({"ok": False, "from": "1", "to": "2", "reason": "why"}, "1 -> 2: failed: why"),
        (
            {"ok": False, "from": "1", "to": "1", "image": "/b\n", "reason": "why"},
            "1 -> /b : failed: why",
        ),
    ],
)
def test_an_update_is_described_in_one_line(update: dict[str, Any], line: str) -> None:
    assert describe_update(update) == line
