"""The limit of descriptors: one a client is needed, and systems start processes with few."""

from __future__ import annotations

import resource

#: As many as a host allows its domain, if the user may have them.
DESCRIPTORS = 1 << 16


def allow_descriptors(wanted: int = DESCRIPTORS) -> None:
    """Raises this process's soft limit, which its children inherit, towards `wanted`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
