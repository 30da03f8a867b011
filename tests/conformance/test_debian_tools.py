"""Debian's own command line tools see the same Xenstore, whoever serves it.

Expected output is what the tools of Xen 4.17 print against the C daemon.
"""

from __future__ import annotations

import signal
import subprocess

import pytest
from conformance.conftest import Run
from conformance.servers import Server
from peer.tools import client_tool

from xenlive.client.blocking import Xenstore

pytestmark = pytest.mark.peer


def test_a_fresh_store(own_server: Server) -> None:
    with Xenstore.connect(own_server.socket_path) as store:
        assert sorted(store.directory("/")) == ["tool"]
        assert store.directory("/tool") == ["xenstored"]
        assert store.read("/tool/xenstored") == b""
        assert [str(p) for p in store.get_perms("/")] == ["n0"]


def test_write_and_read(run: Run, place: str) -> None:
    assert run("write", f"{place}/a", "one", f"{place}/b", "two words").returncode == 0
    answer = run("read", f"{place}/a", f"{place}/b")
    assert (answer.stdout, answer.stderr) == ("one\ntwo words\n", "")
    answer = run("read", "-p", f"{place}/a")
    assert answer.stdout == f"{place}/a: one\n"


def test_read_of_nothing(run: Run, place: str) -> None:
    answer = run("read", f"{place}/none")
    assert answer.returncode == 1
    assert answer.stderr == f"xenstore-read: couldn't read path {place}/none\n"


def test_list_keeps_the_order_of_making(run: Run, place: str) -> None:
    for name in ("zebra", "ant", "m"):
        run("write", f"{place}/{name}", "")
    assert run("list", place).stdout == "zebra\nant\nm\n"
    assert run("list", "-p", place).stdout == f"{place}/zebra\n{place}/ant\n{place}/m\n"


def test_ls_shows_the_tree(run: Run, place: str) -> None:
    run("write", f"{place}/a", "1", f"{place}/a/b", "2", f"{place}/c", "")
    assert run("ls", place).stdout == 'a = "1"\n b = "2"\nc = ""\n'
    assert run("ls", "-f", place).stdout == (
        f'{place}/a = "1"\n{place}/a/b = "2"\n{place}/c = ""\n'
    )


def test_ls_with_permissions(run: Run, place: str) -> None:
    run("write", f"{place}/a", "1")
    assert run("chmod", f"{place}/a", "n0", "r5").returncode == 0
    (line,) = run("ls", "-f", "-p", place).stdout.splitlines()
    assert line.startswith(f'{place}/a = "1"')
    assert line.endswith("(n0,r5)")


def test_chmod_recursive_and_inherited(run: Run, place: str) -> None:
    run("write", f"{place}/a/b", "1")
    assert run("chmod", "-r", place, "b0").returncode == 0
    run("write", f"{place}/a/b/new", "1")
    lines = run("ls", "-f", "-p", place).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        f"{place}/a",
        f"{place}/a/b",
        f"{place}/a/b/new",
    ]
    assert all(line.endswith("(b0)") for line in lines)


def test_exists(run: Run, place: str) -> None:
    run("write", f"{place}/a", "1")
    assert run("exists", f"{place}/a").returncode == 0
    assert run("exists", f"{place}/b").returncode == 1


def test_rm_removes_all_below(run: Run, place: str) -> None:
    run("write", f"{place}/a/b/c", "1", f"{place}/d", "2")
    assert run("rm", f"{place}/a").returncode == 0
    assert run("ls", place).stdout == 'd = "2"\n'
    assert run("exists", f"{place}/a/b/c").returncode == 1


def test_rm_of_a_missing_node(run: Run, place: str) -> None:
    run("write", place, "")
    assert run("rm", f"{place}/none").returncode == 0
    answer = run("rm", f"{place}/none/below")
    assert answer.returncode == 1
    assert answer.stderr == f"xenstore-rm: could not remove path {place}/none/below\n"


def test_rm_tidily_removes_empty_parents(run: Run, place: str) -> None:
    run("write", f"{place}/keep", "", f"{place}/a/b/c", "")
    assert run("rm", "-t", f"{place}/a/b/c").returncode == 0
    assert run("ls", place).stdout == 'keep = ""\n'


def test_ls_of_nothing(run: Run, place: str) -> None:
    answer = run("ls", f"{place}/none")
    assert answer.returncode == 1
    assert answer.stderr == f"xenstore-ls: xs_directory ({place}/none): No such file or directory\n"


def test_a_directory_longer_than_one_message(run: Run, store: Xenstore, place: str) -> None:
    names = [f"child-with-a-long-name-{number:04d}" for number in range(400)]
    for name in names:
        store.write(f"{place}/{name}", "")
    assert run("list", place).stdout.split() == names
    assert store.directory(place) == names


def test_values_of_any_bytes(run: Run, store: Xenstore, place: str) -> None:
    store.write(place, bytes(range(256)))
    assert store.read(place) == bytes(range(256))
    # The tool shows what is not printable as escapes.
    shown = run("read", place).stdout
    assert shown.startswith("\\000\\001")
    assert "ABC" in shown


def test_watch_prints_each_change(server: Server, run: Run, place: str) -> None:
    run("write", place, "")
    watching = subprocess.Popen(
        [str(client_tool("watch")), "-n", "4", place],
        env=server.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        first = watching.stdout.readline()  # fired by being set: from now on it sees changes
        run("write", f"{place}/a", "1")
        run("rm", f"{place}/a")
        run("chmod", place, "r0")
        rest = watching.communicate(timeout=20)[0]
    finally:
        if watching.poll() is None:
            watching.send_signal(signal.SIGKILL)
            watching.wait()
    assert (first + rest).splitlines() == [place, f"{place}/a", f"{place}/a", place]


def test_control_help_and_check(run: Run) -> None:
    answer = run("control", "help")
    assert answer.returncode == 0
    assert "live-update" in answer.stdout
    assert run("control", "check").returncode == 0


def test_control_knows_no_such_command(run: Run) -> None:
    assert run("control", "no-such-command").returncode != 0
