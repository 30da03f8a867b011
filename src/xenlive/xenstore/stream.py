"""The server's whole state as a Xenstore migration stream: the front door of this format.

Specification: Xen `docs/designs/xenstore-migration.md`. `stream_encode` has the order of records,
`stream_decode` what is checked.
"""

from __future__ import annotations

from xenlive.xenstore.stream_decode import LoadedState, load_state
from xenlive.xenstore.stream_encode import encode_state

__all__ = ["LoadedState", "encode_state", "load_state"]
