"""The JSON object: what it must have at least, and that it never looks better than it was."""

from __future__ import annotations

import json
from dataclasses import replace

from demo.evidence import MODULE, PHASES_MS, sound, with_after, with_load

from xenlive.demo.report import as_object
from xenlive.demo.run import Outcome
from xenlive.demo.verdict import Evidence, judge


def described(evidence: Evidence) -> dict[str, object]:
    found = as_object(Outcome(evidence, judge(evidence), 9.87654))
    again = json.loads(json.dumps(found))
    assert again == found
    return found


def test_a_demo_that_went_well() -> None:
    found = described(sound())
    expected = {
        "ok": True,
        "requests": 85_270,
        "failed_requests": 0,
        "nodes": 10_000,
        "nodes_lost": 0,
        "watches": 50,
        "watches_lost": 0,
        "connections_lost": 0,
        "module": {"address": MODULE, "pages": 18},
        "module_moved": False,
        "seconds": 9.877,
    }
    assert {key: found[key] for key in expected} == expected
    updates = found["updates"]
    assert isinstance(updates, list)
    assert [(u["from"], u["to"]) for u in updates] == [
        ("0.1.0", "0.1.0+b"),
        ("0.1.0+b", "0.1.0+c"),
    ]
    assert updates[0]["gap_ms"] == 61.0
    assert updates[0]["phases"] == PHASES_MS


def test_what_went_wrong_is_in_it() -> None:
    found = described(with_load(sound(), failed_requests=2, nodes_lost=1, connections_lost=3))
    assert not found["ok"]
    assert (found["failed_requests"], found["nodes_lost"], found["connections_lost"]) == (2, 1, 3)
    moved = described(with_after(sound(), 1, module_address=0x1000))
    assert moved["module_moved"] is True
    assert moved["module"] == {"address": 0x1000, "pages": 18}


def test_nothing_measured_is_all_lost() -> None:
    found = described(replace(sound(), load=None))
    assert not found["ok"]
    assert (found["nodes_lost"], found["watches_lost"]) == (10_000, 50)
    nothing = described(Evidence("", 10_000, 50, (), 2, None, None, trouble="no kernel"))
    assert nothing["module"] is None
    assert nothing["module_moved"] is True
    assert nothing["updates"] == []
