"""pyxs, a client in Python that knows nothing of ours, against every server.

Its last release is of 2016, and it runs unchanged on Python 3.11. It refuses to write empty values
itself, so there are none here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
from conformance.servers import Server
from pyxs import Client, PyXSError

pytestmark = pytest.mark.peer


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(unix_socket_path=str(server.socket_path)) as connected:
        yield connected


@pytest.fixture
def spot(place: str) -> bytes:
    """The test's own place in the store."""
    return place.encode()


def test_values_and_directories(client: Client, spot: bytes) -> None:
    client[spot + b"/a"] = b"value"
    client.mkdir(spot + b"/b/c")
    assert client[spot + b"/a"] == b"value"
    assert client.list(spot) == [b"a", b"b"]
    assert [found for found, _, _ in client.walk(spot)] == [
        spot,
        spot + b"/a",
        spot + b"/b",
        spot + b"/b/c",
    ]
    assert client.exists(spot + b"/b")
    client.delete(spot + b"/b")
    assert not client.exists(spot + b"/b")
    assert client.read(spot + b"/b", b"other") == b"other"
    with pytest.raises(PyXSError):
        client.read(spot + b"/b")


def test_permissions(client: Client, spot: bytes) -> None:
    client[spot] = b"-"
    client.set_perms(spot, [b"b0", b"r5"])
    assert client.get_perms(spot) == [b"b0", b"r5"]


def test_domains(client: Client) -> None:
    assert client.get_domain_path(3) == b"/local/domain/3"
    assert client.is_domain_introduced(0)
    assert not client.is_domain_introduced(3)
    with pytest.raises(PyXSError):
        client.introduce_domain(3, 1, 1)


def test_transactions(client: Client, spot: bytes) -> None:
    # Copies share the connection: their transactions overlap on it.
    first, second = copy.copy(client), copy.copy(client)
    client[spot] = b"0"
    first.transaction()
    second.transaction()
    first[spot] = b"1"
    second[spot] = b"2"
    assert (client[spot], first[spot], second[spot]) == (b"0", b"1", b"2")
    assert first.commit()
    assert not second.commit()
    assert client[spot] == b"1"
    first.transaction()
    first[spot] = b"3"
    first.rollback()
    assert client[spot] == b"1"


def test_a_monitor_hears_of_changes(client: Client, spot: bytes) -> None:
    with client.monitor() as monitor:
        monitor.watch(spot, b"token")
        events = monitor.wait()
        assert next(events) == (spot, b"token")
        client[spot + b"/a"] = b"-"
        assert next(events) == (spot + b"/a", b"token")
        client.delete(spot)
        assert next(events) == (spot, b"token")
        monitor.unwatch(spot, b"token")
