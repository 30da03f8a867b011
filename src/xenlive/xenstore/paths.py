"""Paths: which names a client may use, and where they are in the store.

Specification: Xen `docs/misc/xenstore.txt`, introduction; limits of `public/io/xs_wire.h`. A path
is `/` or a run of `/name`; a name has letters, digits and `-_@`. A path that starts with neither
`/` nor `@` is relative to the caller's own `/local/domain/<domid>`. Names that start with `@` are
the special watches, no nodes of the tree.

**Invariants.** What `canonical` returns is either a special name or an absolute path that splits
at `/` into valid names; nothing else is ever used as a key of the store. So a key that is found
needs no check at all, which is what the fast paths of the server live on.
"""

from __future__ import annotations

from xenlive.abi.xs_wire import XENSTORE_REL_PATH_MAX
from xenlive.errors import XenstoreError

NAME_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_@"
PATH_BYTES = NAME_BYTES + b"/"
_DOMAINS = b"/local/domain/"


def home_of(domid: int) -> bytes:
    """The path a domain's relative paths start from, without a trailing slash."""
    return b"/local/domain/%d" % domid


def canonical(
    home: bytes, raw: bytes, special: bool, longest: int = XENSTORE_REL_PATH_MAX
) -> bytes:
    """The absolute path of `raw` for a caller that lives at `home`.

    `special` allows names that start with `@`. XenstoreError("EINVAL") for anything invalid.
    `longest` is the limit in bytes for what follows a leading `/local/domain/<domid>/`.
    """
    if raw.translate(None, PATH_BYTES):
        raise XenstoreError("EINVAL")
    first = raw[:1]
    if first == b"/":
        path = raw
    elif first == b"@":
        if not special:
            raise XenstoreError("EINVAL")
        path = raw
    else:
        path = home + b"/" + raw
    if (path[-1:] == b"/" and len(path) > 1) or b"//" in path:
        raise XenstoreError("EINVAL")
    if len(path) > longest and counted_length(path) > longest:
        raise XenstoreError("EINVAL")
    return path


def counted_length(path: bytes) -> int:
    """A path's length as limits count it, without a leading `/local/domain/<domid>/`."""
    return len(path) - _uncounted(path)


def valid_name(name: bytes) -> bool:
    """Whether `name` can be one level of a path."""
    return name != b"" and not name.translate(None, NAME_BYTES)


def parent_of(path: bytes) -> bytes:
    """The path one level up; that of `/`, of `/name` and of a special name is `/`."""
    cut = path.rfind(b"/")
    return path[:cut] if cut > 0 else b"/"


def _uncounted(path: bytes) -> int:
    """How much of a path the length limit leaves out: `/local/domain/<up to 5 digits>/`."""
    if not path.startswith(_DOMAINS):
        return 0
    end = path.find(b"/", len(_DOMAINS))
    digits = path[len(_DOMAINS) : end] if end >= 0 else b""
    if len(digits) > 5 or not digits.removeprefix(b"-").isdigit():
        return 0
    return end + 1
