"""A small Xenstore client: `blocking.py` over a socket, the rest without I/O."""

from xenlive.client.blocking import Transaction, Xenstore
from xenlive.client.codec import WatchEvent
from xenlive.client.requests import Permission

__all__ = ["Permission", "Transaction", "WatchEvent", "Xenstore"]
