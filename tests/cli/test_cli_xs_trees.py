"""`xenlive xs` on a store of its own: dump and load, watching, limits, JSON."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xenlive.cli.root import run
from xenlive.cli.xs_tree import shown_value
from xenlive.client import Permission, Xenstore, tree
from xenlive.client.tree import Node
from xenlive.errors import XenstoreError
from xenlive.testing import PrivateXenstore

Xs = Callable[..., tuple[int, str, str]]


@pytest.fixture
def xs(xenstore: PrivateXenstore, capsys: pytest.CaptureFixture[str]) -> Xs:
    """Runs `xenlive xs ...` in this process: exit code, output, errors."""

    def run_xs(*arguments: str) -> tuple[int, str, str]:
        code = run(["xs", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_xs


@pytest.fixture
def nodes(xenstore: PrivateXenstore) -> list[Node]:
    """A tree with all kinds of values and permissions, made and as it is found."""
    client = xenstore.client
    client.write("/t", bytes(range(256)))
    client.write("/t/text", 'quotes " and \N{EURO SIGN}\n\0')
    client.write("/t/empty/below", "")
    client.set_perms("/t/text", [Permission(0, "b")])
    return client.carry_out(tree.collect("/t"))


def found(xenstore: PrivateXenstore, top: str) -> list[Node]:
    return xenstore.client.carry_out(tree.collect(top))


@pytest.mark.parametrize("how", [[], ["--live"]])
def test_what_is_dumped_can_be_loaded(
    xs: Xs, xenstore: PrivateXenstore, nodes: list[Node], tmp_path: Path, how: list[str]
) -> None:
    file = tmp_path / "dump.json"
    assert xs("dump", *how, "-o", str(file), "/t") == (0, "", "")
    assert xs("dump", *how, "/t") == (0, file.read_text(), "")
    assert len(json.loads(file.read_text())["nodes"]) == 4
    xenstore.client.rm("/t")
    assert xs("load", str(file)) == (0, "4 nodes loaded, in one transaction\n", "")
    assert found(xenstore, "/t") == nodes


def test_loading_elsewhere_and_over(
    xs: Xs, xenstore: PrivateXenstore, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    dumped = xs("dump", "/t")[1]

    def load(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(dumped.encode())))
        return xs("load", *arguments)

    xenstore.client.write("/copy/of/it/old", "")
    assert load("--at", "/copy/of/it")[0] == 0
    assert xenstore.client.exists("/copy/of/it/old")
    assert load("--at", "/copy/of/it", "--replace")[0] == 0
    assert [node.path for node in found(xenstore, "/copy/of/it")] == [
        node.path.replace("/t", "/copy/of/it", 1) for node in nodes
    ]
    assert load("--at", "/plain", "--no-perms", "--json", "--parts", "3") == (
        0,
        '{"path": "/plain", "nodes": 4, "transactions": 2}\n',
        "",
    )
    assert xenstore.client.get_perms("/plain/text") == [Permission(0, "n")]


def test_all_of_a_store_goes_into_another(
    xs: Xs, nodes: list[Node], make_xenstore: Callable[..., PrivateXenstore], tmp_path: Path
) -> None:
    assert xs("dump", "-o", str(tmp_path / "all"))[0] == 0
    other = make_xenstore(seed={"/old/tree": "1"})
    assert (
        xs("load", "--socket", str(other.socket_path), "--replace", str(tmp_path / "all"))[0] == 0
    )
    assert found(other, "/t") == nodes
    assert not other.client.exists("/old")


def load_of(*entries: dict[str, Any]) -> str:
    return json.dumps({"xenstore": 1, "path": "/t", "nodes": entries})


def test_all_or_nothing_and_parts_that_say_so(
    xs: Xs, xenstore: PrivateXenstore, tmp_path: Path
) -> None:
    file = tmp_path / "load.json"
    good = [{"path": f"/t/{number}", "value": ""} for number in range(4)]
    file.write_text(load_of(*good, {"path": "/t/a b", "value": ""}))
    code, out, err = xs("load", str(file))
    assert (code, out) == (1, "")
    assert err == "xenlive: write /t/a b: Invalid argument (EINVAL)\n"
    assert not xenstore.client.exists("/t")
    code, out, err = xs("load", "--parts", "2", str(file))
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "4 of 5 nodes were loaded before this:"
    assert xenstore.client.directory("/t") == ["0", "1", "2", "3"]


def test_a_domain_that_is_not_there(xs: Xs, xenstore: PrivateXenstore, tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    file.write_text(load_of({"path": "/t", "value": "", "permissions": ["n77"]}))
    code, _, err = xs("load", str(file))
    assert code == 1
    assert err == (
        "xenlive: set-perms /t: a domain that it names is not there; load without with --no-perms\n"
    )
    assert xs("load", "--no-perms", str(file))[0] == 0


@pytest.mark.parametrize("text", ["{", "[]", load_of({"path": "/x", "value": ""})])
def test_files_that_are_no_trees(
    xs: Xs, xenstore: PrivateXenstore, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "load.json"
    file.write_text(text)
    code, out, err = xs("load", str(file))
    assert (code, out) == (1, "")
    assert err.startswith(f"xenlive: {file}: ")
    assert len(err.splitlines()) == 1
    assert xs("load", str(tmp_path / "none"))[0] in (1, 2)


def test_what_can_not_be_dumped(xs: Xs, tmp_path: Path) -> None:
    assert xs("dump", "/no") == (1, "", "xenlive: read /no: No such file or directory (ENOENT)\n")
    file = tmp_path / "kept"
    file.write_text("as it was")
    assert xs("dump", "--live", "-o", str(file), "/no")[0] == 1
    assert file.read_text() == "as it was"
    assert [*tmp_path.iterdir()] == [file]
    assert xs("dump", "-o", str(tmp_path / "no" / "such"), "/")[0] == 1
    assert xs("dump", "-o", "/dev/null", "/tool") == (0, "", "")
    assert not Path("/dev/null").is_file()


def test_a_tree_that_never_stands_still(
    xs: Xs, nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Xenstore, *arguments: object) -> None:
        raise XenstoreError("EAGAIN", "commit")

    monkeypatch.setattr(Xenstore, "transact", busy)
    code, out, err = xs("dump", "/t")
    assert (code, out) == (1, "")
    assert "--live takes it as it is found" in err


def test_watching_shows_values(xs: Xs, xenstore: PrivateXenstore) -> None:
    xenstore.client.write("/t", "a\x1b")
    assert xs("watch", "-n", "1", "/t") == (0, '/t = "a\\x1b"\n', "")
    assert xs("watch", "-q", "-n", "1", "/t") == (0, "/t\n", "")
    assert xs("watch", "-n", "1", "/no") == (0, "/no is gone\n", "")
    assert xs("watch", "-n", "1", "--depth", "0", "@releaseDomain")[:2] == (0, "@releaseDomain\n")


def test_watching_as_json(xs: Xs, xenstore: PrivateXenstore) -> None:
    xenstore.client.write("/t", b"\xff")
    said = [json.loads(xs("watch", "--json", "-n", "1", path)[1]) for path in ("/t", "/no")]
    assert said == [
        {"path": "/t", "exists": True, "value": None, "value_hex": "ff"},
        {"path": "/no", "exists": False, "value": None},
    ]


def test_values_and_permissions_as_json(xs: Xs, xenstore: PrivateXenstore) -> None:
    xenstore.client.write("/t", "x")
    assert json.loads(xs("read", "--json", "/t")[1]) == {"nodes": [{"path": "/t", "value": "x"}]}
    assert json.loads(xs("get-perms", "--json", "/t")[1]) == {"path": "/t", "permissions": ["n0"]}
    assert json.loads(xs("control", "--json", "check")[1]) == {"command": ["check"], "said": "OK"}
    assert xs("read", "--json", "--raw", "/t")[0] == 2


def test_quotas(xs: Xs, xenstore: PrivateXenstore) -> None:
    assert xs("quota", "nodes", "77") == (0, "", "")
    assert xs("quota", "nodes") == (0, "77\n", "")
    guest = xenstore.new_guest()
    assert xs("quota", "--domain", str(guest.domid), "nodes", "33") == (0, "", "")
    assert xs("quota", "--domain", str(guest.domid), "nodes")[1] == "33\n"
    code, out, _ = xs("quota")
    assert code == 0
    assert {"nodes", "watches"} <= {line.split()[0] for line in out.splitlines()}
    assert json.loads(xs("quota", "--json", "nodes")[1]) == {"domid": None, "quotas": {"nodes": 77}}
    assert xs("quota", "no-such")[0] == 1
    assert xs("quota", "nodes", "-1")[0] == 2


def test_features(xs: Xs) -> None:
    code, out, _ = xs("features")
    assert code == 0
    assert "error" in out.split()
    said = json.loads(xs("features", "--json")[1])
    assert said["features"] == out.split()
    assert said["bits"] > 0


def test_what_we_may_not_know_is_said() -> None:
    assert shown_value(None) == "(no access)"
    assert shown_value(b"x") == '"x"'
