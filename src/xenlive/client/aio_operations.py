"""What can be asked of a store, by a client on an event loop; `operations.py` and `domains.py`.

**Invariants.** Each method is one request of `requests.py` or one plan of `plans.py`, under the
name and with the errors that the blocking client has it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeVar

from xenlive.client import plans, requests, tree
from xenlive.client.plans import Plan
from xenlive.client.requests import Permission, Request
from xenlive.client.tree import Node

T = TypeVar("T")


class AsyncStoreOperations:
    """What can be asked of the store, in a transaction or without one."""

    async def run_all(self, batch: Sequence[Request[Any]]) -> list[Any]:
        """Sends requests; gives what came of each, a refusal as a XenstoreError, not raised."""
        raise NotImplementedError

    async def run(self, request: Request[T]) -> T:
        """Sends a request and gives its answer's meaning.

        XenstoreError for the server's refusal, ETIMEDOUT if no answer came in time; PeerError if
        the connection broke or the server does not speak Xenstore.
        """
        raise NotImplementedError

    async def carry_out(self, plan: Plan[T]) -> T:
        """Does what a plan asks for, and gives its result."""
        try:
            batch = next(plan)
            while True:
                batch = plan.send(await self.run_all(batch))
        except StopIteration as end:
            result: T = end.value
            return result

    async def read(self, path: str) -> bytes:
        """The value of a node. XenstoreError ENOENT if there is none."""
        return await self.run(requests.read(path))

    async def read_text(self, path: str) -> str:
        """The same as text; bytes that are not UTF-8 survive as surrogates."""
        return (await self.read(path)).decode("utf-8", "surrogateescape")

    async def get(self, path: str) -> bytes | None:
        """The value of a node, None if there is none."""
        return await self.carry_out(plans.value_or_none(path))

    async def write(self, path: str, value: bytes | str) -> None:
        """Stores a node's value, making the node and its parents if they are missing."""
        await self.run(requests.write(path, value))

    async def mkdir(self, path: str) -> None:
        """Makes a node if it is missing; an existing one keeps its value."""
        await self.run(requests.mkdir(path))

    async def rm(self, path: str) -> None:
        """Removes a node and all below it. XenstoreError ENOENT if its parent is missing."""
        await self.run(requests.rm(path))

    async def directory(self, path: str) -> list[str]:
        """The names of a node's children, however many there are."""
        return await self.carry_out(plans.directory(path))

    async def exists(self, path: str) -> bool:
        """Whether there is such a node, and we may know of it."""
        return await self.carry_out(plans.exists(path))

    async def get_perms(self, path: str) -> list[Permission]:
        """A node's permissions, the owner's entry first."""
        return await self.run(requests.get_perms(path))

    async def set_perms(self, path: str, permissions: Sequence[Permission]) -> None:
        """Replaces a node's permissions; the first entry names its owner."""
        await self.run(requests.set_perms(path, permissions))

    async def walk(
        self, top: str, *, perms: bool = False, depth: int | None = None, with_top: bool = False
    ) -> AsyncIterator[Node]:
        """The nodes below `top`, parents first, as they are found; `depth` levels, all if None."""
        found: list[Node] = []
        plan = tree.walk(top, found.append, perms=perms, depth=depth, with_top=with_top)
        try:
            batch = next(plan)
            while True:
                batch = plan.send(await self.run_all(batch))
                for node in found:
                    yield node
                found.clear()
        except StopIteration:
            pass
        for node in found:
            yield node


class AsyncDomainOperations(AsyncStoreOperations):
    """What a toolstack asks: domains, their features and quotas, and control commands."""

    async def control(self, *arguments: str) -> str:
        """Runs a control command of the server's; gives what it says."""
        return await self.run(requests.control(*arguments))

    async def get_domain_path(self, domid: int) -> str:
        """The node below which a domain has its own."""
        return await self.run(requests.get_domain_path(domid))

    async def is_domain_introduced(self, domid: int) -> bool:
        """Whether the server serves this domain."""
        return await self.run(requests.is_domain_introduced(domid))

    async def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Has the server serve a domain by its ring. XenstoreError EINVAL if it can't."""
        await self.run(requests.introduce(domid, gfn, port))

    async def release(self, domid: int) -> None:
        """Tells the server that a domain is no more. XenstoreError ENOENT if it has none such."""
        await self.run(requests.release(domid))

    async def resume(self, domid: int) -> None:
        """Tells the server that a domain that had shut down runs again."""
        await self.run(requests.resume(domid))

    async def set_target(self, domid: int, target: int) -> None:
        """Lets a domain do all that `target` may do."""
        await self.run(requests.set_target(domid, target))

    async def get_feature(self, domid: int | None = None) -> int:
        """The features that the server has for a domain, our own if None. ENOSYS from old ones."""
        return await self.run(requests.get_feature(domid))

    async def set_feature(self, domid: int, features: int) -> None:
        """Sets what a domain is offered, before it is introduced."""
        await self.run(requests.set_feature(domid, features))

    async def quota_names(self) -> list[str]:
        """The quotas that the server knows. XenstoreError ENOSYS from old ones."""
        return await self.run(requests.quota_names())

    async def get_quota(self, name: str, domid: int | None = None) -> int:
        """A quota of a domain, or what new domains get; 0 is unlimited."""
        return await self.run(requests.get_quota(name, domid))

    async def set_quota(self, name: str, value: int, domid: int | None = None) -> None:
        """Sets a quota of a domain, or what new domains get; 0 is unlimited."""
        await self.run(requests.set_quota(name, value, domid))
