"""The pytest plugin as other projects meet it: in a pytest process of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "lamp"
GUIDE = ROOT / "docs" / "testing-with-xenlive.md"
PATIENCE_S = 120.0


def run_pytest(folder: Path, *arguments: str, installed: bool = False) -> tuple[int, str]:
    """Exit code and output of pytest in `folder`.

    It has all plugins that are installed, if asked for, else ours alone, which is faster.
    """
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if not installed:
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        arguments = ("-p", "xenlive.testing.plugin", *arguments)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def make_project(folder: Path, code: str, settings: str = "") -> None:
    """A project with one file of tests."""
    (folder / "pytest.ini").write_text(f"[pytest]\naddopts = --strict-markers\n{settings}")
    (folder / "test_it.py").write_text(f"import os, pytest\nfrom pathlib import Path\n\n{code}")


def test_the_example_passes() -> None:
    code, said = run_pytest(EXAMPLE, "-q", installed=True)
    assert code == 0, said
    assert "6 passed" in said


def test_the_guide_shows_what_the_example_does() -> None:
    example = "".join(path.read_text() for path in EXAMPLE.rglob("*.py"))
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    *shown, alone = blocks
    for block in shown:
        assert block in example
    ended = subprocess.run(
        [sys.executable, "-c", alone],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert ended.stdout == "b'ACME' b'1'\n"


def test_what_a_store_starts_with(tmp_path: Path) -> None:
    make_project(
        tmp_path,
        """
@pytest.mark.xenstore(seed={"/a": "marker"}, quotas={"watches": 3})
def test_marker(xenstore):
    assert xenstore.client.read("/a") == b"marker"
    assert [xenstore.client.get_quota(name) for name in ("nodes", "watches")] == [50, 3]

def test_project(xenstore, make_xenstore):
    other = make_xenstore(quotas={"nodes": 7})
    for store, nodes in ((xenstore, 50), (other, 7)):
        assert store.client.read("/a") == b"file"
        assert store.client.get_perms("/a") == store.client.get_perms("/a")
        assert [store.client.get_quota(name) for name in ("nodes", "watches")] == [nodes, 4]
""",
        "xenstore_seed = seed.json\nxenstore_quotas =\n  nodes=50\n  watches=4\n",
    )
    tree = '{"xenstore": 1, "path": "/a", "nodes": [{"path": "/a", "value": "%s"}]}'
    (tmp_path / "seed.json").write_text(tree % "file")
    code, said = run_pytest(tmp_path, "-q")
    assert code == 0, said
    (tmp_path / "other.json").write_text(tree % "option")
    options = ("--xenstore-seed", "other.json", "--xenstore-quota", "nodes=51")
    code, said = run_pytest(tmp_path, "-q", *options)
    assert code == 1
    assert "2 failed" in said
    assert "b'option'" in said
    assert "[51, 3]" in said


def test_servers_of_a_session_and_of_a_test(tmp_path: Path) -> None:
    make_project(
        tmp_path,
        """
def test_one(xenstore_session):
    assert os.environ["XENSTORED_PATH"] == str(xenstore_session.socket_path)
    xenstore_session.client.write("/a", "1")

def test_two(xenstore_session, xenstore):
    assert xenstore_session.client.read("/a") == b"1"
    assert not xenstore.client.exists("/a")
    assert os.environ["XENSTORED_RUNDIR"] == str(xenstore.rundir)

def test_three(xenstore_session):
    assert os.environ["XENSTORED_PATH"] == str(xenstore_session.socket_path)
    Path("left").write_text(str(xenstore_session.rundir))

def test_four():
    assert Path(Path("left").read_text()).exists()
""",
    )
    code, said = run_pytest(tmp_path, "-q", "-W", "error")
    assert code == 0, said
    assert not Path((tmp_path / "left").read_text()).exists()


def test_what_the_server_said_is_in_the_report(tmp_path: Path) -> None:
    make_project(
        tmp_path,
        """
def test_it(xenstore):
    xenstore.client.control("print", "a word from the server")
    assert False
""",
    )
    code, said = run_pytest(tmp_path)
    assert code == 1
    assert "a word from the server" in said


@pytest.mark.parametrize("quota", ["nodes", "nodes=-1", "nodes=x"])
def test_a_wrong_quota_stops_the_run(tmp_path: Path, quota: str) -> None:
    code, said = run_pytest(tmp_path, "--xenstore-quota", quota)
    assert code == 4
    assert f"{quota!r} is no quota: NAME=N" in said


def test_wrong_words_are_explained(tmp_path: Path) -> None:
    make_project(
        tmp_path,
        """
@pytest.mark.xenstore(tree={})
def test_unknown(xenstore): pass

@pytest.mark.xenstore({})
def test_unnamed(xenstore): pass

@pytest.mark.xenstore(quotas={"none": 1})
def test_refused(xenstore): pass

@pytest.mark.xenstore(seed=Path("/no/such"))
def test_missing(xenstore): pass
""",
    )
    ended, said = run_pytest(tmp_path)
    assert ended == 1
    assert "4 errors" in said
    assert said.count("the marker is xenstore(seed=..., quotas=...)") >= 2
    assert "set quota none: EINVAL" in said
    assert "No such file" in said


def test_without_a_fixture_nothing_is_started_or_loaded(tmp_path: Path) -> None:
    make_project(
        tmp_path,
        """
import sys

def test_it():
    loaded = {name for name in sys.modules if name.startswith("xenlive.")}
    assert loaded == {"xenlive.testing", "xenlive.testing.plugin"}
""",
    )
    code, said = run_pytest(tmp_path, "-q")
    assert code == 0, said
