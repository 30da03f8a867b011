"""The lamp's two ends meet in a real Xenstore, without Xen."""

from __future__ import annotations

import asyncio

import pytest
from lamp import CONNECTED, INITIALISED, LampFrontend, add_lamp, back_of, front_of, serve_lamp

from xenlive.client.aio import AsyncXenstore
from xenlive.errors import XenstoreError
from xenlive.testing import Guest, PrivateXenstore

PATIENCE_S = 30.0


def test_a_toolstack_makes_both_ends(xenstore: PrivateXenstore, xenstore_guest: Guest) -> None:
    add_lamp(xenstore.client, xenstore_guest.domid, brightness=7)

    lamp = LampFrontend(xenstore_guest.store)
    assert lamp.brightness == 7
    assert xenstore_guest.store.read("device/lamp/0/state") == b"1"


def test_a_guest_can_not_dim_itself(xenstore: PrivateXenstore, xenstore_guest: Guest) -> None:
    add_lamp(xenstore.client, xenstore_guest.domid, brightness=7)

    with pytest.raises(XenstoreError, match="EACCES"):
        xenstore_guest.store.write(f"{back_of(xenstore_guest.domid)}/brightness", "100")


def test_both_ends_meet(xenstore: PrivateXenstore, xenstore_guest: Guest) -> None:
    domid = xenstore_guest.domid
    add_lamp(xenstore.client, domid, brightness=7)
    lamp = LampFrontend(xenstore_guest.store)

    async def meet() -> None:
        async with await AsyncXenstore.connect() as store:  # the fixture says where
            backend = asyncio.create_task(serve_lamp(store, domid))
            await asyncio.to_thread(lamp.connect, PATIENCE_S)
            await store.write(f"{back_of(domid)}/brightness", "3")
            await asyncio.to_thread(lamp.wait_for_brightness, 3, PATIENCE_S)
            backend.cancel()

    asyncio.run(meet())
    assert xenstore.client.read(f"{front_of(domid)}/state") == CONNECTED.encode()


def test_a_domain_that_ends_is_noticed(xenstore: PrivateXenstore, xenstore_guest: Guest) -> None:
    with xenstore.client.watching("@releaseDomain") as ends:
        assert ends.next(PATIENCE_S) is not None  # each watch begins with an event
        xenstore_guest.close()
        assert ends.next(PATIENCE_S) is not None
    assert not xenstore.client.is_domain_introduced(xenstore_guest.domid)


@pytest.mark.xenstore(seed={"/local/domain/0/backend/lamp": "", "/vendor": "ACME"})
def test_what_is_there_before(xenstore: PrivateXenstore) -> None:
    assert xenstore.client.read("/vendor") == b"ACME"
    with pytest.raises(XenstoreError, match="ETIMEDOUT"):
        xenstore.client.wait_for(f"{front_of(1)}/state", INITIALISED, timeout_s=0.1)


@pytest.mark.xenstore(quotas={"node-size": 64})
def test_a_guest_has_limits(xenstore_guest: Guest) -> None:
    with pytest.raises(XenstoreError, match="ENOSPC"):
        xenstore_guest.store.write("data/long", "x" * 100)
