"""CONTROL verbs that need nothing but the server, in the C daemon's words.

Specification: Xen `docs/misc/xenstore.txt`, "CONTROL"; forms and answers of Xen
`tools/xenstored/control.c`. Others, such as `live-update`, are registered from outside in
`XenstoreServer.control`, with a line for `help` in `control_help`.

**Invariants.** A verb with the wrong words changes nothing: EINVAL. No answer is longer than a
message may be.
"""

from __future__ import annotations

from xenlive.errors import XenstoreError
from xenlive.xenstore import quota, usage
from xenlive.xenstore.quota import ITEMS
from xenlive.xenstore.words import c_int

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.requests import Request
    from xenlive.xenstore.server import XenstoreServer

_OK = b"OK\0"
#: The order of C's `help`; what is not in it comes after these, but before `help` itself.
_ORDER = tuple(b"check log live-update logfile memreport print quota quota-soft".split())

_HELP = {
    b"log": b"[on|off|+<switch>|-<switch>]",
    b"logfile": b"<file>",
    b"memreport": b"[<file>]",
    b"print": b"<string>",
    b"quota": b"[set <name> <val>|<domid>|max [-r]]",
    b"quota-soft": b"[set <name> <val>]",
}


def install(server: XenstoreServer) -> None:
    """Registers the verbs of this file."""
    verbs = Verbs(server)
    server.control |= {
        b"check": verbs.check,
        b"log": verbs.log,
        b"logfile": verbs.logfile,
        b"memreport": verbs.memreport,
        b"print": verbs.print_text,
        b"quota": verbs.quota,
        b"quota-soft": verbs.quota_soft,
        b"help": verbs.show_help,
    }
    server.control_help |= _HELP


class Verbs:
    """The verbs of one server; each gets who asks, the request, and the words after the verb."""

    __slots__ = ("_server",)

    def __init__(self, server: XenstoreServer) -> None:
        self._server = server

    def check(self, conn: Connection, request: Request, args: list[bytes]) -> bytes:
        """`check`: looks for faults in the tree and the accounts; they go to the log."""
        _want(not args)
        server = self._server
        server.log.say("Checking store ...")
        for problem in server.store.check():
            server.log.say(f"check_store: {problem}")
        accounts = server.store.accounts
        wrong = accounts.wrong_counts(usage.all_nodes(server.store))
        for domid, count in wrong.items():
            text = f"Correct accounting data for domain {domid}: nodes are {count} off"
            server.log.say(text)
        accounts.set_right(wrong)
        server.log.say("Checking store complete.")
        return _OK

    def print_text(self, conn: Connection, request: Request, args: list[bytes]) -> bytes:
        """`print TEXT`: says it to the operator."""
        _want(len(args) == 1)
        if self._server.on_print is not None:
            self._server.on_print(b"control: " + args[0])
        return _OK

    def log(self, conn: Connection, request: Request, args: list[bytes]) -> bytes:
        """`log`: the switches; `log on`, `log off`, `log +SWITCH`, `log -SWITCH`."""
        log = self._server.log
        if not args:
            return log.describe().encode() + b"\0"
        _want(len(args) == 1)
        if args[0] == b"on":
            log.open()
        elif args[0] == b"off":
            log.close()
        else:
            _want(log.switch(args[0]))
        self._server.follow_log()
        return _OK

    def logfile(self, conn: Connection, request: Request, args: list[bytes]) -> bytes:
        """`logfile FILE`: the log goes there from now on."""
        _want(len(args) == 1)
        log = self._server.log
        log.file = args[0]
        log.close()
        log.open()
        self._server.follow_log()
        return _OK

    def memreport(self, conn: Connection, request: Request, args: list[bytes]) -> bytes:
        """`memreport [FILE]`: what is in memory, to a file, the log, or else the operator."""
        _want(len(args) <= 1)
        log = self._server.log
        if args:
            sink = log.opened(args[0])
        else:
            sink = log.sink
            if sink is None and log.file is not None:
                sink = log.opened(log.file)
        end = b"\n"
        if sink is None and not args:
            sink, end = log.on_print, b""
        if sink is None:
            raise XenstoreError("EBADF")  # which has no name in the protocol: EINVAL
        for line in usage.memory_report(self._server):
            sink(line.encode() + end)
        if log.flusher is not None:
            log.flusher()
        return _OK

    def quota(self, conn: Connection, request: Request, args: list[bytes]) -> bytes:
        """`quota`: those in force for new domains; `set NAME N`; `DOMID`; `max [-r]`."""
        server = self._server
        if not args:
            return _settings(server, "")
        if args[0] == b"set":
            return _set(server, args[1:], "")
        if args[0] == b"max":
            _want(args[1:] in ([], [b"-r"]))
            if len(args) > 1:
                server.store.accounts.reset_most()
            lines = [
                f"{name:<17}: {most:>8}\n"
                for (name, _), most in zip(ITEMS, server.store.accounts.most, strict=True)
            ]
            return _text("Max. seen accounting values:\n", lines)
        _want(len(args) == 1)
        domid = c_int(args[0])
        if domid not in server.store.domains:
            raise XenstoreError("ENOENT")
        used, most = usage.of_domain(server, domid)
        lines = [
            f"{name:<17}: {used[item]:>8} (max {most[item]:>8})\n"
            for item, (name, _) in enumerate(ITEMS)
        ]
        return _text(f"Domain {domid}:\n", lines)

    def quota_soft(self, conn: Connection, request: Request, args: list[bytes]) -> bytes:
        """`quota-soft`: the soft quotas; `set NAME N`."""
        if not args:
            return _settings(self._server, quota.SOFT)
        _want(args[0] == b"set")
        return _set(self._server, args[1:], quota.SOFT)

    def show_help(self, conn: Connection, request: Request, args: list[bytes]) -> bytes:
        """`help`: the verbs."""
        _want(not args)
        server = self._server
        verbs = [verb for verb in _ORDER if verb in server.control]
        verbs += [verb for verb in server.control if verb not in _ORDER and verb != b"help"]
        lines = [
            b"%-15s %s\n" % (verb, server.control_help.get(verb, b"")) for verb in [*verbs, b"help"]
        ]
        return b"".join(lines) + b"\0"


def _want(is_right: bool) -> None:
    if not is_right:
        raise XenstoreError("EINVAL")


def _text(head: str, lines: list[str]) -> bytes:
    return (head + "".join(lines)).encode() + b"\0"


def _settings(server: XenstoreServer, prefix: str) -> bytes:
    values = server.quotas.values
    lines = [
        f"{name:<17}: {values[prefix + name]:>8} {what}\n"
        for name, what in ITEMS
        if prefix + name in quota.DEFAULTS
    ]
    return _text("Quota settings:\n", lines)


def _set(server: XenstoreServer, words: list[bytes], prefix: str) -> bytes:
    _want(len(words) == 2)
    name = quota.parse_name(prefix.encode() + words[0])
    value = c_int(words[1])
    if value < 1 or name is None or name.startswith(quota.SOFT) != bool(prefix):
        raise XenstoreError("EINVAL")
    server.set_quota(name, value)
    return _OK
