"""`xenlive xs` against Debian's C daemon: what it prints, and its exit codes."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from peer.c_daemon import CDaemon

from xenlive.cli.root import run
from xenlive.cli.xs_tree import ASCII_GUIDES, UNICODE_GUIDES, draw, guides_for, printable
from xenlive.client import Xenstore
from xenlive.client.tree import Node

Xs = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, peer_build_folder: Path) -> Iterator[CDaemon]:
    with CDaemon(tmp_path_factory.mktemp("xs") / "run", shim_folder=peer_build_folder) as started:
        yield started


@pytest.fixture
def store(daemon: CDaemon) -> Iterator[Xenstore]:
    with Xenstore.connect(daemon.socket_path) as connected:
        yield connected
        for name in connected.directory("/"):
            if name != "tool":
                connected.rm(f"/{name}")


@pytest.fixture
def xs(daemon: CDaemon, store: Xenstore, capsys: pytest.CaptureFixture[str]) -> Xs:
    """Runs `xenlive xs ...` in this process: exit code, output, errors."""

    def run_xs(*arguments: str) -> tuple[int, str, str]:
        code = run(["xs", "--socket", str(daemon.socket_path), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_xs


@pytest.mark.peer
def test_write_and_read(xs: Xs) -> None:
    assert xs("write", "/a", "1", "/a/b", "two words") == (0, "", "")
    assert xs("read", "/a", "/a/b") == (0, "1\ntwo words\n", "")


@pytest.mark.peer
def test_ls_draws_children_or_the_whole_tree(xs: Xs, store: Xenstore) -> None:
    for path in ("/a/b/c", "/a/b/d", "/a/e"):
        store.write(path, path)
    assert xs("ls", "-d", "1", "/a") == (0, '├─ b = ""\n└─ e = "/a/e"\n', "")
    assert xs("ls", "/a")[1] == (
        '├─ b = ""\n│  ├─ c = "/a/b/c"\n│  └─ d = "/a/b/d"\n└─ e = "/a/e"\n'
    )
    assert xs("ls", "/a/e") == (0, "", "")
    assert xs("ls", "-p", "-d", "1", "/a")[1].splitlines()[1] == '└─ e = "/a/e"  (n0)'


@pytest.mark.peer
def test_ls_as_json(xs: Xs, store: Xenstore) -> None:
    store.write("/a/text", "x")
    store.write("/a/bytes", b"\xff\0")
    code, out, _ = xs("ls", "--json", "-p", "/a")
    assert code == 0
    assert json.loads(out) == {
        "path": "/a",
        "nodes": [
            {"path": "/a/text", "value": "x", "permissions": ["n0"]},
            {"path": "/a/bytes", "value": None, "value_hex": "ff00", "permissions": ["n0"]},
        ],
    }


@pytest.mark.peer
@pytest.mark.parametrize(
    "arguments",
    [["read", "/no"], ["ls", "/no"], ["get-perms", "/no"], ["chmod", "/no", "n0"], ["rm", "/n/o"]],
)
def test_a_missing_node_is_one_line(xs: Xs, arguments: list[str]) -> None:
    code, out, err = xs(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("xenlive: ")
    assert err.endswith("No such file or directory (ENOENT)\n")


@pytest.mark.peer
def test_several_changes_are_all_or_none(xs: Xs, store: Xenstore) -> None:
    store.write("/a", "")
    code, _, err = xs("rm", "/a", "/no/such")
    assert code == 1
    assert "ENOENT" in err
    assert store.exists("/a")
    assert xs("mkdir", "/b", "/c/d") == (0, "", "")
    assert xs("rm", "/a", "/b", "/c") == (0, "", "")
    assert store.directory("/") == ["tool"]


@pytest.mark.peer
def test_exists(xs: Xs) -> None:
    assert xs("exists", "/tool") == (0, "", "")
    assert xs("exists", "/no") == (1, "", "")


@pytest.mark.peer
def test_permissions(xs: Xs, store: Xenstore) -> None:
    store.write("/a/b", "")
    assert xs("chmod", "/a", "b0", "r5") == (0, "", "")
    assert xs("get-perms", "/a") == (0, "b0 r5\n", "")
    assert xs("get-perms", "/a/b") == (0, "n0\n", "")
    xs("chmod", "-R", "/a", "r0")
    assert xs("get-perms", "/a/b") == (0, "r0\n", "")


@pytest.mark.peer
def test_control(xs: Xs) -> None:
    assert "live-update" in xs("control", "help")[1]
    assert xs("control", "live-update", "-f", "/no/such") == (0, "File not accessible.\n", "")
    assert xs("control", "no-such")[0] == 1


@pytest.mark.peer
def test_raw_bytes_come_unchanged(daemon: CDaemon, store: Xenstore) -> None:
    value = bytes(range(256))
    store.write("/a", value)
    command = [sys.executable, "-m", "xenlive", "xs", "read", "--raw", "/a"]
    answer = subprocess.run(
        command, env=daemon.environment, capture_output=True, check=True, timeout=60
    )
    assert answer.stdout == value


def listen_to_sigint() -> None:
    """In a new process: background jobs, and all they start, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def xs_process(daemon: CDaemon, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`xenlive xs ...` in a process of its own, gone at the end whatever happens."""
    with subprocess.Popen(
        [sys.executable, "-m", "xenlive", "xs", *arguments],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_sigint,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(process: subprocess.Popen[str], limit_s: float = 30.0) -> str:
    """What it says first, waited for no longer than `limit_s`."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], limit_s)
    assert ready, "not a word"
    return process.stdout.readline()


@pytest.mark.peer
def test_watch_is_live_and_counts(daemon: CDaemon, store: Xenstore) -> None:
    with xs_process(daemon, "watch", "-n", "2", "/a") as watching:
        assert first_line(watching) == "/a is gone\n"  # not there yet
        store.write("/a/b", "")
        assert watching.communicate(timeout=30) == ('/a/b = ""\n', "")
        assert watching.returncode == 0


@pytest.mark.peer
def test_an_interrupted_watch_is_quiet(daemon: CDaemon) -> None:
    with xs_process(daemon, "watch", "/a") as watching:
        first_line(watching)
        watching.send_signal(signal.SIGINT)
        assert watching.communicate(timeout=30) == ("", "\n")
        assert watching.returncode == 130


@pytest.mark.parametrize(
    "arguments",
    [
        ["read", "relative"],
        ["read"],
        ["write", "/a"],
        ["chmod", "/a", "x5"],
        ["watch", "/a", "--count", "0"],
        ["ls", "--socket", "/a", "--rundir", "/b"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(["xs", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["xs", "ls", "--rundir", str(tmp_path)]) == 1
    assert f"{tmp_path}/socket: no Xenstore" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"plain", "plain"),
        (b"\x1b[31m\n\0", "\\x1b[31m\\n\\x00"),
        (b"\xff", "\\xff"),
        ("é\u202e".encode(), "é\\u202e"),  # a mark that turns the writing around
    ],
)
def test_nothing_a_terminal_acts_on_is_printed(value: bytes, shown: str) -> None:
    assert printable(value) == shown


def test_guides_follow_the_terminal() -> None:
    assert guides_for("utf-8") is UNICODE_GUIDES
    assert guides_for("latin-1") is ASCII_GUIDES
    assert guides_for("no-such-encoding") is ASCII_GUIDES
    node = Node("/a/b", None, None, (False, True))
    assert [*draw([node], ASCII_GUIDES)] == ["\x1b[2m|  `- \x1b[0mb = (no access)"]
