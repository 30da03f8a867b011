"""docs/xenstore.md: what it shows is so."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from xenlive.client import Xenstore
from xenlive.testing import PrivateXenstore
from xenlive.xenstore import quota

GUIDE = (Path(__file__).parents[2] / "docs" / "xenstore.md").read_text()


def test_the_python_of_the_guide_runs(
    xenstore: PrivateXenstore, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    assert len(code) == 1
    here = code[0].replace("/tmp/xs/socket", str(xenstore.socket_path))
    assert here != code[0]
    exec(compile(here, "docs/xenstore.md", "exec"), {})
    assert capsys.readouterr().out == "/shop\n"
    assert xenstore.client.read_text("/shop/sold") == "1"


def test_the_quotas_of_the_guide_are_the_defaults(xenstore: PrivateXenstore) -> None:
    shown = dict(re.findall(r"^([a-z-]+) +(\d+)$", GUIDE, re.M))
    assert {name: int(value) for name, value in shown.items()} == quota.DEFAULTS


def test_the_verbs_of_the_guide_are_those_of_help(xenstore: PrivateXenstore) -> None:
    row = re.search(r"^\| CONTROL \| (.*) \|$", GUIDE, re.M)
    assert row is not None
    said = xenstore.client.control("help")
    known = {line.split()[0] for line in said.splitlines()}
    assert known <= set(re.findall(r"`([a-z-]+)`", row[1]))


def test_two_clients_count_together(xenstore: PrivateXenstore) -> None:
    """The guide's transaction loses nothing."""

    def count() -> None:
        with Xenstore.connect(xenstore.socket_path) as store:
            for _ in range(20):
                for attempt in store.transactions(attempts=1000):
                    with attempt as tx:
                        tx.write("/sold", str(int(tx.get("/sold") or 0) + 1))

    both = [threading.Thread(target=count) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert xenstore.client.read_text("/sold") == "40"
