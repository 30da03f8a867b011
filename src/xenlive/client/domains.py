"""What a toolstack asks of a server, by a client that waits for each answer: domains and limits.

A server refuses nearly all of it to a domain that is not privileged (EACCES).
"""

from __future__ import annotations

from xenlive.client import requests
from xenlive.client.operations import StoreOperations


class DomainOperations(StoreOperations):
    """Domains, their features and quotas, and the server's control commands."""

    def control(self, *arguments: str) -> str:
        """Runs a control command of the server's; gives what it says."""
        return self.run(requests.control(*arguments))

    def get_domain_path(self, domid: int) -> str:
        """The node below which a domain has its own."""
        return self.run(requests.get_domain_path(domid))

    def is_domain_introduced(self, domid: int) -> bool:
        """Whether the server serves this domain."""
        return self.run(requests.is_domain_introduced(domid))

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Has the server serve a domain by its ring. XenstoreError EINVAL if it can't."""
        self.run(requests.introduce(domid, gfn, port))

    def release(self, domid: int) -> None:
        """Tells the server that a domain is no more. XenstoreError ENOENT if it has none such."""
        self.run(requests.release(domid))

    def resume(self, domid: int) -> None:
        """Tells the server that a domain that had shut down runs again."""
        self.run(requests.resume(domid))

    def set_target(self, domid: int, target: int) -> None:
        """Lets a domain do all that `target` may do."""
        self.run(requests.set_target(domid, target))

    def get_feature(self, domid: int | None = None) -> int:
        """The features that the server has for a domain, our own if None. ENOSYS from old ones."""
        return self.run(requests.get_feature(domid))

    def set_feature(self, domid: int, features: int) -> None:
        """Sets what a domain is offered, before it is introduced."""
        self.run(requests.set_feature(domid, features))

    def quota_names(self) -> list[str]:
        """The quotas that the server knows. XenstoreError ENOSYS from old ones."""
        return self.run(requests.quota_names())

    def get_quota(self, name: str, domid: int | None = None) -> int:
        """A quota of a domain, or what new domains get; 0 is unlimited."""
        return self.run(requests.get_quota(name, domid))

    def set_quota(self, name: str, value: int, domid: int | None = None) -> None:
        """Sets a quota of a domain, or what new domains get; 0 is unlimited."""
        self.run(requests.set_quota(name, value, domid))
