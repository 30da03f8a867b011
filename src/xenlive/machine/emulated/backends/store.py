"""What a world asks of its Xenstore, wherever that is, and what this program's parts ask of it.

`xenstore.py` has one in this process, which is as repeatable as the rest of the machine;
`remote_store.py` one that a stub domain in another process serves.

**Invariants.** Errors are the same everywhere: `XenstoreError` with the name that a guest would
get. A handler of a watch is called with the path of each change, in the order of the changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenlive.abi.xs_wire import (
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_UNWATCH,
    XS_WATCH,
    XS_WRITE,
)
from xenlive.errors import ConfigError, XenstoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.xenstore.server import XenstoreServer


class GuestRing:
    """The connection of one guest; `domid` is its domain's."""

    domid: int

    def save(self) -> tuple[bool, int]:
        """Its state for a snapshot. ConfigError if that can't be kept."""
        raise _not_ours()

    def restore(self, state: tuple[bool, int]) -> None:
        """Goes back to what `save` gave."""
        raise _not_ours()


class Store:
    """The Xenstore of a world."""

    @property
    def server(self) -> XenstoreServer:
        """The server's core, for snapshots. ConfigError if it is in another process."""
        raise _not_ours()

    def client(self) -> StoreClient:
        """A privileged connection for a part of this program."""
        raise NotImplementedError

    def new_domid(self) -> int | None:
        """The id that the next domain must have; None if any will do."""
        return None

    def know(self, domid: int) -> None:
        """There is such a domain now: nodes may be given to it, before it is introduced."""
        raise NotImplementedError

    def introduce(self, domain: Domain) -> GuestRing:
        """Connects a domain by its ring (INTRODUCE), and tells who watches @introduceDomain."""
        raise NotImplementedError

    def release(self, ring: Any) -> None:
        """The domain is gone (RELEASE): its watches too, and @releaseDomain says so."""
        raise NotImplementedError

    def domain_stopped(self, ring: Any) -> None:
        """A domain shut down: who watches @releaseDomain has to look which."""
        raise NotImplementedError


class StoreClient:
    """A part of this program as a client: requests are answered at once.

    XenstoreError, with the name that a guest would get, for what is refused.
    """

    def __init__(self) -> None:
        self._handlers: dict[bytes, Callable[[str], None]] = {}

    def read(self, path: str) -> bytes:
        """A node's value."""
        return self._request(XS_READ, path.encode() + b"\0")

    def exists(self, path: str) -> bool:
        """Whether there is such a node."""
        try:
            self.read(path)
        except XenstoreError:
            return False
        return True

    def write(self, path: str, value: str | bytes) -> None:
        """Sets a node's value, and makes it if it is missing."""
        data = value.encode() if isinstance(value, str) else value
        self._request(XS_WRITE, path.encode() + b"\0" + data)

    def mkdir(self, path: str) -> None:
        """Makes a node, if it is missing."""
        self._request(XS_MKDIR, path.encode() + b"\0")

    def remove(self, path: str) -> None:
        """Removes a node and all below it."""
        self._request(XS_RM, path.encode() + b"\0")

    def set_perms(self, path: str, *perms: str) -> None:
        """Sets who may do what: `n0`, `r5`."""
        self._request(XS_SET_PERMS, b"".join(word.encode() + b"\0" for word in (path, *perms)))

    def watch(self, path: str, handler: Callable[[str], None]) -> None:
        """Calls `handler` with the path of each change at or below `path`, and once now."""
        token = b"%d" % len(self._handlers)
        self._handlers[token] = handler
        self._request(XS_WATCH, path.encode() + b"\0" + token + b"\0")

    def unwatch(self, path: str, handler: Callable[[str], None]) -> None:
        """Ends what `watch` began. KeyError if it did not."""
        found = [token for token, known in self._handlers.items() if known == handler]
        if not found:
            raise KeyError(path)
        self._request(XS_UNWATCH, path.encode() + b"\0" + found[0] + b"\0")
        self._handlers[found[0]] = _nobody

    def tokens(self) -> set[bytes]:
        """Of which watches somebody hears."""
        return set(self._handlers)

    def _request(self, kind: int, payload: bytes) -> bytes:
        """The payload of the answer to one request."""
        raise NotImplementedError

    def _hear(self, token: bytes, path: bytes) -> None:
        """Hands an event to whoever set its watch; one of nobody's is passed over."""
        self._handlers.get(token, _nobody)(path.decode("utf-8", "surrogateescape"))


def _nobody(_: str) -> None:
    """What hears the last events of a watch that is no more."""


def _not_ours() -> ConfigError:
    return ConfigError("Xenstore", 0, "is served by another process: there is no snapshot of it")
