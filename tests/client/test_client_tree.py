"""Trees: walked, put into a file and taken out of one, whatever they hold."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore.talk import Client

from xenlive.client import tree, treefile
from xenlive.client.answers import Permission
from xenlive.client.codec import Answer
from xenlive.client.plans import Plan
from xenlive.client.requests import Request
from xenlive.client.tree import Node
from xenlive.errors import ConfigError, XenstoreError
from xenlive.xenstore.server import XenstoreServer

FILE = '{"xenstore": 1, "path": "/a", "nodes": [%s]}'
N0 = (Permission(0, "n"),)


class Core:
    """Carries plans out on a server core, as a client over no distance would."""

    def __init__(self) -> None:
        self.client = Client(XenstoreServer())
        self.asked = 0

    def do(self, plan: Plan[object]) -> object:
        try:
            batch = next(plan)
            while True:
                batch = plan.send([self.ask(request) for request in batch])
        except StopIteration as end:
            return end.value

    def ask(self, request: Request[object]) -> object:
        self.asked += 1
        answer = self.client.ask(request.type, request.payload)
        self.client.conn.sent(b"", 0)  # what it said was read
        if isinstance(answer, str):
            return XenstoreError(answer, request.label)
        return request.meaning(Answer(1, request.type, answer, 0))

    def walk(self, top: str, **options: object) -> list[str]:
        found: list[Node] = []
        arguments = {"perms": False, **options}
        self.do(tree.walk(top, found.append, **arguments))  # type: ignore[arg-type]
        return [node.path for node in found]


@pytest.fixture
def core() -> Core:
    """A server core with a small tree."""
    made = Core()
    for path in ("/a/b/c", "/a/b/d", "/a/e"):
        made.do(tree.make([Node(path, path.encode(), None)]))
    return made


def test_parents_come_first_and_children_in_order(core: Core) -> None:
    assert core.walk("/a") == ["/a/b", "/a/b/c", "/a/b/d", "/a/e"]
    assert core.walk("/a", depth=1) == ["/a/b", "/a/e"]
    assert core.walk("/a", depth=0) == []
    assert core.walk("/a", depth=0, with_top=True) == ["/a"]
    assert core.walk("/a/e", with_top=True) == ["/a/e"]
    assert core.walk("/")[:2] == ["/a", "/a/b"] or "/tool" in core.walk("/")
    with pytest.raises(XenstoreError, match="ENOENT"):
        core.walk("/none")


def test_a_wide_tree_and_names_that_fill_many_answers(core: Core) -> None:
    names = [f"{number:05}" for number in range(1500)]
    core.do(tree.make([Node(f"/wide/{name}/x", b"", None) for name in names]))
    found = core.walk("/wide")
    assert found == [path for name in names for path in (f"/wide/{name}", f"/wide/{name}/x")]
    core.do(tree.make([Node(f"/a/long/{name}", b"", None) for name in names]))
    assert len(core.walk("/a")) == 4 + 1 + 1500


def test_a_node_that_goes_meanwhile_is_left_out(core: Core) -> None:
    class Leaving(Core):
        def ask(self, request: Request[object]) -> object:
            if request.label == "read /a/b":
                self.client.ask(13, b"/a/b\0")  # RM
            return super().ask(request)

    leaving = Leaving()
    leaving.client = core.client
    assert leaving.walk("/a") == ["/a/e"]


def test_where_the_last_of_its_siblings_is(core: Core) -> None:
    found: list[Node] = []
    core.do(tree.walk("/a", found.append, perms=True))
    assert [node.last for node in found] == [(False,), (False, False), (False, True), (True,)]
    assert [node.name for node in found] == ["b", "c", "d", "e"]
    assert {node.permissions for node in found} == {N0}


def test_what_may_not_be_read_is_no_tree(core: Core) -> None:
    core.do(tree.make([Node("/a/b", b"secret", (Permission(0, "n"),))]))
    core.do(tree.make([Node("/a", b"", (Permission(0, "r"),))]))
    guest = Core()
    guest.client = Client(core.client.server, domid=1)
    assert guest.walk("/a") == ["/a/b", "/a/e"]
    found: list[Node] = []
    guest.do(tree.walk("/a", found.append, perms=True))
    assert [node.value for node in found] == [None, None]
    with pytest.raises(XenstoreError, match="read /a/b: EACCES"):
        guest.do(tree.collect("/a"))


def test_removing(core: Core) -> None:
    core.do(tree.remove("/a/b"))
    core.do(tree.remove("/no/such"))
    assert core.walk("/a") == ["/a/e"]
    core.do(tree.remove("/"))
    assert core.walk("/") == []


def test_the_first_that_is_refused_is_named(core: Core) -> None:
    nodes = [Node("/a/x", b"", None), Node("/a/b c", b"", None), Node("/a//", b"", None)]
    with pytest.raises(XenstoreError, match="write /a/b c: EINVAL"):
        core.do(tree.make(nodes))


paths = st.lists(st.sampled_from(["b", "c", "local", "0-1", "@x"]), max_size=4).map(
    lambda parts: "/".join(["/a", *parts])
)
permissions = st.lists(
    st.builds(Permission, st.integers(0, 65535), st.sampled_from("nrwb")), min_size=1, max_size=4
).map(tuple)
nodes_of_any_kind = st.lists(
    st.builds(Node, paths, st.binary(max_size=40), st.none() | permissions),
    unique_by=lambda node: node.path,
)


@given(nodes_of_any_kind)
@settings(deadline=None, max_examples=150)
def test_a_file_gives_back_what_was_put_in(nodes: list[Node]) -> None:
    text = "\n".join(treefile.lines("/a", nodes))
    assert treefile.parse(text, "file") == ("/a", nodes)
    assert [*treefile.lines("/a", nodes)] == text.split("\n")
    json.loads(text)


@given(st.binary(max_size=200) | st.text(max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_file_is_a_tree_or_one_error(data: bytes | str) -> None:
    with pytest.raises(ConfigError):
        treefile.parse(data, "file")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("/a") | st.just("n0"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["path", "value", "value_hex", "permissions", "other"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(anything, anything)
@settings(deadline=None, max_examples=300)
def test_any_object_is_a_tree_or_one_error(path: object, nodes: object) -> None:
    try:
        treefile.parse(json.dumps({"xenstore": 1, "path": path, "nodes": nodes}), "file")
    except ConfigError:
        return


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no tree"),
        ('{"xenstore": 2, "path": "/", "nodes": []}', "no tree"),
        ('{"xenstore": 1, "path": "a", "nodes": []}', "absolute"),
        ('{"xenstore": 1, "path": "/", "nodes": {}}', "no list"),
        (FILE % "1", r"nodes\[0\]: not an object"),
        (FILE % '{"path": "/a", "value": ""}, {"path": "/b", "value": ""}', r"nodes\[1\].*in /a"),
        (FILE % '{"path": "/ab", "value": ""}', "no path in /a"),
        (FILE % '{"path": "/a\\u0000", "value": ""}', "no path"),
        (FILE % '{"path": "/a\\ud800", "value": ""}', r"nodes\[0\]"),
        (FILE % '{"path": "/a"}', "one of"),
        (FILE % '{"path": "/a", "value": "", "value_hex": ""}', "one of"),
        (FILE % '{"path": "/a", "value": 1}', "no string"),
        (FILE % '{"path": "/a", "value": "\\ud800"}', r"nodes\[0\]"),
        (FILE % '{"path": "/a", "value_hex": "f"}', r"nodes\[0\]"),
        (FILE % '{"path": "/a", "value": "", "permissions": []}', "permissions"),
        (FILE % '{"path": "/a", "value": "", "permissions": ["x1"]}', "no permission"),
        (FILE % '{"path": "/a", "value": "", "owner": 1}', "'owner' is not known"),
    ],
)
def test_files_that_are_no_trees(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        treefile.parse(text, "file")


@pytest.mark.parametrize(
    ("old", "new", "paths"),
    [
        ("/a", "/x/y", ["/x/y", "/x/y/b"]),
        ("/a", "/", ["/", "/b"]),
        ("/a", "/a", ["/a", "/a/b"]),
    ],
)
def test_a_tree_in_another_place(old: str, new: str, paths: list[str]) -> None:
    nodes = [Node(old, b"1", N0), Node(f"{old}/b", b"2", None)]
    assert [node.path for node in treefile.moved(nodes, old, new)] == paths
    back = treefile.moved(treefile.moved(nodes, old, new), new, old)
    assert back == nodes


def test_the_root_in_another_place() -> None:
    nodes = [Node("/", b"1", N0), Node("/b", b"2", None)]
    moved = treefile.moved(nodes, "/", "/copy")
    assert [node.path for node in moved] == ["/copy", "/copy/b"]
    assert treefile.moved(moved, "/copy", "/") == nodes
