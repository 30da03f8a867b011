"""What can be asked of a store, by a client that waits for each answer.

**Invariants.** Each method is one request of `requests.py` or one plan of `plans.py`: there is
nothing here that `aio_operations.py` does in another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from xenlive.client import plans, requests, tree
from xenlive.client.plans import Plan
from xenlive.client.requests import Permission, Request
from xenlive.client.tree import Node
from xenlive.errors import XenstoreError

T = TypeVar("T")


class StoreOperations:
    """What can be asked of the store, in a transaction or without one."""

    def run_all(self, batch: Sequence[Request[Any]]) -> list[Any]:
        """Sends requests without waiting for each answer; gives what came of each, in order.

        A refusal is in the list as a XenstoreError, not raised. PeerError, and XenstoreError
        ETIMEDOUT, end the connection.
        """
        raise NotImplementedError

    def run(self, request: Request[T]) -> T:
        """Sends a request and gives its answer's meaning.

        XenstoreError for the server's refusal, ETIMEDOUT if no answer came in time; PeerError if
        the server closed the connection or does not speak Xenstore.
        """
        (outcome,) = self.run_all([request])
        if isinstance(outcome, XenstoreError):
            raise outcome
        meaning: T = outcome
        return meaning

    def carry_out(self, plan: Plan[T]) -> T:
        """Does what a plan asks for, and gives its result."""
        try:
            batch = next(plan)
            while True:
                batch = plan.send(self.run_all(batch))
        except StopIteration as end:
            result: T = end.value
            return result

    def read(self, path: str) -> bytes:
        """The value of a node. XenstoreError ENOENT if there is none."""
        return self.run(requests.read(path))

    def read_text(self, path: str) -> str:
        """The same as text; bytes that are not UTF-8 survive as surrogates."""
        return self.read(path).decode("utf-8", "surrogateescape")

    def get(self, path: str) -> bytes | None:
        """The value of a node, None if there is none."""
        return self.carry_out(plans.value_or_none(path))

    def write(self, path: str, value: bytes | str) -> None:
        """Stores a node's value, making the node and its parents if they are missing."""
        self.run(requests.write(path, value))

    def mkdir(self, path: str) -> None:
        """Makes a node if it is missing; an existing one keeps its value."""
        self.run(requests.mkdir(path))

    def rm(self, path: str) -> None:
        """Removes a node and all below it. XenstoreError ENOENT if its parent is missing."""
        self.run(requests.rm(path))

    def directory(self, path: str) -> list[str]:
        """The names of a node's children, however many there are."""
        return self.carry_out(plans.directory(path))

    def exists(self, path: str) -> bool:
        """Whether there is such a node, and we may know of it."""
        return self.carry_out(plans.exists(path))

    def get_perms(self, path: str) -> list[Permission]:
        """A node's permissions, the owner's entry first."""
        return self.run(requests.get_perms(path))

    def set_perms(self, path: str, permissions: Sequence[Permission]) -> None:
        """Replaces a node's permissions; the first entry names its owner."""
        self.run(requests.set_perms(path, permissions))

    def walk(
        self, top: str, *, perms: bool = False, depth: int | None = None, with_top: bool = False
    ) -> Iterator[Node]:
        """The nodes below `top`, parents first, as they are found; `depth` levels, all if None.

        XenstoreError if `top` itself can't be listed.
        """
        found: list[Node] = []
        plan = tree.walk(top, found.append, perms=perms, depth=depth, with_top=with_top)
        try:
            batch = next(plan)
            while True:
                batch = plan.send(self.run_all(batch))
                yield from found
                found.clear()
        except StopIteration:
            yield from found
