"""One live update, from the choice of an image to its end, whichever that is.

    chosen ── start ──▶ loading the image ─▶ waiting for transactions ─▶ cold.py ─▶ the next kernel
       │                     │                      │                       │
       └──── end ◀───────────┴──────── fail ────────┴───────────────────────┘

Transactions: like the C daemon, an update waits up to its time limit until none is open; after that
it is refused, naming who holds one, or if forced goes ahead and drops those older than that. Under
steady load there may be no instant without one: so new ones are held back, for moments.

**Invariants.** A session is started once and answered once: by this kernel when it fails, by the
next one when it doesn't. One that has ended does nothing more: timers and answers that were under
way find it closed. Whatever goes wrong in here fails the session, never the domain.
"""

from __future__ import annotations

from xenlive.abi.xs_state import XS_STATE_READ_VERSIONS
from xenlive.errors import UpdateError
from xenlive.update.cold import ColdUpdate, handed_over, plain_words, settle_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.guest import LoadedImage, Loading
    from xenlive.stubdom.boot import StubDomain
    from xenlive.stubdom.clients import ClientLoop
    from xenlive.update.issuer import Issuer
    from xenlive.xenstore.connection import Connection

#: While transactions are open, how often it is looked whether they have ended.
LOOK_AGAIN_S = 0.005
#: Seconds that new transactions may be held back so that the open ones can finish.
HOLD_BACK_S = 0.05
#: Seconds between two such attempts.
HOLD_AGAIN_S = 0.5


class Session:
    """An update that `owner` is preparing, or that is under way.

    `cmdline` None stands for the running kernel's own. `before_freeze` is called right before the
    clients have to wait; `fail_at` names a step to fail, for tests.
    """

    __slots__ = (
        "_domain",
        "_force",
        "_held_until_s",
        "_hold_again_s",
        "_issuer",
        "_listen_fd",
        "_loaded",
        "_loading",
        "_loop",
        "_old_image",
        "_running",
        "_started_s",
        "_timeout_s",
        "_version",
        "before_freeze",
        "closed",
        "cmdline",
        "fail_at",
        "image",
        "owner",
    )

    def __init__(
        self,
        domain: StubDomain,
        loop: ClientLoop,
        owner: Connection,
        image: str,
        *,
        old_image: str,
        version: str,
        listen_fd: int,
    ) -> None:
        self._domain = domain
        self._loop = loop
        self.owner = owner
        self.image = image
        self.cmdline: str | None = None
        self.closed = False
        self.fail_at = ""
        self.before_freeze: Callable[[], None] = _nothing
        self._old_image = old_image
        self._version = version
        self._listen_fd = listen_fd
        self._issuer: Issuer | None = None
        self._loading: Loading | None = None
        self._loaded: LoadedImage | None = None
        self._running: LoadedImage | None = None
        self._force = False
        self._timeout_s = 0.0
        self._started_s = 0.0
        self._held_until_s = 0.0
        self._hold_again_s = 0.0

    @property
    def is_started(self) -> bool:
        """Whether somebody waits for its outcome."""
        return self._issuer is not None

    def start(self, issuer: Issuer, timeout_s: float, force: bool) -> None:
        """Begins the update; `issuer` is answered when it has failed."""
        self._issuer = issuer
        self._timeout_s = timeout_s
        self._force = force
        try:
            handed_over(self._domain)
            self._running = self._domain.machine.running_image(self._old_image, self._version)
            self._loading = self._domain.machine.load_image(self._loop, self.image, self._answered)
        except Exception as error:
            self.fail(_why(error))

    def end(self) -> None:
        """Gives everything back; nothing happens after that."""
        if self.closed:
            return
        self.closed = True
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None
        if self._loaded is not None:
            self._domain.machine.unload(self._loaded)
            self._loaded = None
        if self._domain.server.hold_transactions:
            self._loop.release_held()

    def fail(self, why: str) -> None:
        """Ends it and tells the issuer why."""
        self.end()
        self._domain.machine.milestone(f"failed {why}")
        self._domain.machine.console(f"live update failed, serving on: {why}")
        if self._issuer is not None:
            self._issuer.answer(why)

    def ends_with_owner(self) -> bool:
        """Ends the session if its owner's connection is gone; whether it has ended."""
        if self.owner not in self._domain.server.connections:
            self.end()
        return self.closed

    # -- loading, waiting, updating --------------------------------------------------------------

    def _answered(self, answer: LoadedImage | UpdateError) -> None:
        self._loading = None
        if isinstance(answer, UpdateError):
            self.fail(str(answer))
            return
        self._loaded = answer
        if self.ends_with_owner():
            return
        if not set(XS_STATE_READ_VERSIONS) <= set(answer.streams):
            self.fail(f"preflight: the image reads state streams of versions {answer.streams}")
            return
        self._started_s = self._domain.machine.now_s()
        self._look()

    def _look(self) -> None:
        """Goes ahead when no transaction is open, else waits, holding new ones back at times."""
        if self.ends_with_owner():
            return
        now_s = self._domain.machine.now_s()
        server = self._domain.server
        open_ones = server.open_transactions()
        forced = self._force and all(age_s >= self._timeout_s for _, age_s in open_ones)
        if not open_ones or forced:
            self._update()
            return
        if now_s >= self._started_s + max(self._timeout_s, HOLD_BACK_S):
            self.fail(reject_reason(open_ones, self._timeout_s))
            return
        if server.hold_transactions and now_s >= self._held_until_s:
            self._loop.release_held()
            self._hold_again_s = now_s + HOLD_AGAIN_S
        elif not server.hold_transactions and now_s >= self._hold_again_s:
            server.hold_transactions = True
            self._held_until_s = now_s + HOLD_BACK_S
        self._loop.call_at(now_s + LOOK_AGAIN_S, self._look)

    def _update(self) -> None:
        try:
            if self._issuer is None or self._loaded is None or self._running is None:
                raise UpdateError("session", "it was never started")
            self.before_freeze()
            cmdline = self._domain.cmdline if self.cmdline is None else self.cmdline
            settle_device(self._domain)
            attempt = ColdUpdate(
                self._domain,
                self._loop,
                running=self._running,
                loaded=self._loaded,
                cmdline=plain_words(cmdline),
                issuer=self._issuer,
                listen_fd=self._listen_fd,
            )
            attempt.stages.fail_at = self.fail_at
            attempt.run()
        except Exception as error:
            self.fail(_why(error))


def reject_reason(open_ones: list[tuple[int, float]], timeout_s: float) -> str:
    """The C daemon's words for an update that transactions were in the way of."""
    late = [(domid, age_s) for domid, age_s in open_ones if age_s >= timeout_s]
    if not late:
        return "Overlapping transactions"
    return "Domains with long running transactions:" + "".join(
        [f"\nDomain {domid}: {int(age_s)} s" for domid, age_s in late]
    )


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _nothing() -> None:
    pass
