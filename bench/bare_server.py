"""The serve loop on a Unix socket and nothing else, to profile: `bench/bare_server.py PATH`."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys

from xenlive.stubdom.serve import ServeLoop
from xenlive.xenstore.server import XenstoreServer


def main(path: str) -> None:
    """Serves a new store on `path` until killed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener.bind(path)
    listener.listen(128)
    loop = ServeLoop(XenstoreServer())
    loop.listen(listener.detach())
    gc.freeze()
    gc.disable()
    loop.run()


if __name__ == "__main__":
    main(sys.argv[1])
