"""Domains as clients: INTRODUCE, RELEASE, RESUME, SET_TARGET, and what a domain's end does.

Specification: Xen `docs/misc/xenstore.txt`, "Domain management"; errors and order are the C
daemon's (Xen 4.17 `tools/xenstore/xenstored_domain.c`: `do_introduce`, `do_release`,
`check_domains`, `domain_tree_remove`).

    unknown ──a permission names it──▶ known ──INTRODUCE──▶ introduced ──RELEASE, or its end──▶ gone
                                         └──────────────its end──────────────────────────────▲

Pages and event channels are not the server's: whoever moves the bytes of rings hands in a `Links`
(`XenstoreServer.links`). A server without one knows no domains but those it is told of.

**Invariants.** A request that is refused changes nothing. A domain has at most one connection by
ring. When a domain goes, nothing is left that its id's next owner could use: connection, watches,
nodes of its own, permissions for it. @introduceDomain and @releaseDomain fire once each for one
introduction, and the second also when a domain has shut down and is still there.
"""

from __future__ import annotations

from xenlive.errors import XenstoreError
from xenlive.xenstore.words import c_int, only_word, parse_domid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.requests import Request, View
    from xenlive.xenstore.server import XenstoreServer

_OK = b"OK\0"
_DOM0 = 0
_INTRODUCED = b"@introduceDomain"
_RELEASED = b"@releaseDomain"


class DomainState:
    """What a hypervisor says of a domain that exists; `unique_id` is no other domain's, ever."""

    __slots__ = ("is_shut_down", "unique_id")

    def __init__(self, unique_id: int, is_shut_down: bool) -> None:
        self.unique_id = unique_id
        self.is_shut_down = is_shut_down


class Link:
    """The rings of one connection: its page and its event channel."""

    __slots__ = ()

    def pump(self) -> None:
        """Moves bytes both ways, as far as they go."""
        raise NotImplementedError

    def rebind(self, port: int) -> None:
        """Uses another port of the domain's from now on; unheard if it is none."""
        raise NotImplementedError

    def reset(self) -> None:
        """Empties both rings, and tells a guest that waits for it that it is connected."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives page and event channel back."""
        raise NotImplementedError


class Links:
    """What a server asks of the machine around it."""

    __slots__ = ()

    def state(self, domid: int) -> DomainState | None:
        """A domain as it is now; None if there is none of that id."""
        raise NotImplementedError

    def connect(self, domid: int, port: int) -> Connection:
        """A new connection of the server by the domain's ring. XenstoreError if it can't be."""
        raise NotImplementedError


def do_introduce(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """INTRODUCE `domid|gfn|port|`: serves a domain's ring, or its new port, with empty rings.

    The gfn is not looked at: the page is the one that the domain has granted, and the first time
    a port that stands there (`evtchn_port`) comes before the one named here.
    """
    strings = request.payload.split(b"\0")[:-1]
    if len(strings) < 3:
        raise XenstoreError("EINVAL")
    domid, port = parse_domid(strings[0]), c_int(strings[2]) & 0xFFFFFFFF
    if not port:
        raise XenstoreError("EINVAL")
    guest = server.rings.get(domid)
    if guest is None:
        if server.links is None:
            raise XenstoreError("EINVAL")  # no machine, no such domain
        _forget_if_another(server, domid, server.links.state(domid))
        guest = server.links.connect(domid, port)
        server.introduce(guest)
        if domid != _DOM0:
            _fire(server, _INTRODUCED, domid)
    elif guest.link is not None:
        guest.link.rebind(port)
    server.reset(guest)
    if guest.link is not None:
        guest.link.reset()
    return _OK


def do_release(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """RELEASE `domid|`: the domain is no more; ENOENT if it was not introduced."""
    forget(server, _introduced(server, _one_domid(request)))
    return _OK


def do_resume(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """RESUME `domid|`: a domain that had shut down runs again."""
    guest = _introduced(server, _one_domid(request))
    server.set_shut_down(guest, False)
    return _OK


def do_set_target(server: XenstoreServer, conn: Connection, request: Request, view: View) -> bytes:
    """SET_TARGET `domid|tdomid|`: the first may from now on do what the second may.

    Domain 0 counts as introduced, always.
    """
    strings = request.payload.split(b"\0")[:-1]
    if len(strings) < 2:
        raise XenstoreError("EINVAL")
    domid, target = parse_domid(strings[0]), parse_domid(strings[1])
    guest = server.rings.get(_DOM0) if domid == _DOM0 else _introduced(server, domid)
    if target != _DOM0:
        _introduced(server, target)
    if guest is not None:  # domain 0 may do all there is, with a ring or without
        server.set_target(guest, target)
    return _OK


def learn(server: XenstoreServer, texts: list[bytes]) -> None:
    """Looks whether the domains that permissions name exist, if that is not known yet."""
    if server.links is None:
        return
    for text in texts:
        number = text[1:]
        if not number.isdigit() or len(number) > 5:
            continue
        domid = int(number)
        if domid in server.store.domains:
            continue
        state = server.links.state(domid)
        if state is not None:
            server.store.add_domain(domid)
            server.identify(domid, state.unique_id)


def check(server: XenstoreServer) -> None:
    """Looks which domains have shut down or gone since the last look (`check_domains`)."""
    links = server.links
    if links is None:
        return
    notify = False
    for domid in [each for each in server.store.domains if each != _DOM0]:
        state = links.state(domid)
        guest = server.rings.get(domid)
        if guest is None or guest.ring is None:
            if state is None:
                _forget_rights(server, domid)
            elif not _forget_if_another(server, domid, state) and domid not in server.unique_ids:
                server.identify(domid, state.unique_id)
            continue
        ring = guest.ring
        if ring.unique_id is None and state is not None:
            server.set_ring(guest, ring.evtchn, state.unique_id)
        if state is None or state.unique_id != ring.unique_id:
            forget(server, guest)
            notify = False  # it has told those who watch
        elif state.is_shut_down and not ring.is_shut_down:
            server.set_shut_down(guest, True)
            server.watches.fire_special(server.store, _RELEASED, domid)
            notify = True
    if notify:
        server.watches.fire_special(server.store, _RELEASED, None)


def forget(server: XenstoreServer, guest: Connection) -> None:
    """Ends a connection by ring, with all that was its domain's, and says so."""
    domid, link = guest.domid, guest.link
    server.disconnect(guest)
    server.release(domid)
    if domid != _DOM0:
        _forget_rights(server, domid)
    guest.link = None
    if link is not None:
        link.close()
    for other in server.rings.values():
        if other.target == domid:
            server.set_target(other, -1)
    _fire(server, _RELEASED, domid)


def _forget_if_another(server: XenstoreServer, domid: int, state: DomainState | None) -> bool:
    """Takes the rights of a known domain without a ring away if its id is another's by now."""
    known = server.unique_ids.get(domid)
    if known is None or state is None or state.unique_id == known:
        return False
    _forget_rights(server, domid)
    return True


def _forget_rights(server: XenstoreServer, domid: int) -> None:
    """Removes a domain's own nodes, and what the others say of it (`domain_tree_remove`)."""
    for path in server.store.owned_by(domid):
        # Its children may have gone with a node above it.
        if path in server.store.nodes and path != b"/":
            server.remove_subtree(path, None)
    server.forget_domain(domid)


def _fire(server: XenstoreServer, name: bytes, domid: int) -> None:
    server.watches.fire_special(server.store, name, None)
    server.watches.fire_special(server.store, name, domid)


def _one_domid(request: Request) -> int:
    domid = parse_domid(only_word(request.payload))
    if domid == _DOM0:
        raise XenstoreError("EINVAL")
    return domid


def _introduced(server: XenstoreServer, domid: int) -> Connection:
    found = server.rings.get(domid)
    if found is None:
        raise XenstoreError("ENOENT")
    return found
