"""Who waits for the outcome of an update or a preflight: a connection, and the request it sent."""

from __future__ import annotations

from xenlive.abi.xs_wire import XSD_SOCKMSG
from xenlive.xenstore.requests import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.stubdom.boot import StubDomain
    from xenlive.stubdom.clients import ClientLoop
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.server import XenstoreServer

OK = b"OK\0"

#: An answer is one message; what is longer is cut.
_TEXT_MAX = 4000


class Issuer:
    """A request that is answered later, on a connection that may be gone by then."""

    __slots__ = ("_loop", "_request", "_server", "connection", "fd")

    def __init__(
        self, domain: StubDomain, loop: ClientLoop, connection: Connection, request: Request
    ) -> None:
        self._server = domain.server
        self._loop = loop
        self._request = request
        self.connection = connection
        self.fd = loop.fd_of(connection)

    def answer(self, text: str) -> None:
        """Sends the answer, if there is still somebody to send it to."""
        if self.connection in self._server.connections:
            self._server.reply(self.connection, self._request, encode_text(text))
            self._loop.flush(self.connection)

    def put_ok(self) -> None:
        """Puts an OK into the pending output, for the next kernel to send."""
        self._server.reply(self.connection, self._request, OK)

    def take_ok_back(self) -> None:
        """Undoes `put_ok`; nothing may have been written in between."""
        replace_ok(self._server, self.connection, None)


def encode_text(text: str) -> bytes:
    """An answer's payload from any text."""
    return text.encode("utf-8", "backslashreplace")[:_TEXT_MAX] + b"\0"


def replace_ok(server: XenstoreServer, connection: Connection, text: str | None) -> None:
    """Takes an OK from the end of the pending output, and puts `text` there if it is given."""
    unsent, partial = connection.unsent()
    cut = len(unsent) - len(OK) - XSD_SOCKMSG.size
    if cut < partial or not unsent.endswith(OK):
        return
    kind, _, tx_id, _ = XSD_SOCKMSG.unpack(unsent, cut)
    connection.out.clear()
    connection.restore_unsent(unsent[:cut], partial)
    if text is not None:
        request = Request(unsent[cut : cut + 12], kind, tx_id, b"")
        server.reply(connection, request, encode_text(text))
