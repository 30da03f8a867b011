"""Xenstore as it is specified, in the plainest way: a dict of paths. Nothing of ours is used.

Specification: Xen `docs/misc/xenstore.txt`. Quotas are off, all domains exist, a request is done at
once; a transaction is its requests, done again where it is committed.

**Invariants.** A node is a tuple, so that a copy of the dict is the tree as it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from xenlive.abi.xs_wire import (
    DOMID_ANY,
    XS_DIRECTORY,
    XS_GET_PERMS,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_WRITE,
)

Rights = tuple[tuple[str, int], ...]  # (letter, domid), the owner's first
Nodes = dict[bytes, tuple[bytes, Rights]]
Answer = bytes | str | frozenset[bytes]  # a reply, an error's name, or what a directory has

OK = b"OK\0"
READ, WRITE, OWNER = 1, 2, 4
_MEANING = {"n": 0, "r": READ, "w": WRITE, "b": READ | WRITE}


@dataclass(frozen=True)
class Caller:
    """Who asks; `target` is -1, or the domain that this one acts for."""

    domid: int
    target: int = -1

    def may(self, rights: Rights) -> int:
        """What it may do with a node of such rights."""
        if self.domid == 0:
            return READ | WRITE | OWNER
        us = (self.domid, self.target)
        if rights[0][1] in us:
            return READ | WRITE | OWNER
        for letter, domid in rights[1:]:
            if domid in us or domid == DOMID_ANY:
                return _MEANING[letter]
        return _MEANING[rights[0][0]]

    def path(self, raw: bytes) -> bytes:
        """The absolute path of what it writes."""
        return raw if raw[:1] in (b"/", b"@") else b"/local/domain/%d/" % self.domid + raw


@dataclass(frozen=True)
class Request:
    """One request; `data` is a value, or rights as SET_PERMS has them."""

    kind: int
    raw: bytes
    data: bytes = b""

    @property
    def payload(self) -> bytes:
        """As it goes over the wire."""
        return self.raw + b"\0" + self.data


def above(path: bytes) -> bytes:
    """The path of the node above."""
    return path.rpartition(b"/")[0] or b"/"


def is_below(path: bytes, top: bytes) -> bool:
    """Whether it is in a subtree."""
    return path == top or path.startswith(top.rstrip(b"/") + b"/")


def rights_of(text: bytes) -> Rights:
    """What SET_PERMS's words say."""
    return tuple((word[:1].decode(), int(word[1:])) for word in text.split(b"\0")[:-1])


def wanted_for(request: Request) -> int:
    """What one has to be allowed for a request."""
    if request.kind in (XS_WRITE, XS_MKDIR, XS_RM):
        return WRITE
    return WRITE | OWNER if request.kind == XS_SET_PERMS else READ


class Tree:
    """The nodes; `versions` counts how often each path has changed, there or not."""

    def __init__(self, nodes: Nodes, versions: dict[bytes, int] | None = None) -> None:
        self.nodes = nodes
        self.versions = {} if versions is None else versions
        #: Changed paths of the last request, and whether only who watches right there hears of it.
        self.changed: list[tuple[bytes, bool]] = []

    def copy(self) -> Tree:
        """The same tree, to go another way."""
        return Tree(dict(self.nodes), dict(self.versions))

    def below(self, path: bytes) -> list[bytes]:
        """The paths of a node and all below it."""
        return [each for each in self.nodes if is_below(each, path)]

    def nearest(self, path: bytes) -> bytes:
        """The node itself, or the first that is there above it."""
        while path not in self.nodes:
            path = above(path)
        return path

    def footprint(self, caller: Caller, request: Request) -> set[bytes]:
        """All that the answer to a request, or what it does, can depend on.

        Who is refused can't tell whether the node is there: that depends on the one above it, too.
        """
        path = caller.path(request.raw)
        found = {path}
        if path in self.nodes:
            wanted = wanted_for(request)
            if caller.may(self.nodes[path][1]) & wanted != wanted:
                found.add(above(path))
        each = path
        while each not in self.nodes:
            each = above(each)
            found.add(each)
        if request.kind == XS_RM:
            found |= {above(path), *self.below(path)}
        return found

    def do(self, caller: Caller, request: Request) -> Answer:
        """Does a request; `changed` then has its changes."""
        self.changed = []
        path = caller.path(request.raw)
        wanted = wanted_for(request)
        near = self.nearest(path)
        granted = caller.may(self.nodes[near][1]) & wanted
        if near == path:
            if granted != wanted:
                return "EACCES"
        elif not granted:
            return "EACCES"
        elif request.kind not in (XS_WRITE, XS_MKDIR, XS_RM):
            return "ENOENT"
        return self._do(caller, request, path)

    def _do(self, caller: Caller, request: Request, path: bytes) -> Answer:
        kind, is_there = request.kind, path in self.nodes
        if kind == XS_RM:
            if path == b"/":
                return "EINVAL"
            if not is_there:
                return OK if above(path) in self.nodes else "ENOENT"
            self._remove(path)
            return OK
        if kind == XS_WRITE or (kind == XS_MKDIR and not is_there):
            if not is_there:
                self._make(caller, path)
            self.nodes[path] = request.data, self.nodes[path][1]
            self._touch(path)
            self.changed.append((path, False))
            return OK
        if kind == XS_MKDIR:
            return OK
        value, rights = self.nodes[path]
        if kind == XS_SET_PERMS:
            wanted = rights_of(request.data)
            if caller.domid and wanted[0][1] != rights[0][1]:
                return "EPERM"
            self.nodes[path] = value, wanted
            self._touch(path)
            self.changed.append((path, False))
            return OK
        if kind == XS_READ:
            return value
        if kind == XS_GET_PERMS:
            return b"".join([b"%s%d\0" % (letter.encode(), domid) for letter, domid in rights])
        assert kind == XS_DIRECTORY
        return frozenset(
            each.rpartition(b"/")[2] for each in self.nodes if each != b"/" and above(each) == path
        )

    def _make(self, caller: Caller, path: bytes) -> None:
        """Makes a node, and those missing above it, with the rights of the nearest one."""
        rights = self.nodes[self.nearest(path)][1]
        if caller.domid:
            rights = ((rights[0][0], caller.domid), *rights[1:])
        if above(path) not in self.nodes:
            self._make(caller, above(path))
        self.nodes[path] = b"", rights
        self._touch(path)
        self._touch(above(path))

    def _remove(self, path: bytes) -> None:
        for each in self.below(path):
            del self.nodes[each]
            self._touch(each)
            self.changed.append((each, each != path))
        self._touch(above(path))

    def _touch(self, path: bytes) -> None:
        self.versions[path] = self.versions.get(path, 0) + 1
