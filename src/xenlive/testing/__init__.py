"""A real Xenstore for tests, without Xen: a server in a process of its own, and fake guests.

    with PrivateXenstore() as store:
        store.client.write("/a", "1")
        guest = store.new_guest()
        guest.store.write("data/hello", "world")

`plugin.py` makes pytest fixtures of it (docs/testing-with-xenlive.md); without pytest it is used as
above. The parts:

    test process                         nursery: one a test process, forks a server for each store
      PrivateXenstore ──lifeline──────▶  server: the product's own core and loop on BareMachine
      client ──────────private socket──▶
      Guest: a page, two eventfds ─────▶ rings

Both names are imported when they are first used: pytest loads this room's plugin in every run, and
the nursery needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenlive.testing.guest import Guest
    from xenlive.testing.process import PrivateXenstore

__all__ = ["Guest", "PrivateXenstore"]


def __getattr__(name: str) -> object:
    if name == "Guest":
        from xenlive.testing.guest import Guest

        return Guest
    if name == "PrivateXenstore":
        from xenlive.testing.process import PrivateXenstore

        return PrivateXenstore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
