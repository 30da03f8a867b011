"""States of a device's two ends, as each writes them to its node `state` in Xenstore.

Specification: Xen `public/io/xenbus.h`, `enum xenbus_state`.
"""

from __future__ import annotations

XenbusStateUnknown = 0
XenbusStateInitialising = 1
XenbusStateInitWait = 2
XenbusStateInitialised = 3
XenbusStateConnected = 4
XenbusStateClosing = 5
XenbusStateClosed = 6
XenbusStateReconfiguring = 7
XenbusStateReconfigured = 8
