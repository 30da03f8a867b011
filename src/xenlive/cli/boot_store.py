"""`xenlive boot --xenstore RUNDIR`: the guest's Xenstore is the hosted one that runs there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xenlive.cli.option_groups import Decorator, options_under
from xenlive.errors import XenliveError

if TYPE_CHECKING:
    from xenlive.cli.terminal import Terminal
    from xenlive.client.codec import Answer
    from xenlive.machine.emulated.backends.remote_store import RemoteStore
    from xenlive.machine.emulated.hypervisor.domain import Domain
    from xenlive.machine.emulated.interface import Clock
    from xenlive.machine.emulated.world import World

# Longer than any update holds clients up.
_TIMEOUT_S = 60.0

_option = options_under("Hosted Xenstore")

store_option: Decorator = _option(
    "--xenstore",
    "store_rundir",
    type=click.Path(path_type=Path),
    metavar="RUNDIR",
    help="Let the hosted Xenstore of that run directory (`xenlive up`) serve the guest.",
)


@contextlib.contextmanager
def world_with_store(rundir: Path | None, terminal: Terminal) -> Iterator[World]:
    """A world with its own Xenstore, or with that of `rundir`: then its guests leave it at the end.

    ConfigError if nobody answers there.
    """
    from xenlive.machine.emulated.world import World

    if rundir is None:
        with World() as world:
            yield world
        return
    from xenlive.client.blocking import Xenstore
    from xenlive.client.codec import encode_text
    from xenlive.client.requests import Request
    from xenlive.machine.emulated.backends.remote_store import RemoteClient, RemoteStore

    class Client(RemoteClient):
        """A connection of ours as one of the world's clients."""

        def __init__(self, path: str) -> None:
            super().__init__()
            self._store = Xenstore.connect(path, timeout_s=_TIMEOUT_S)
            self._is_dispatching = False

        def fileno(self) -> int:
            return self._store.fileno()

        def dispatch(self) -> None:
            if self._is_dispatching:
                return
            self._is_dispatching = True
            try:
                while (event := self._store.next_event(0)) is not None:
                    self._hear(encode_text(event.token), encode_text(event.path))
            finally:
                self._is_dispatching = False

        def introduce(self, domid: int, gfn: int, port: int) -> None:
            self._store.introduce(domid, gfn, port)

        def release(self, domid: int) -> None:
            self._store.release(domid)

        def close(self) -> None:
            self._store.close()

        def _request(self, kind: int, payload: bytes) -> bytes:
            label = payload.partition(b"\0")[0].decode("utf-8", "replace")
            said = self._store.run(Request(kind, payload, label, _payload))
            self.dispatch()
            return said

    def make_store(host: Domain, clock: Clock) -> RemoteStore:
        return RemoteStore(host, str(rundir), Client)

    world = World(make_store)
    store = world.store
    assert isinstance(store, RemoteStore)
    told = _Told(store, f"the hosted Xenstore of {rundir} went away")
    terminal.listen(told)
    try:
        yield world
    finally:
        told.say_if_gone()
        for guest in list(world.guests):
            with contextlib.suppress(XenliveError):
                world.remove_guest(guest)
        store.close()


class _Told:
    """Hears of `store` for the terminal, and says on stderr `end` as soon as it is gone.

    At once, as its guests may wait for ever then, before a terminal at which keys might come.
    """

    def __init__(self, store: RemoteStore, end: str) -> None:
        self._store = store
        self._end = end
        self._is_said = False

    def fileno(self) -> int:
        return self._store.fileno()

    def ready(self) -> None:
        self._store.ready()
        self.say_if_gone()

    def say_if_gone(self) -> None:
        if self._store.is_gone and not self._is_said:
            self._is_said = True
            click.echo(self._end, err=True)


def _payload(answer: Answer) -> bytes:
    return answer.payload
