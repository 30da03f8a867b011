"""A Xenstore state stream that stands in an image, summed up: how much of what is in it.

Specification: Xen `docs/designs/xenstore-migration.md`, layouts in `abi/xs_state.py`. The stream is
looked at where it lies, through a reading function, and never held whole: a store can be large.

    xenstore ver flags | type length body | type length body | ... | END

What this says is less than what `xenstore/stream_decode.py` checks: that one loads a stream or
refuses it, this one says how far it can be read.

**Invariants.** Any bytes give a summary; `problem` says where and why reading ended before the END
record. Only counts and sizes come out, no bytes of the stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xenlive.abi.xs_state import (
    XS_STATE_CONN_TYPE_RING,
    XS_STATE_CONNECTION,
    XS_STATE_FLAG_BIG_ENDIAN,
    XS_STATE_IDENT,
    XS_STATE_NODE,
    XS_STATE_PREAMBLE,
    XS_STATE_READ_VERSIONS,
    XS_STATE_RECORD_HEADER,
    XS_STATE_TYPE_CONN,
    XS_STATE_TYPE_DOMAIN,
    XS_STATE_TYPE_END,
    XS_STATE_TYPE_GLB_QUOTA,
    XS_STATE_TYPE_GLOBAL,
    XS_STATE_TYPE_NODE,
    XS_STATE_TYPE_TA,
    XS_STATE_TYPE_WATCH,
    XS_STATE_TYPE_WATCH_EXT,
)

#: Reads up to so many bytes at an offset of the stream; fewer where it ends.
Read = Callable[[int, int], bytes]

#: No store has that many nodes; more is a hostile image that would keep us busy.
MAX_RECORDS = 2_000_000

_WINDOW_BYTES = 1 << 18
_KINDS = {
    XS_STATE_TYPE_GLOBAL: "globals",
    XS_STATE_TYPE_WATCH: "watches",
    XS_STATE_TYPE_WATCH_EXT: "watches",
    XS_STATE_TYPE_TA: "transactions",
    XS_STATE_TYPE_GLB_QUOTA: "quotas",
    XS_STATE_TYPE_DOMAIN: "domains",
}
_COUNTS = (
    *("ring_connections", "socket_connections", "watches", "transactions", "nodes"),
    *("transaction_nodes", "domains", "quotas", "globals", "unknown"),
)


def starts_stream(data: bytes) -> bool:
    """Whether a state stream can start here: its magic, a version that is known, plain flags."""
    if len(data) < XS_STATE_PREAMBLE.size or not data.startswith(XS_STATE_IDENT):
        return False
    _, version, flags = XS_STATE_PREAMBLE.unpack(data)
    return version in XS_STATE_READ_VERSIONS and not flags & ~XS_STATE_FLAG_BIG_ENDIAN


def summarize(read: Read, max_records: int = MAX_RECORDS) -> dict[str, Any]:
    """The summary of the stream that `read` reads, from offset 0 on, and at most `max_records`.

    Keys: `version`, `records` (their number), `size_bytes` (up to the END record's end, or as far
    as it could be read), `complete`, the counts `ring_connections`, `socket_connections`,
    `watches`, `transactions`, `nodes`, `transaction_nodes` (those that only a transaction sees),
    `domains`, `quotas`, `globals`, `unknown` (records of unknown type), `value_bytes` (of the
    nodes' values), `problem` (None, or what ended it).
    """
    window = _Window(read)
    preamble = window.at(0, XS_STATE_PREAMBLE.size)
    found: dict[str, Any] = {"version": None, "records": 0, "size_bytes": 0, "complete": False}
    found |= dict.fromkeys(_COUNTS, 0) | {"value_bytes": 0, "problem": None}
    if not starts_stream(preamble):
        found["problem"] = "no header of a Xenstore state stream"
        return found
    _, found["version"], flags = XS_STATE_PREAMBLE.unpack(preamble)
    found["size_bytes"] = XS_STATE_PREAMBLE.size
    if flags & XS_STATE_FLAG_BIG_ENDIAN:
        found["problem"] = "the stream is big endian, which is not read here"
        return found
    found["problem"] = _walk(window, found, max_records)
    found["complete"] = found["problem"] is None
    return found


def _walk(window: _Window, found: dict[str, Any], max_records: int) -> str | None:
    """Counts record after record in `found`; what ended it too early."""
    offset = XS_STATE_PREAMBLE.size
    for done in range(max_records):
        found["records"] = done
        found["size_bytes"] = offset
        head = window.at(offset, XS_STATE_RECORD_HEADER.size)
        if len(head) < XS_STATE_RECORD_HEADER.size:
            return f"it ends at {offset} without an END record"
        kind, length = XS_STATE_RECORD_HEADER.unpack(head)
        body_at = offset + XS_STATE_RECORD_HEADER.size
        offset = body_at + length + (-length & 7)
        if kind == XS_STATE_TYPE_END:
            found["size_bytes"] = offset
            found["records"] = done + 1
            return None
        if not window.has(offset - 1):
            return f"the record at {found['size_bytes']} of {length} bytes ends behind the data"
        problem = _count_record(window, found, kind, length, body_at)
        if problem:
            return f"the record at {found['size_bytes']} {problem}"
    found["records"] = max_records
    return f"more than {max_records} records"


def _count_record(
    window: _Window, found: dict[str, Any], kind: int, length: int, body_at: int
) -> str | None:
    if kind == XS_STATE_TYPE_NODE:
        if length < XS_STATE_NODE.size:
            return "is too short for a node"
        conn_id, _, path_len, data_len, _, perm_n = XS_STATE_NODE.unpack(
            window.at(body_at, XS_STATE_NODE.size)
        )
        if XS_STATE_NODE.size + 4 * perm_n + path_len + data_len > length:
            return "is too short for its node's path and value"
        found["transaction_nodes" if conn_id else "nodes"] += 1
        found["value_bytes"] += data_len
        return None
    if kind == XS_STATE_TYPE_CONN:
        if length < XS_STATE_CONNECTION.size:
            return "is too short for a connection"
        conn_type = XS_STATE_CONNECTION.unpack(window.at(body_at, XS_STATE_CONNECTION.size))[1]
        is_ring = conn_type == XS_STATE_CONN_TYPE_RING
        found["ring_connections" if is_ring else "socket_connections"] += 1
        return None
    found[_KINDS.get(kind, "unknown")] += 1
    return None


def in_words(summary: dict[str, Any]) -> str:
    """The summary in one line: what is in it, and whether it is whole."""
    parts = [
        f"{name.replace('_', ' ')} {summary[name]:,}"
        for name in _COUNTS
        if summary[name] or name in ("nodes", "watches")
    ]
    line = f"version {summary['version']}, {summary['size_bytes']:,} bytes: {', '.join(parts)}"
    return line if summary["complete"] else f"{line}; not whole: {summary['problem']}"


class _Window:
    """A stretch of the stream that was read at once; records are small and many."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._start = 0
        self._data = b""

    def at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`, fewer at the end of the data."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._data):
            self._start, begin = offset, 0
            self._data = self._read(offset, max(_WINDOW_BYTES, size))
        return self._data[begin : begin + size]

    def has(self, offset: int) -> bool:
        """Whether the data reaches as far as that byte."""
        begin = offset - self._start
        if 0 <= begin < len(self._data):
            return True
        return len(self._read(offset, 1)) == 1
