"""Live update as it is asked for: the `live-update` verb of Xenstore's CONTROL.

The verb's words are the C daemon's (Xen `docs/misc/xenstore.txt`, CONTROL), so that
`xenstore-control live-update` works unchanged:

    -f IMAGE              begins a session            -a     ends it
    -c WORDS              the next kernel's command line
    -s [-t SECONDS] [-F]  starts the update; answered when it has ended

One is our own: `--preflight IMAGE` reports what an update would meet, and does nothing else.

**Invariants.** At most one session; it belongs to the connection that began it and ends with it.
Each `-s` and each `--preflight` is answered exactly once. At most `PREFLIGHTS_MAX` images are tried
at a time.
"""

from __future__ import annotations

from xenlive.abi.xs_state import XS_STATE_READ_VERSIONS
from xenlive.errors import UpdateError, XenstoreError
from xenlive.update.cold import ISSUER_WORD, plain_words
from xenlive.update.issuer import Issuer, encode_text, replace_ok
from xenlive.update.preflight import Preflight
from xenlive.update.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.stubdom.boot import StubDomain
    from xenlive.stubdom.clients import ClientLoop
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.requests import Request

HELP = b"-f <image>|-c <words>|-s [-t <sec>] [-F]|-a|--preflight <image>"

PREFLIGHTS_MAX = 4


class LiveUpdateVerb:
    """The verb of one domain; `register` hangs it into the server's control verbs."""

    __slots__ = (
        "_domain",
        "_image",
        "_listen_fd",
        "_loop",
        "_preflights",
        "_session",
        "_version",
        "before_freeze",
        "fail_at",
    )

    def __init__(
        self, domain: StubDomain, loop: ClientLoop, image: str, version: str, listen_fd: int
    ) -> None:
        self._domain = domain
        self._loop = loop
        self._image = image
        self._version = version
        self._listen_fd = listen_fd
        self._session: Session | None = None
        self._preflights: list[Preflight] = []
        #: Called right before clients have to wait: the last moment for work that can't be left.
        self.before_freeze: Callable[[], None] = _nothing
        #: A step of the next update that is to fail, for tests.
        self.fail_at = ""

    def register(self) -> None:
        """Takes over the `live-update` verb of the domain's server."""
        server = self._domain.server
        server.control[b"live-update"] = self.control
        server.control_help[b"live-update"] = HELP

    def control(self, connection: Connection, request: Request, args: list[bytes]) -> bytes | None:
        """One CONTROL `live-update`: its answer, or None when that comes later.

        XenstoreError("EINVAL") for words that are none of the verb's.
        """
        words = [arg.decode("utf-8", "surrogateescape") for arg in args]
        option, rest = (words[0], words[1:]) if words else ("", [])
        if option == "-f" and len(rest) == 1:
            return encode_text(self._choose(connection, rest[0]))
        if option == "-c" and len(rest) == 1:
            return encode_text(self._set_cmdline(connection, rest[0]))
        if option == "-a" and not rest:
            return encode_text(self._abort())
        if option == "-s":
            return self._start(connection, request, rest)
        if option == "--preflight" and len(rest) == 1:
            return self._preflight(connection, request, rest[0])
        raise XenstoreError("EINVAL")

    def close(self) -> None:
        """Ends what is under way, without an answer: the domain ends."""
        self._end_session()
        for preflight in self._preflights:
            preflight.cancel()
        self._preflights.clear()

    # -- a session -------------------------------------------------------------------------------

    def _current(self) -> Session | None:
        """The session, if it has not ended, by itself or with its owner's connection."""
        if self._session is not None and self._session.ends_with_owner():
            self._session = None
        return self._session

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.end()
            self._session = None

    def _choose(self, connection: Connection, image: str) -> str:
        try:
            self._domain.machine.validate_image(image)
        except UpdateError as error:
            return error.why
        if self._current() is not None:
            return "live-update session already active."
        self._session = Session(
            self._domain,
            self._loop,
            connection,
            image,
            old_image=self._image,
            version=self._version,
            listen_fd=self._listen_fd,
        )
        return "OK"

    def _set_cmdline(self, connection: Connection, cmdline: str) -> str:
        session = self._current()
        if session is None or session.owner is not connection:
            return "Not in live-update session."
        session.cmdline = plain_words(cmdline)
        return "OK"

    def _abort(self) -> str:
        session = self._current()
        if session is None:
            return "No live-update session active."
        if session.is_started:
            session.fail("Cancellation was requested")
        self._end_session()
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
                    return encode_text("Migration stream version not supported.")
            else:
                raise XenstoreError("EINVAL")
        session = self._current()
        if session is None or session.owner is not connection or session.is_started:
            return encode_text("Not in live-update session.")
        session.fail_at = self.fail_at
        session.before_freeze = self._prepare
        session.start(Issuer(self._domain, self._loop, connection, request), timeout_s, force)
        return None

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
                        replace_ok(self._domain.server, connection, why)

    # -- looking ahead ---------------------------------------------------------------------------

    def _preflight(self, connection: Connection, request: Request, image: str) -> bytes | None:
        self._preflights = [each for each in self._preflights if not each.is_done]
        if len(self._preflights) >= PREFLIGHTS_MAX:
            return encode_text(f"FAIL busy: {PREFLIGHTS_MAX} images are being tried; try again")
        issuer = Issuer(self._domain, self._loop, connection, request)
        preflight = Preflight(self._domain, self._loop, image, issuer.answer)
        self._preflights.append(preflight)
        preflight.start()
        return None

    def _prepare(self) -> None:
        """Answers the preflights under way: the next kernel knows nothing of them."""
        self.before_freeze()
        for preflight in self._preflights:
            preflight.give_up("an update came in between; try again")
        self._preflights.clear()


def _nothing() -> None:
    pass
