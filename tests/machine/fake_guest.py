"""A domain without a processor beside a hosted Xenstore: a page, two doorbells, and patience."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import time
from collections.abc import Callable

from conformance.servers import XenliveServer
from xenstore.talk import HEADER, Message, decode

from xenlive.abi import xs_ring
from xenlive.abi.xs_wire import XS_ERROR, XS_WATCH_EVENT, XSD_SOCKMSG
from xenlive.client.blocking import Xenstore
from xenlive.client.requests import Permission
from xenlive.machine.hosted.joining import Membership

PAGE_SIZE = 4096
#: Where in its memory the ring's page lies, and its port.
OFFSET = 2 * PAGE_SIZE
PORT = 1
PATIENCE_S = 30.0
SIZE = xs_ring.XENSTORE_RING_SIZE


def make_memory(seals: int = fcntl.F_SEAL_SHRINK) -> int:
    """Four pages that nobody makes fewer."""
    fd = os.memfd_create("fake-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4 * PAGE_SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class FakeGuest:
    """Enters a domain in `rundir` and shares its page; INTRODUCE is a toolstack's affair."""

    def __init__(self, rundir: str | os.PathLike[str]) -> None:
        self.membership = Membership.join(os.fspath(rundir))
        self.domid = self.membership.domid
        self.memory = make_memory()
        self._mapped = mmap.mmap(self.memory, 4 * PAGE_SIZE)
        self.page = memoryview(self._mapped)[OFFSET : OFFSET + PAGE_SIZE]
        self.words = self.page.cast("I")
        self.hears, self.rings = self.membership.share(self.memory, 1, OFFSET, PORT)
        self._unread = b""
        self.messages: list[Message] = []

    # -- its end of the rings --------------------------------------------------------------------

    def ring(self) -> None:
        """Rings the store."""
        os.eventfd_write(self.rings, 1)

    def put(self, data: bytes, *, ring: bool = True) -> None:
        """Sends bytes as the ring has room; what is answered meanwhile is read."""
        until_s = time.monotonic() + PATIENCE_S
        while data:
            prod, cons = self.words[xs_ring.REQ_PROD], self.words[xs_ring.REQ_CONS]
            piece = data[: SIZE - (prod - cons & 0xFFFFFFFF)]
            for index, byte in enumerate(piece):
                self.page[(prod + index) % SIZE] = byte
            self.words[xs_ring.REQ_PROD] = prod + len(piece) & 0xFFFFFFFF
            data = data[len(piece) :]
            if ring:
                self.ring()
            if data:
                assert time.monotonic() < until_s, "the store does not read"
                self.wait(0.05)
                self.take()

    def send(self, kind: int, *words: bytes, value: bytes = b"", tx_id: int = 0) -> None:
        """Sends one request."""
        payload = b"".join(word + b"\0" for word in words) + value
        self.put(XSD_SOCKMSG.pack(kind, 7, tx_id, len(payload)) + payload)

    def take(self) -> None:
        """Takes what is in the ring now."""
        cons, prod = self.words[xs_ring.RSP_CONS], self.words[xs_ring.RSP_PROD]
        count = prod - cons & 0xFFFFFFFF
        if count == 0:
            return
        area = bytes(self.page[xs_ring.RSP_AT : xs_ring.RSP_AT + SIZE])
        self._unread += bytes(area[(cons + index) % SIZE] for index in range(count))
        self.words[xs_ring.RSP_CONS] = prod
        self.ring()
        while len(self._unread) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._unread)[3]
            if len(self._unread) < end:
                break
            self.messages += decode(self._unread[:end])
            self._unread = self._unread[end:]

    def wait(self, timeout_s: float) -> bool:
        """Waits until the store rings."""
        if not select.select([self.hears], [], [], timeout_s)[0]:
            return False
        os.eventfd_read(self.hears)
        return True

    def next(self, *, event: bool) -> Message:
        """The next answer, or the next watch event, in the order they came."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            self.take()
            for message in self.messages:
                if (message.kind == XS_WATCH_EVENT) == event:
                    self.messages.remove(message)
                    return message
            assert time.monotonic() < until_s, "the store does not answer"
            self.wait(0.2)

    def ask(self, kind: int, *words: bytes, value: bytes = b"", tx_id: int = 0) -> bytes | str:
        """The payload of the answer to one request, or the name of its error."""
        self.send(kind, *words, value=value, tx_id=tx_id)
        message = self.next(event=False)
        if message.kind == XS_ERROR:
            return message.payload.rstrip(b"\0").decode()
        return message.payload

    def event(self) -> tuple[bytes, bytes]:
        """Path and token of the next watch event."""
        path, token = self.next(event=True).payload.split(b"\0")[:2]
        return path, token

    def wait_for_error(self) -> int:
        """The page's `error` field, once it says something."""
        until_s = time.monotonic() + PATIENCE_S
        while not self.words[xs_ring.ERROR]:
            assert time.monotonic() < until_s, "no error comes"
            self.wait(0.05)
        word: int = self.words[xs_ring.ERROR]
        return word

    def close(self) -> None:
        """The domain is gone."""
        self.membership.close()
        for fd in (self.memory, self.hears, self.rings):
            os.close(fd)


def connect(server: XenliveServer) -> Xenstore:
    """A client as domain 0."""
    return Xenstore.connect(server.socket_path, timeout_s=60.0)


def introduce(dom0: Xenstore, guest: FakeGuest) -> FakeGuest:
    """What a toolstack does for a domain."""
    home = dom0.get_domain_path(guest.domid)
    dom0.write(f"{home}/name", f"guest {guest.domid}")
    dom0.mkdir(f"{home}/data")
    reads = [Permission(0, "n"), Permission(guest.domid, "r")]
    dom0.set_perms(home, reads)
    dom0.set_perms(f"{home}/name", reads)
    dom0.set_perms(f"{home}/data", [Permission(guest.domid, "n")])
    dom0.introduce(guest.domid, 0xFEFFC, PORT)
    return guest


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Waits for what comes in its own time."""
    until_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until_s, what
        time.sleep(0.01)
