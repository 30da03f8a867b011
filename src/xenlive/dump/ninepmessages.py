"""What waits in the rings of a 9pfs device: the bytes between the indices, split into messages.

Specification: Xen `docs/misc/9pfs.pandoc`; the messages are those of `ninep/messages.py`.

    data      | in: backend to front end            | out: front end to backend           |
              |      in_cons ▓▓▓▓▓ in_prod          |         out_cons ▓▓▓▓ out_prod      |

Each half is a ring by itself. What is consumed still stands in it, until it is written over; here
only what is pending counts: the requests and replies that are in flight.

**Invariants.** Any bytes and any indices give an answer: as many messages as can be told apart, and
in `problem` why there are no more. All numbers and texts in it can be written as JSON.
"""

from __future__ import annotations

from typing import Any

from xenlive.dump.words import text_of
from xenlive.errors import PeerError
from xenlive.memory.address import PAGE_SIZE
from xenlive.ninep.codec import decode, frame_size, header, name_of
from xenlive.ninep.messages import HEADER_BYTES, Qid, Stat

#: Messages of one ring that are shown in full; a hostile ring can hold a hundred thousand.
MAX_SHOWN = 64
#: Bytes of a data field that are shown.
DATA_SHOWN = 32

_U32 = 0xFFFFFFFF


def pending(name: str, area: bytes, cons: int, prod: int) -> dict[str, Any]:
    """What is queued in the half `name` (`in` or `out`), whose bytes are `area`.

    `cons` and `prod` are the shared indices. Keys: `size_bytes`, `cons`, `prod`, `pending_bytes`
    (None if the indices can't be right), `messages` (see `split`), `left_out` (how many more
    messages there are), `problem` (None, or what is wrong).
    """
    size = len(area)
    queued = (prod - cons) & _U32
    found: dict[str, Any] = {
        "size_bytes": size,
        "cons": cons,
        "prod": prod,
        "pending_bytes": None,
        "messages": [],
        "left_out": 0,
        "problem": None,
    }
    if queued > size:
        found["problem"] = f"the indices are {queued} bytes apart, the {name} ring has {size}"
        return found
    found["pending_bytes"] = queued
    start = cons & (size - 1)
    data = (area[start:] + area[:start])[:queued]
    found["messages"], found["left_out"], found["problem"] = split(data, 2 * size, cons)
    return found


def split(data: bytes, limit: int, index: int = 0) -> tuple[list[dict[str, Any]], int, str | None]:
    """The first messages of `data`, how many more there are, and what ended them too early.

    A message may have up to `limit` bytes; `index` is the ring index of the first byte. Keys of a
    message: `index`, `offset` (in `data`), `size`, `present_bytes` (less than `size` when the end
    is not in the ring yet), `type`, `type_name`, `tag`, `fields` (None if they can't be read),
    `problem`.
    """
    messages: list[dict[str, Any]] = []
    more = at = 0
    view = memoryview(data)
    while at < len(view):
        left = view[at:]
        try:
            size = frame_size(left, limit)
        except PeerError as error:
            return messages, more, f"no 9P message at byte {at}: a size of {error.value}"
        if not size or len(left) < HEADER_BYTES:
            return messages, more, f"{len(left)} bytes at byte {at} are less than a 9P header"
        if len(messages) < MAX_SHOWN:
            messages.append(_message(left[:size], size, at, (index + at) & _U32))
        else:
            more += 1
        at += size
    return messages, more, None


def _message(frame: memoryview, size: int, at: int, index: int) -> dict[str, Any]:
    type_, tag = header(frame)
    fields = problem = None
    if len(frame) < size:
        problem = f"only {len(frame)} of its {size} bytes are in the ring"
    else:
        try:
            fields = {name: _plain(value) for name, value in decode(frame).fields.items()}
        except PeerError as error:
            problem = str(error)
    return {
        "index": index,
        "offset": at,
        "size": size,
        "present_bytes": len(frame),
        "type": type_,
        "type_name": name_of(type_),
        "tag": tag,
        "fields": fields,
        "problem": problem,
    }


def _plain(value: Any) -> Any:
    """A field's value as JSON has it: data as its size and start, names as text."""
    if isinstance(value, memoryview):
        return {"size": len(value), "start": bytes(value[:DATA_SHOWN]).hex()}
    if isinstance(value, bytes):
        return text_of(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, Qid):
        return {"type": value.type, "version": value.version, "path": value.path}
    if isinstance(value, Stat):
        return {
            "name": text_of(value.name),
            "qid": _plain(value.qid),
            "mode": value.mode,
            "length": value.length,
        }
    return value


def in_words(message: dict[str, Any]) -> str:
    """A message in one line: `Twrite tag 3, 123 bytes: fid 4, offset 0, data 100 bytes`."""
    line = f"{message['type_name']} tag {message['tag']}, {message['size']} bytes"
    details = [f"{name} {_shown(value)}" for name, value in (message["fields"] or {}).items()]
    if details:
        line += ": " + ", ".join(details)
    if message["problem"]:
        line += f" ({message['problem']})"
    return line


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        if "start" in value:
            return f"{value['size']} bytes"
        if "name" in value:
            return f"{value['name']!r}, mode {value['mode']:o}, {value['length']} bytes"
        return f"{value['path']:#x}"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(one) for one in value) + "]"
    return ascii(value) if isinstance(value, str) else str(value)


def ring_halves(pages: list[bytes]) -> tuple[bytes, bytes]:
    """The in and the out half of the data area, from its pages in order; each page is whole."""
    half = len(pages) // 2
    if any(len(page) != PAGE_SIZE for page in pages):
        raise ValueError("a ring page is not whole")
    return b"".join(pages[:half]), b"".join(pages[half:])
