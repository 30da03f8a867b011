"""What an image may say of itself, and what an entered one may do to prevent coming back."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.servers import XenliveServer
from hypothesis import given, settings
from hypothesis import strategies as st
from machine.hosts import descriptors_of, make_image, status, update, xenlive

from xenlive.client.blocking import Xenstore
from xenlive.errors import UpdateError
from xenlive.machine.guest import LoadedImage
from xenlive.machine.hosted.image import installed_image, validate_image
from xenlive.machine.hosted.trial import parse_answer

REAL = "sys.argv[1] != '--preflight'"


@pytest.mark.parametrize(
    ("text", "streams"),
    [
        ("xenlive-kernel version=1 streams=1,2", (1, 2)),
        ("noise\n\n  xenlive-kernel streams=1 version=0.1+x more=words\nnoise", (1,)),
    ],
)
def test_an_answer_is_found_among_other_lines(text: str, streams: tuple[int, ...]) -> None:
    answer = parse_answer("/image", text)
    assert isinstance(answer, LoadedImage)
    assert answer.streams == streams


@pytest.mark.parametrize(
    "text",
    [
        "",
        "xenlive-kernel",
        "xenlive-kernel version=1",
        "xenlive-kernel version= streams=1",
        "xenlive-kernel version=1 streams=",
        "xenlive-kernel version=1 streams=1,,2",
        "xenlive-kernel version=1 streams=-1",
        "xenlive-kernel version=1 streams=" + "9" * 5000,
        "xenlive-kernel version=1 streams=" + ",".join("1" * 5000),
        "xenlive-kernel version=" + "x" * 5000 + " streams=1",
        "xenlive-kernel version=1 streams=\N{SUPERSCRIPT TWO}",
    ],
)
def test_what_is_no_answer_is_refused(text: str) -> None:
    assert isinstance(parse_answer("/image", text), UpdateError)


@settings(deadline=None, max_examples=200)
@given(st.text() | st.text().map(lambda text: f"xenlive-kernel version=1 streams={text}"))
def test_no_text_makes_the_parser_fail(text: str) -> None:
    answer = parse_answer("/image", text)
    assert isinstance(answer, LoadedImage | UpdateError)


def test_a_relative_path_is_no_image() -> None:
    with pytest.raises(UpdateError, match="not accessible"):
        validate_image("image")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[XenliveServer]:
    made = XenliveServer(tmp_path / "run")
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize(
    "before",
    [
        r"raise RuntimeError('\udcff')",
        r"raise RuntimeError('\ud800 \x1b[2J \n')",
        "class Odd(Exception):\n  def __str__(self): raise ValueError\nraise Odd",
        "sys.orig_argv.clear(); raise ValueError",
        "import posix; posix.execv = None; raise ValueError",
        "raise KeyboardInterrupt",
        "raise MemoryError",
        "def f(): f()\nf()",
    ],
)
def test_coming_back_does_not_depend_on_how_a_kernel_ends(
    server: XenliveServer, tmp_path: Path, before: str
) -> None:
    guarded = f"if {REAL}:\n  " + before.replace("\n", "\n  ")
    with Xenstore.connect(server.socket_path, timeout_s=60.0) as store:
        store.write("/kept", "1")
        answer = update(server, make_image(tmp_path / "bad", guarded))
        assert answer.returncode == 1
        assert answer.stderr.count("\n") == 1
        assert store.read("/kept") == b"1"
        assert status(server)["updates_failed"] == 1


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (None, "not accessible"),
        ("def (", "SyntaxError"),
        ("raise SystemExit('not today')", "not today"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
    ],
)
def test_a_first_kernel_that_does_not_boot_ends_the_host_with_its_reason(
    tmp_path: Path, code: str | None, why: str
) -> None:
    image = tmp_path / "image"
    if code is not None:
        make_image(image, code)
    answer = xenlive("up", "--rundir", tmp_path / "deep" / "run", image)
    assert answer.returncode == 1
    assert why in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "Xenstore on" not in answer.stdout
    assert not (tmp_path / "deep").exists()


STATE = "run/9pfs/xenstore-state"


@pytest.mark.parametrize(
    "damage", ["os.truncate(path, 100)", "os.unlink(path)", "open(path, 'ab').write(b'x' * 99)"]
)
def test_coming_back_does_not_depend_on_the_state_file(
    server: XenliveServer, tmp_path: Path, damage: str
) -> None:
    guarded = f"import os\npath = {str(tmp_path / STATE)!r}\nif {REAL}: {damage}; raise ValueError"
    with Xenstore.connect(server.socket_path, timeout_s=60.0) as store:
        store.write("/kept", "1")
        assert update(server, make_image(tmp_path / "bad", guarded)).returncode == 1
        assert store.read("/kept") == b"1"
        assert update(server).returncode == 0
        assert store.read("/kept") == b"1"


def test_coming_back_does_not_depend_on_the_device(server: XenliveServer, tmp_path: Path) -> None:
    """An image that clears the grant table takes the device away, and nothing else."""
    clear = (
        f"if {REAL}:\n"
        "  from xenlive.machine.hosted.guest import HostedGuest\n"
        "  machine = HostedGuest(int(sys.argv[1]))\n"
        "  machine.grant_frames[:] = bytes(len(machine.grant_frames))\n"
        "  raise ValueError('gone')"
    )
    with Xenstore.connect(server.socket_path, timeout_s=60.0) as store:
        store.write("/kept", "1")
        assert update(server, make_image(tmp_path / "bad", clear)).returncode == 1
        assert store.read("/kept") == b"1"
        answer = update(server)
        assert answer.returncode == 1
        assert "device" in answer.stderr
        assert store.read("/kept") == b"1"


BROKEN = f"if {REAL}: raise ValueError('broken')"


def started_from(image: Path, tmp_path: Path) -> XenliveServer:
    """A host whose first kernel came from `image` and has had the time to keep its code."""
    server = XenliveServer(tmp_path / "run", image=image)
    server.start()
    pid = status(server)["domain"]["pid"]
    until_s = time.monotonic() + 20
    while not any("xenlive-image" in what for what in descriptors_of(pid)):
        assert time.monotonic() < until_s, "the running code was never kept"
        time.sleep(0.02)
    return server


@pytest.mark.parametrize("fate", ["removed", "broken", "replaced"])
def test_what_comes_back_is_the_kernel_that_ran_whatever_became_of_its_files(
    tmp_path: Path, fate: str
) -> None:
    image = make_image(tmp_path / "image")
    server = started_from(image, tmp_path)
    try:
        with Xenstore.connect(server.socket_path, timeout_s=60.0) as store:
            store.write("/kept", "1")
            for _ in range(2):
                shutil.rmtree(image)
                if fate == "broken":
                    make_image(image, BROKEN)
                elif fate == "replaced":
                    make_image(image, after="kernel.__version__ = '9'")
                bad = make_image(tmp_path / f"bad-{time.monotonic_ns()}", BROKEN)
                answer = update(server, image if fate == "broken" else bad)
                assert answer.returncode == 1
                assert "broken" in answer.stderr
                assert store.read("/kept") == b"1"
                assert status(server)["domain"]["version"] != "9"
                if not image.exists():
                    image.mkdir()
            assert update(server).returncode == 0
            assert store.read("/kept") == b"1"
    finally:
        server.stop()


def test_an_update_goes_on_after_one_that_the_backend_slept_through(
    server: XenliveServer,
) -> None:
    with Xenstore.connect(server.socket_path, timeout_s=60.0) as store:
        store.write("/kept", "1")
        assert store.control("live-update", "-f", installed_image()) == "OK"
        os.kill(server.pid, signal.SIGSTOP)
        try:
            answer = store.control("live-update", "-s")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert "no answer" in answer
        assert store.read("/kept") == b"1"
        answer = update(server).stderr
        assert answer == ""
        assert store.read("/kept") == b"1"
