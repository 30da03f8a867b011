"""The kinds of a change: what a journal of the server hears, as small tuples of numbers and bytes.

    (VALUE, b"/tool/x", b"1")        (START, 3, 17, 81_000_000)        (COMMIT, 3, 17, ((…), …))

A change is a tuple: its kind, then what `FIELDS` has for it. Whoever wants to keep a server's state
beside the server sets `XenstoreServer.journal` to a callable; it is called with each change, after
all checks of it and as it is done. `change_codec` turns changes into bytes and back, `replay` does
them again on a server that is as the first one was when its journal began.

A journal begins on a new server, or on one that has just loaded a state stream: a loaded state is
not a change but a new beginning (`State.adopt`).

**Invariants.** A kind keeps its number and its fields for good: they may be written by one kernel
and read by another. A change holds everything that doing it again needs, down to the clock. What
one change says becomes true at once: a commit is one change, with all that it does. Bytes on
their way (requests in part, answers and events not yet written) are not state, and no change; nor
are what they make of maxima, and the log's settings: who hands a journal over has to say them
beside it (`kept`).

Why tuples: nobody makes one unless somebody listens, and then it costs a tenth of a microsecond;
objects with names would cost five times that.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Change = tuple[Any, ...]
    Journal = Callable[[Change], object]

# Nodes: the four things that can happen to one.
VALUE = 0
PERMS = 1
CREATE = 2
REMOVE = 3
# Connections, by numbers that are never used again.
CONNECT = 16
DISCONNECT = 17
RING = 18
TARGET = 19
SHUT_DOWN = 20
# Domains, by their ids.
KNOWN = 32
GONE = 33
INTRODUCED = 34
RELEASED = 35
FEATURES = 36
UNIQUE_ID = 37
# Watches, by connection, path and token.
WATCH = 48
UNWATCH = 49
UNWATCH_ALL = 50
# Transactions, by connection and id: their life, what they look at, what they will do.
START = 64
END = 65
COMMIT = 66
LOOK = 67
TX_VALUE = 68
TX_PERMS = 69
TX_CREATE = 70
TX_REMOVE = 71
TX_EVENT = 72
FAIL = 73
# Quotas.
QUOTA = 80

#: In place of a domain's id in QUOTA: the value for all domains that have none of their own.
ALL_DOMAINS = -1
#: In place of a number or an id: there is none.
NONE = -1

# What a field is: its bounds are the codec's to check.
CONNECTION, DOMID, MAYBE_DOMID, FLAG, TX_ID, U32, MAYBE_U32, U64, NANOSECONDS = range(9)
PATH, DATA, PERMISSIONS, TOKEN, NAME, CHANGES = range(16, 22)

#: The fields of each kind, in order; numbers come first.
FIELDS: dict[int, tuple[int, ...]] = {
    VALUE: (PATH, DATA),
    PERMS: (PATH, PERMISSIONS),
    CREATE: (PATH, DATA, PERMISSIONS),
    REMOVE: (PATH,),
    CONNECT: (CONNECTION, DOMID),
    DISCONNECT: (CONNECTION,),
    RING: (CONNECTION, U32, FLAG, U64),  # our port; is the domain's unique id known? it, or 0
    TARGET: (CONNECTION, MAYBE_DOMID),
    SHUT_DOWN: (CONNECTION, FLAG),
    KNOWN: (DOMID,),
    GONE: (DOMID,),
    INTRODUCED: (DOMID, CONNECTION),
    RELEASED: (DOMID,),
    FEATURES: (DOMID, U32),
    UNIQUE_ID: (DOMID, U64),
    WATCH: (CONNECTION, MAYBE_U32, U32, PATH, TOKEN),  # depth; what its events leave out of paths
    UNWATCH: (CONNECTION, PATH, TOKEN),
    UNWATCH_ALL: (CONNECTION,),
    START: (CONNECTION, TX_ID, NANOSECONDS),  # when, by the server's clock
    END: (CONNECTION, TX_ID),
    COMMIT: (CONNECTION, TX_ID, CHANGES),
    LOOK: (CONNECTION, TX_ID, PATH),
    TX_VALUE: (CONNECTION, TX_ID, PATH, DATA),
    TX_PERMS: (CONNECTION, TX_ID, PATH, PERMISSIONS),
    TX_CREATE: (CONNECTION, TX_ID, PATH, DATA, PERMISSIONS),
    TX_REMOVE: (CONNECTION, TX_ID, PATH),
    TX_EVENT: (CONNECTION, TX_ID, FLAG, PATH),  # whether those above hear of it, too
    FAIL: (CONNECTION, TX_ID),  # it can't be committed any more
    QUOTA: (MAYBE_DOMID, U32, NAME),
}
