"""Debian's C daemon is started as if after a live update, and takes over our state."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from peer.c_daemon import PAGE_SIZE, CDaemon
from peer.tools import build_shim, c_xenstored
from xenstore.talk import Client, decode, encode

from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_DIRECTORY,
    XS_GET_PERMS,
    XS_READ,
    XS_SET_PERMS,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from xenlive.xenstore.connection import Ring
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import encode_state

DOM0_PORT = 1000


@pytest.mark.peer
def test_the_c_daemon_goes_on_from_our_state(tmp_path: Path, peer_build_folder: Path) -> None:
    server = XenstoreServer()
    writer, watcher = Client(server), Client(server)
    server.connect().ring = Ring(DOM0_PORT, None)
    for number in range(300):
        writer.ask(XS_WRITE, b"/vm/%d/name\0guest %d" % (number % 7, number))
    writer.ask(XS_SET_PERMS, b"/vm/1/name\0b0\0r5\0")
    watcher.ask(XS_WATCH, b"/vm\0tok en\0")
    # What is told under names of our own is passed over: a log, a domain that is not there yet.
    writer.ask(XS_CONTROL, b"log\0+tdb\0")
    server.store.add_domain(9)
    server.set_quota("nodes", 7, 9)
    listing = writer.ask(XS_DIRECTORY, b"/vm\0")
    assert isinstance(listing, bytes)
    # Half a request, which the next daemon gets the rest of.
    server.receive(writer.conn, encode(XS_READ, b"/vm/3/name\0", 0, 77)[:19])

    os.mkfifo(tmp_path / "evtchn.in")
    os.mkfifo(tmp_path / "evtchn.out")
    evtchn_fd = os.open(tmp_path / "evtchn.in", os.O_RDWR | os.O_NONBLOCK)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "socket"))
    listener.listen(5)
    pairs = {client.conn: socket.socketpair() for client in (writer, watcher)}
    state = b"".join(
        encode_state(
            server,
            listen_fd=listener.fileno(),
            evtchn_fd=evtchn_fd,
            fd_of=lambda conn: pairs[conn][0].fileno(),
        )
    )
    (tmp_path / "state_dump").write_bytes(state)
    (tmp_path / "xsd_port").write_text("7")
    (tmp_path / "xsd_kva").write_bytes(bytes(PAGE_SIZE))
    environment = {
        **CDaemon(tmp_path).environment,
        "XS_SHIM_DIR": str(tmp_path),
        "XENSTORED_RUNDIR": str(tmp_path),
        "LD_PRELOAD": str(build_shim(peer_build_folder)),
    }
    kept = [listener.fileno(), evtchn_fd, *(pair[0].fileno() for pair in pairs.values())]
    log = (tmp_path / "log").open("wb")
    daemon = subprocess.Popen(
        [str(c_xenstored()), "-N", "-U", "-F", str(tmp_path / "pid")],
        env=environment,
        pass_fds=kept,
        stdout=log,
        stderr=log,
    )
    try:
        old, new = pairs[writer.conn][1], pairs[watcher.conn][1]
        for peer in (old, new):
            peer.settimeout(10)
        old.sendall(encode(XS_READ, b"/vm/3/name\0", 0, 77)[19:])
        assert read_message(old) == (XS_READ, 77, b"guest 297")
        for kind, payload, expected in [
            (XS_GET_PERMS, b"/vm/1/name\0", b"b0\0r5\0"),
            (XS_DIRECTORY, b"/vm\0", listing),
            (XS_WRITE, b"/vm/1/name\0new", b"OK\0"),
        ]:
            old.sendall(encode(kind, payload))
            assert read_message(old) == (kind, 0, expected)
        assert read_message(new) == (XS_WATCH_EVENT, 0, b"/vm/1/name\0tok en\0")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
            late.connect(str(tmp_path / "socket"))
            late.settimeout(10)
            late.sendall(encode(XS_READ, b"/vm/1/name\0"))
            assert read_message(late) == (XS_READ, 0, b"new")
    finally:
        daemon.kill()
        daemon.wait()
        log.close()
        os.close(evtchn_fd)
        for sock in (listener, *(end for pair in pairs.values() for end in pair)):
            sock.close()


def read_message(sock: socket.socket) -> tuple[int, int, bytes]:
    """Type, request id and payload of the next message; nothing may come with it."""
    head = sock.recv(16, socket.MSG_WAITALL)
    body = sock.recv(int.from_bytes(head[12:], "little"), socket.MSG_WAITALL)
    (message,) = decode(head + body)
    return message.kind, message.req_id, message.payload
