"""Xenstore clients: `blocking.py` and `aio.py` do the I/O, `ring.py` a domain's; the rest has none.

bytes   codec.py ◀── messages ──▶ requests.py, answers.py: one request and what it means
                                  plans.py, tree.py: what takes several
transport.py, ring.py ◀── blocking.py ──▶ events.py: whose watch an event is of
     an event loop    ◀── aio.py      ──▶
"""

from xenlive.client.answers import Permission
from xenlive.client.blocking import Transaction, Watching, Xenstore
from xenlive.client.codec import WatchEvent

__all__ = ["Permission", "Transaction", "WatchEvent", "Watching", "Xenstore"]
