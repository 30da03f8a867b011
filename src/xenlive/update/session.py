"""Live update as it is asked for: the `live-update` verb of Xenstore's CONTROL, and its state.

    idle ── -f IMAGE ──▶ chosen ── -s ──▶ trying the image ─▶ waiting for transactions ─▶ cold.py
             -c WORDS sets the command line        │                      │
    idle ◀── -a, an error, a failed step, the issuer's connection gone ───┘

The verbs and their words are the C daemon's (Xen `docs/misc/xenstore.txt`, CONTROL), so that
`xenstore-control live-update` works unchanged: `-f`, `-c`, `-a`, `-s [-t SECONDS] [-F]`. One is our
own: `--preflight IMAGE` reports what an update would meet, and does nothing else.

Transactions: like the C daemon, an update waits up to `-t` seconds until none is open; after that
it is refused, naming who holds one, or with `-F` goes ahead and drops those older than that. Under
steady load there may be no instant without one: so new ones are held back, for moments.

**Invariants.** At most one session; it belongs to the connection that began it and ends with it.
Each `-s` is answered exactly once: by this kernel when the update fails, by the next one when it
doesn't. A session never stops the loop for longer than one update attempt.
"""

from __future__ import annotations

from xenlive.abi.xs_state import XS_STATE_READ_VERSIONS
from xenlive.abi.xs_wire import XSD_SOCKMSG
from xenlive.errors import UpdateError, XenliveError, XenstoreError
from xenlive.update.cold import ISSUER_WORD, ColdUpdate, handed_over, plain_words
from xenlive.update.preflight import Preflight
from xenlive.xenstore.requests import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.machine.guest import LoadedImage
    from xenlive.stubdom.boot import StubDomain
    from xenlive.stubdom.clients import ClientLoop
    from xenlive.xenstore.connection import Connection

_OK = b"OK\0"
HELP = b"-f <image>|-c <words>|-s [-t <sec>] [-F]|-a|--preflight <image>"

#: While transactions are open, how often it is looked whether they have ended.
LOOK_AGAIN_S = 0.005
#: Seconds that new transactions may be held back so that the open ones can finish.
HOLD_BACK_S = 0.05
#: Seconds between two such attempts.
HOLD_AGAIN_S = 0.5


class Issuer:
    """Who asked for the update: a connection, its descriptor, and the request to be answered."""

    __slots__ = ("connection", "fd", "request", "server")

    def __init__(
        self, domain: StubDomain, connection: Connection, fd: int, request: Request
    ) -> None:
        self.server = domain.server
        self.connection = connection
        self.fd = fd
        self.request = request

    def reply(self, text: bytes) -> None:
        """Puts the answer into the connection's pending output."""
        self.server.reply(self.connection, self.request, text)

    def take_reply_back(self) -> None:
        """Undoes `reply`; nothing may have been written in between."""
        self.connection.out.pop()


class UpdateSession:
    """The session of one domain; `register` hangs it into the server's control verbs."""

    __slots__ = (
        "_cmdline",
        "_domain",
        "_force",
        "_held_until_s",
        "_hold_again_s",
        "_image",
        "_issuer",
        "_listen_fd",
        "_loaded",
        "_loop",
        "_new_image",
        "_owner",
        "_started_s",
        "_timeout_s",
        "fail_at",
    )

    def __init__(self, domain: StubDomain, loop: ClientLoop, image: str, listen_fd: int) -> None:
        self._domain = domain
        self._loop = loop
        self._image = image
        self._listen_fd = listen_fd
        self.fail_at = ""
        self._loaded: LoadedImage | None = None
        self._forget()

    def _forget(self) -> None:
        self._owner: Connection | None = None
        self._new_image = ""
        self._cmdline: str | None = None
        self._issuer: Issuer | None = None
        if self._loaded is not None:
            self._domain.machine.unload(self._loaded)
        self._loaded = None
        self._force = False
        self._timeout_s = 0.0
        self._started_s = 0.0
        self._held_until_s = 0.0
        self._hold_again_s = 0.0

    def register(self) -> None:
        """Takes over the `live-update` verb of the domain's server."""
        server = self._domain.server
        server.control[b"live-update"] = self.control
        server.control_help[b"live-update"] = HELP

    # -- the verb's words ------------------------------------------------------------------------

    def control(self, connection: Connection, request: Request, args: list[bytes]) -> bytes | None:
        """One CONTROL `live-update`: its answer, or None when that comes later.

        XenstoreError("EINVAL") for words that are none of the verb's.
        """
        self._end_if_owner_gone()
        words = [arg.decode("utf-8", "surrogateescape") for arg in args]
        option, rest = (words[0], words[1:]) if words else ("", [])
        if option == "-f" and len(rest) == 1:
            return _text(self._choose(connection, rest[0]))
        if option == "-c" and len(rest) == 1:
            return _text(self._set_cmdline(connection, rest[0]))
        if option == "-a" and not rest:
            return _text(self._abort())
        if option == "-s":
            return self._start(connection, request, rest)
        if option == "--preflight" and len(rest) == 1:
            return self._preflight(connection, request, rest[0])
        raise XenstoreError("EINVAL")

    def _choose(self, connection: Connection, image: str) -> str:
        try:
            self._domain.machine.validate_image(image)
        except UpdateError as error:
            return error.why
        if self._owner is not None:
            return "live-update session already active."
        self._owner = connection
        self._new_image = image
        return "OK"

    def _set_cmdline(self, connection: Connection, cmdline: str) -> str:
        if self._owner is not connection:
            return "Not in live-update session."
        self._cmdline = plain_words(cmdline)
        return "OK"

    def _abort(self) -> str:
        if self._owner is None:
            return "No live-update session active."
        if self._issuer is not None:
            self._fail("Cancellation was requested")
        self._forget()
        return "OK"

    def _start(self, connection: Connection, request: Request, words: list[str]) -> bytes | None:
        timeout_s = 0.0
        force = False
        while words:
            word = words.pop(0)
            if word == "-F":
                force = True
            elif word in ("-t", "-v") and words and words[0].isascii() and words[0].isdigit():
                number = int(words.pop(0)[:9])
                if word == "-t":
                    timeout_s = float(number)
                elif number not in XS_STATE_READ_VERSIONS:
                    return _text("Migration stream version not supported.")
            else:
                raise XenstoreError("EINVAL")
        if self._owner is not connection or self._issuer is not None:
            return _text("Not in live-update session.")
        self._force = force
        self._timeout_s = timeout_s
        self._issuer = Issuer(self._domain, connection, self._loop.fd_of(connection), request)
        try:
            handed_over(self._domain)
            self._domain.machine.load_image(self._loop, self._new_image, self._image_answered)
        except UpdateError as error:
            self._fail(str(error))
        return None

    # -- trying, waiting, updating ---------------------------------------------------------------

    def _image_answered(self, answer: LoadedImage | UpdateError) -> None:
        self._end_if_owner_gone()
        if isinstance(answer, UpdateError):
            if self._issuer is not None:
                self._fail(str(answer))
        elif self._issuer is None:
            self._domain.machine.unload(answer)
        elif not set(XS_STATE_READ_VERSIONS) <= set(answer.streams):
            self._fail(f"preflight: the image reads state streams of versions {answer.streams}")
        else:
            self._loaded = answer
            self._started_s = self._domain.machine.now_s()
            self._look()

    def _look(self) -> None:
        """Goes ahead when no transaction is open, else waits, holding new ones back at times."""
        self._end_if_owner_gone()
        if self._issuer is None:
            self._release_held()
            return
        now_s = self._domain.machine.now_s()
        server = self._domain.server
        open_ones = server.open_transactions()
        forced = self._force and all(age_s >= self._timeout_s for _, age_s in open_ones)
        if not open_ones or forced:
            self._update()
            return
        if now_s >= self._started_s + max(self._timeout_s, HOLD_BACK_S):
            self._fail(reject_reason(open_ones, self._timeout_s))
            return
        if server.hold_transactions and now_s >= self._held_until_s:
            self._loop.release_held()
            self._hold_again_s = now_s + HOLD_AGAIN_S
        elif not server.hold_transactions and now_s >= self._hold_again_s:
            server.hold_transactions = True
            self._held_until_s = now_s + HOLD_BACK_S
        self._loop.call_at(now_s + LOOK_AGAIN_S, self._look)

    def _release_held(self) -> None:
        if self._domain.server.hold_transactions:
            self._loop.release_held()

    def _update(self) -> None:
        issuer, loaded = self._issuer, self._loaded
        assert issuer is not None
        assert loaded is not None
        try:
            cmdline = self._domain.cmdline if self._cmdline is None else self._cmdline
            attempt = ColdUpdate(
                self._domain,
                self._loop,
                old_image=self._image,
                loaded=loaded,
                cmdline=plain_words(cmdline),
                issuer=issuer,
                listen_fd=self._listen_fd,
            )
            attempt.stages.fail_at = self.fail_at
            attempt.run()
        except XenliveError as error:
            self._fail(str(error))

    def _fail(self, why: str) -> None:
        issuer = self._issuer
        self._forget()
        self._release_held()
        self._domain.machine.milestone(f"failed {why}")
        self._domain.machine.console(f"live update failed, serving on: {why}")
        if issuer is not None and issuer.connection in self._domain.server.connections:
            issuer.reply(_text(why))
            self._loop.flush(issuer.connection)

    def _end_if_owner_gone(self) -> None:
        if self._owner is not None and self._owner not in self._domain.server.connections:
            self._forget()

    # -- coming back -----------------------------------------------------------------------------

    def undo_after_fallback(self, why: str) -> None:
        """The next kernel did not take over and this one was entered again: tells the issuer.

        The state that was read holds the OK which the next kernel was to send; it is replaced.
        """
        machine = self._domain.machine
        machine.milestone(f"failed {why}")
        machine.console(f"live update failed, the old kernel came back: {why}")
        for word in self._domain.cmdline.split():
            if word.startswith(ISSUER_WORD):
                for connection, fd in self._loop.connections():
                    if str(fd) == word[len(ISSUER_WORD) :]:
                        self._replace_ok(connection, _text(why))

    def _replace_ok(self, connection: Connection, payload: bytes) -> None:
        unsent, partial = connection.unsent()
        cut = len(unsent) - len(_OK) - XSD_SOCKMSG.size
        if cut < partial or not unsent.endswith(_OK):
            return
        kind, _, tx_id, _ = XSD_SOCKMSG.unpack(unsent, cut)
        connection.restore_unsent(unsent[:cut], partial)
        request = Request(unsent[cut : cut + 12], kind, tx_id, b"")
        self._domain.server.reply(connection, request, payload)

    # -- looking ahead ---------------------------------------------------------------------------

    def _preflight(self, connection: Connection, request: Request, image: str) -> bytes | None:
        issuer = Issuer(self._domain, connection, self._loop.fd_of(connection), request)
        Preflight(self._domain, self._loop, image).start(lambda text: self._report(issuer, text))
        return None

    def _report(self, issuer: Issuer, text: str) -> None:
        if issuer.connection in self._domain.server.connections:
            issuer.reply(_text(text))
            self._loop.flush(issuer.connection)


def reject_reason(open_ones: list[tuple[int, float]], timeout_s: float) -> str:
    """The C daemon's words for an update that transactions were in the way of."""
    late = [(domid, age_s) for domid, age_s in open_ones if age_s >= timeout_s]
    if not late:
        return "Overlapping transactions"
    return "Domains with long running transactions:" + "".join(
        f"\nDomain {domid}: {int(age_s)} s" for domid, age_s in late
    )


def _text(words: str) -> bytes:
    return words.encode("utf-8", "surrogateescape")[:4000] + b"\0"
