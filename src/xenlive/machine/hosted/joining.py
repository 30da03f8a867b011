"""Entering a domain beside a hosted one: the other side of `neighbours.py`.

    membership = Membership.join(rundir)       # its domid is the hypervisor's to choose
    hears, rings = membership.share(memory_fd, ref=1, offset=0x5000, port=1)
    membership.shut_down()
    membership.close()                         # or the end of this process: the domain is gone

**Invariants.** Each call waits for its answer, `TIMEOUT_S` at most. What the other side says is
checked; it is a ConfigError when none answers there, or none of ours.
"""

from __future__ import annotations

import json
import os
import select
import socket
from typing import Any

from xenlive.errors import ConfigError
from xenlive.rundir import DOMAINS_NAME

TIMEOUT_S = 10.0
_PACKET_MAX = 65536
_FDS_MAX = 4


class Membership:
    """A domain's place beside the hosted one; `domid` is its id, `socket_path` the store's."""

    def __init__(self, connected: socket.socket, rundir: str) -> None:
        self._socket = connected
        self._rundir = rundir
        said, _ = self._ask({"verb": "enter"})
        domid, path = said.get("domid"), said.get("socket")
        if type(domid) is not int or not 0 < domid < 0x7FF0 or not isinstance(path, str):
            raise self._refused("it gives no domain id")
        self.domid = domid
        self.socket_path = path

    @classmethod
    def join(cls, rundir: str) -> Membership:
        """Enters a domain; ConfigError if no host process of this version answers in `rundir`."""
        path = os.path.join(rundir, DOMAINS_NAME)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            door.settimeout(TIMEOUT_S)
            try:
                door.connect(path)
            except OSError as error:
                raise ConfigError(
                    rundir, 0, f"no host process answers here ({error}); start one with: xenlive up"
                ) from None
            return cls(door, rundir)
        except BaseException:
            door.close()
            raise

    def share(self, memory_fd: int, ref: int, offset: int, port: int) -> tuple[int, int]:
        """Shares a granted page and a port: the doorbell it hears, and the one it rings."""
        request = {"verb": "share", "ref": ref, "offset": offset, "port": port}
        _, fds = self._ask(request, [memory_fd], 2)
        return fds[0], fds[1]

    def shut_down(self) -> None:
        """Says that the domain has stopped."""
        self._ask({"verb": "shutdown"})

    def fileno(self) -> int:
        """Readable when the other side is gone."""
        return self._socket.fileno()

    def is_alive(self) -> bool:
        """Whether the hypervisor beside is still there."""
        # It says nothing unasked: whenever there is something to read, that is its end.
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        """The domain is gone."""
        self._socket.close()

    def _ask(
        self, request: dict[str, Any], fds: list[int] | None = None, want_fds: int = 0
    ) -> tuple[dict[str, Any], list[int]]:
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds or [])
            packet, given, _, _ = socket.recv_fds(
                self._socket, _PACKET_MAX, _FDS_MAX, socket.MSG_CMSG_CLOEXEC
            )
            if not packet:
                raise self._refused("the connection was closed")
            answer = json.loads(packet)
        except (OSError, ValueError) as error:
            raise self._refused(str(error) or "no answer") from None
        if not isinstance(answer, dict) or answer.get("ok") is not True or len(given) != want_fds:
            for fd in given:
                os.close(fd)
            why = answer.get("error") if isinstance(answer, dict) else None
            raise self._refused(str(why or "not what was asked for"))
        return answer, list(given)

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(self._rundir, 0, f"no domain can be entered beside this one: {why}")
