"""A hosted Xenstore that the tests of a file share, and its domain 0."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conformance.servers import XenliveServer
from machine.fake_guest import connect

from xenlive.client.blocking import Xenstore


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XenliveServer]:
    """A hosted Xenstore for the tests of one file: what one does must not matter to the next."""
    made = XenliveServer(tmp_path_factory.mktemp("hosted") / "run")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def dom0(shared: XenliveServer) -> Iterator[Xenstore]:
    """A client of it in the domain that may do everything."""
    with connect(shared) as store:
        yield store
