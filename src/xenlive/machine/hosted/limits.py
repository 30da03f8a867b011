"""The limit of descriptors: one a client is needed, and systems start processes with few."""

from __future__ import annotations

import resource

#: As many as a host allows its domain, if the user may have them.
DESCRIPTORS = 1 << 16


def allow_descriptors(wanted: int = DESCRIPTORS) -> int:
    """Raises this process's soft limit, which its children inherit, towards `wanted`.

    Returns what it is then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit
    return wanted if soft == resource.RLIM_INFINITY else soft
