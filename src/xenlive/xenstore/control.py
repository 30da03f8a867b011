"""CONTROL verbs that need nothing but the server: check, help, print.

Specification: Xen `docs/misc/xenstore.txt`, "CONTROL"; the forms of the C daemon. Others, such as
`live-update`, are registered from outside in `XenstoreServer.control`, with a line for `help` in
`control_help`.
"""

from __future__ import annotations

from xenlive.errors import XenstoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xenlive.xenstore.connection import Connection
    from xenlive.xenstore.requests import Request
    from xenlive.xenstore.server import XenstoreServer


def install(server: XenstoreServer) -> None:
    """Registers the verbs of this file."""

    def check(conn: Connection, request: Request, args: list[bytes]) -> bytes:
        if args:
            raise XenstoreError("EINVAL")
        problems = server.store.check()
        return "\n".join(problems).encode()[:4000] + b"\0" if problems else b"OK\0"

    def print_text(conn: Connection, request: Request, args: list[bytes]) -> bytes:
        if len(args) != 1:
            raise XenstoreError("EINVAL")
        if server.on_print is not None:
            server.on_print(args[0])
        return b"OK\0"

    def show_help(conn: Connection, request: Request, args: list[bytes]) -> bytes:
        if args:
            raise XenstoreError("EINVAL")
        lines = [
            b"%-15s %s\n" % (verb, server.control_help.get(verb, b"")) for verb in server.control
        ]
        return b"".join(lines) + b"\0"

    server.control[b"check"] = check
    server.control[b"print"] = print_text
    server.control[b"help"] = show_help
    server.control_help[b"print"] = b"<string>"
