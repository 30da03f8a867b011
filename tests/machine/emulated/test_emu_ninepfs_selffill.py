"""A 9pfs ring whose own answers ask for more: the device is closed, and the host goes on."""

from __future__ import annotations

from typing import cast

from xenlive.errors import PeerError
from xenlive.machine.emulated.backends.ninepfs import NinePDevice, Ring


class Endless:
    """A back end whose ring has always more in it."""

    order = 1
    wants_kick = True

    def __init__(self) -> None:
        self.bytes_read = 0
        self.is_closed = False

    def kick(self) -> bool:
        """Serves some requests."""
        self.bytes_read += 100
        assert self.bytes_read < 100_000
        return True

    def close(self) -> None:
        """Nothing is served any more."""
        self.is_closed = True


class Device:
    """Hears of what is wrong with its ring."""

    def __init__(self) -> None:
        self.back = Endless()
        self.lost_for: list[str] = []

    def bind(self, remote_port: int) -> int:
        """A port."""
        return remote_port

    def attach(self, port: int, ref: int) -> Endless:
        """The back end of the one ring."""
        return self.back

    def lost(self, error: PeerError) -> None:
        """The ring is of no more use."""
        self.lost_for.append(str(error))


def test_a_ring_that_fills_itself_is_closed() -> None:
    device = Device()
    Ring(cast(NinePDevice, device), 1, 2).serve()
    assert device.back.is_closed
    assert len(device.lost_for) == 1
    assert "fills itself" in device.lost_for[0]
