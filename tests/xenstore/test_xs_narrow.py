"""The state of a server changes in one narrow place: nobody else writes its fields.

The source is read, all of it: each assignment, deletion, or call of a method that changes a
container, on a field of the state. That nothing escapes by another way is what following a journal
shows (`test_xs_replay`): all there is is compared after each change.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidy.sources import SOURCE, parsed, place, python_files, refuse

XENSTORE = SOURCE / "xenlive" / "xenstore"

STATE, STORE, WATCHES = "state.py:State", "store.py:Store", "watches.py:Watches"
TRANSACTION, TX_NODE = "transaction.py:Transaction", "transaction.py:TxNode"
ACCOUNT, ACCOUNTS = "accounts.py:Account", "accounts.py:Accounts"
# Fills a store that is nobody's yet; `State.adopt` makes it a server's.
READER = "stream_decode.py:_Reader"

LOADED = "stream_decode.py:LoadedState"

# Field: who writes it.
WRITERS: dict[str, tuple[str, ...]] = {
    # of nodes
    "value": ("store.py:Node", STORE, TRANSACTION, TX_NODE, "transaction.py:LogEntry", READER),
    "perms": ("store.py:Node", STORE, TRANSACTION, TX_NODE, "transaction.py:LogEntry", READER),
    "generation": ("store.py:Node", STORE, TRANSACTION, TX_NODE),
    "directory": ("store.py:Node", STORE, READER),
    "paths": ("store.py:Directory", STORE),
    "names_bytes": ("store.py:Directory",),
    "children_bytes": (TX_NODE,),
    # of the store
    "nodes": (STORE, TRANSACTION),
    "special": (STORE, READER),
    "domains": (STORE, READER),
    "pins": (STORE,),
    "birth": (STORE,),
    # of watches, and of connections' own
    "by_path": (WATCHES,),
    "count": (WATCHES,),
    "n_set": (WATCHES,),
    "order": ("watches.py:Watch", WATCHES),
    "watches": ("connection.py:Connection", STATE, WATCHES, READER),
    # of connections and domains
    "connections": (STATE, READER, LOADED),
    "by_number": (STATE,),
    "next_number": (STATE,),
    "introduced": (STATE,),
    "rings": (STATE, READER, LOADED),
    "unique_ids": (STATE,),
    "number": ("connection.py:Connection", STATE, TRANSACTION),
    "target": ("connection.py:Connection", STATE, READER),
    "ring": ("connection.py:Connection", STATE, READER),
    "evtchn": ("connection.py:Ring", STATE),
    "unique_id": ("connection.py:Ring", STATE, "domains.py:DomainState"),
    "is_shut_down": ("connection.py:Ring", STATE, "domains.py:DomainState"),
    # of transactions
    "transactions": ("connection.py:Connection", STATE),
    "next_transaction": ("connection.py:Connection", STATE, "stream_decode.py:load_state"),
    "started_s": ("connection.py:Connection", STATE),
    "log": (STATE, TRANSACTION, "server.py:XenstoreServer"),  # that one's is of messages
    "failed": (TRANSACTION,),
    "seen": (TX_NODE,),
    "exists": (TRANSACTION, TX_NODE),
    "added": (TX_NODE,),
    "removed": (TX_NODE,),
    "base_children": (TX_NODE,),
    "event_here": (TRANSACTION, TX_NODE),
    "event_below": (TRANSACTION, TX_NODE),
    "value_change": (TRANSACTION, TX_NODE),
    # of quotas and what is used
    "quotas": (STATE, ACCOUNT, ACCOUNTS, READER),
    "values": ("quota.py:Quotas", STATE, READER),
    "features": (STATE, ACCOUNT, ACCOUNTS, READER),
    "used": (ACCOUNT,),
    "by_domid": (ACCOUNTS,),
}

# Methods that change a container.
CHANGING = {
    *("add", "append", "clear", "difference_update", "discard", "extend", "insert", "pop"),
    *("popitem", "remove", "reverse", "setdefault", "sort", "update"),
}
# But these are of `Watches`, which says so to the journal.
NARROW = {("watches", "add"), ("watches", "remove")}

# Rooms that have a server to write to, beside its own.
OTHER_ROOMS = ("image", "machine/emulated/backends", "machine/emulated/lens", "sim", "stubdom")
# Their names for other things, by file; and who builds a store that is nobody's yet.
NOT_OF_A_SERVER: dict[str, set[str]] = {
    "machine/emulated/lens/snapshot_accounts.py": {"quotas", "values", "features"},
    "machine/emulated/lens/snapshot_store.py": set(WRITERS),
}


def writes(tree: ast.AST, owner: str = "") -> Iterator[tuple[int, str, str]]:
    """Line, class or function, and field, of all that is written in a file."""
    for child in ast.iter_child_nodes(tree):
        inside = owner
        if isinstance(child, ast.ClassDef | ast.FunctionDef) and not owner:
            inside = child.name
        for target in targets_of(child):
            name = field_of(target)
            if name is not None:
                yield target.lineno, inside, name
        yield from writes(child, inside)


def targets_of(node: ast.AST) -> list[ast.expr]:
    """The expressions that a node writes to."""
    if isinstance(node, ast.Assign | ast.Delete):
        return [part for target in node.targets for part in parts_of(target)]
    if isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For):
        return parts_of(node.target)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CHANGING
        and isinstance(node.func.value, ast.Attribute | ast.Subscript)
        and (field_of(node.func.value), node.func.attr) not in NARROW
    ):
        return [node.func.value]
    return []


def parts_of(target: ast.expr) -> list[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        return [part for each in target.elts for part in parts_of(each)]
    return [target]


def field_of(target: ast.expr) -> str | None:
    """`conn.watches[key]` and `conn.watches` write the field `watches`."""
    while isinstance(target, ast.Subscript):
        target = target.value
    return target.attr if isinstance(target, ast.Attribute) else None


def is_method_of_own(target_owner: str, path: Path, name: str) -> bool:
    who = WRITERS[name]
    return f"{path.name}:{target_owner}" in who


def test_the_fields_of_the_state_are_written_in_the_narrow_place_alone() -> None:
    refuse(
        [
            place(path, line, f"{owner or 'the module'} writes {name}")
            for path in python_files(XENSTORE)
            for line, owner, name in writes(parsed(path))
            if name in WRITERS and not is_method_of_own(owner, path, name)
        ]
    )


def test_nobody_outside_of_the_room_writes_them() -> None:
    found = []
    for room in OTHER_ROOMS:
        for path in python_files(SOURCE / "xenlive" / room):
            relative = path.relative_to(SOURCE / "xenlive").as_posix()
            own = names_of_own(parsed(path)) | NOT_OF_A_SERVER.get(relative, set())
            found += [
                place(path, line, f"{owner or 'the module'} writes {name}")
                for line, owner, name in writes(parsed(path))
                if name in WRITERS and name not in own
            ]
    refuse(found)


def names_of_own(tree: ast.Module) -> set[str]:
    """Attributes that a file's classes make of their own: `self.rings = …`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_every_writer_that_is_named_writes() -> None:
    """So that nothing is allowed that nobody does."""
    done = {
        (name, f"{path.name}:{owner}")
        for path in python_files(XENSTORE)
        for _, owner, name in writes(parsed(path))
    }
    named = {(name, writer) for name, writers in WRITERS.items() for writer in writers}
    assert sorted(named - done) == []


@pytest.mark.parametrize(
    ("code", "field"),
    [
        ("conn.target = 3", "target"),
        ("conn.target += 3", "target"),
        ("server.store.nodes[b'/'] = 1", "nodes"),
        ("del conn.watches[path, token]", "watches"),
        ("server.introduced.add(3)", "introduced"),
        ("server.rings.pop(3, None)", "rings"),
        ("node.value, node.perms = b'', b''", "perms"),
        ("quotas.own[3]['nodes'] = 1", "own"),
        ("for conn.ring in rings: pass", "ring"),
    ],
)
def test_writing_is_found(code: str, field: str) -> None:
    assert field in [name for _, _, name in writes(ast.parse(code))]
