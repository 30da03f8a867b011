"""The plan of the store: exact in size, always the same, and within what one answer can hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.demo.tree import DEFAULT, ROOT, make_tree, preload, smallest
from xenlive.errors import ConfigError


@settings(deadline=None, max_examples=30)
@given(
    clients=st.integers(1, 30),
    watchers=st.integers(0, 60),
    more=st.integers(0, 1500),
    seed=st.integers(0, 9),
)
def test_it_has_exactly_so_many_nodes(clients: int, watchers: int, more: int, seed: int) -> None:
    nodes = smallest(clients, watchers) + more
    tree = make_tree(nodes, clients, watchers, seed)
    assert len(tree.nodes) == nodes
    assert len(tree.slots) == len(tree.scratch) == clients
    assert len(tree.watched) == len(set(tree.tokens)) == watchers
    assert tree.leaves
    seen: set[bytes] = {b""}
    for path, node in preload(tree):
        assert path.rsplit(b"/", 1)[0] in seen, "a parent comes before its children"
        seen.add(path)
        assert len(node.value) < 2048
    assert not seen & set(tree.scratch)


def test_the_seed_decides() -> None:
    assert make_tree(1000, 5, 5, 3) == make_tree(1000, 5, 5, 3)
    assert make_tree(1000, 5, 5, 3).nodes != make_tree(1000, 5, 5, 4).nodes


def test_groups_list_their_leaves() -> None:
    tree = make_tree(1000, 2, 2)
    listed = {group + b"/" + name for group, names in tree.groups.items() for name in names}
    assert listed == set(tree.leaves)


def test_permissions_and_values_vary() -> None:
    tree = make_tree(2000, 2, 2)
    assert len({node.perms for node in tree.nodes.values()}) > 4
    values = [tree.nodes[leaf].value for leaf in tree.leaves]
    assert b"" in values
    assert any(b"\0" in value for value in values)
    assert tree.nodes[ROOT].perms == DEFAULT


def test_what_a_watcher_is_told_about_exists() -> None:
    tree = make_tree(1000, 2, 7)
    for number, path in enumerate(tree.watched):
        changes = tree.changes_of(number)
        assert changes[0] == path
        assert set(changes) <= tree.nodes.keys()


def test_too_few_nodes() -> None:
    with pytest.raises(ConfigError, match="need at least 537 nodes, not 536"):
        make_tree(536, 20, 50)
    assert len(make_tree(537, 20, 50).nodes) == 537
