"""A debugger's side of GDB's remote serial protocol, for tests: packets by hand."""

from __future__ import annotations

from collections.abc import Callable

from xenlive.machine.emulated.lens.gdbpackets import encode_packet, unescape


class RspClient:
    """Sends packets by `exchange`, which takes bytes and gives the answer's."""

    def __init__(self, exchange: Callable[[bytes], bytes]) -> None:
        self._exchange = exchange
        self._acknowledges = True

    def ask(self, payload: bytes) -> bytes:
        """The payload of the answer; empty, too, if the guest runs now."""
        return self.take(self._exchange(encode_packet(payload)))

    def take(self, data: bytes) -> bytes:
        """The payload of the one packet in `data`, whose form is checked."""
        if self._acknowledges:
            assert data[:1] in (b"+", b"$", b""), data
            data = data.removeprefix(b"+")
        if not data:
            return b""
        body, _, checksum = data[1:].partition(b"#")
        assert data[:1] == b"$", data
        assert checksum == b"%02x" % (sum(body) & 0xFF), data
        return unescape(body)

    def no_acks(self) -> None:
        """Acknowledgements are over."""
        assert self.ask(b"QStartNoAckMode") == b"OK"
        self._acknowledges = False
