"""The places on disk of a host process: its run directory, its socket, the exported directory.

    claim_rundir    the directory, for one host at a time (a lock that ends with the process)
    clear_leftovers what a killed host has left in it
    listen_at       a listening socket at a path
    ExportDir       RUNDIR/9pfs: made, made again if somebody removes it, removed

**Invariants.** Nothing is removed that a host process did not make: of a path that is in the way
the kind is looked at first (a socket, a link into /proc, an exported directory with our mark in
it), and anything else is a ConfigError that names it. At the end a socket is removed only if it is
still the one that was made here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import stat

from xenlive.errors import ConfigError

SUN_PATH_MAX = 107

#: Lies in an exported directory that a host has made; the next host may remove such a one.
EXPORT_MARK = ".made-by-xenlive"
_MARK_TEXT = (
    "A host process of xenlive made this directory, and removes it with all that is in it.\n"
)

_RAM_LINK = re.compile(r"/proc/\d+/fd/\d+")


def claim_rundir(rundir: str, cleanup: contextlib.ExitStack) -> None:
    """Makes `rundir` if need be and locks it; ConfigError if it can't be ours or is taken."""
    missing = []
    parent = rundir
    while not os.path.isdir(parent) and parent != os.path.dirname(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    for folder in reversed(missing):
        os.mkdir(folder, 0o700)
        cleanup.callback(_remove_if_empty, folder)
    fd = os.open(rundir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    cleanup.callback(os.close, fd)
    if os.fstat(fd).st_uid != os.getuid():
        raise ConfigError(rundir, 0, "belongs to another user; name one of yours with --rundir")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            rundir, 0, "a host process runs here already; end it or name another --rundir"
        ) from None


def clear_leftovers(control: str, ram: str) -> None:
    """Removes the door and the link of a host that was killed; ConfigError for foreign files."""
    clear_socket(control)
    if os.path.lexists(ram):
        if not os.path.islink(ram) or not _RAM_LINK.fullmatch(os.readlink(ram)):
            raise _in_the_way(ram, "a host's link to its domain's memory", "--rundir")
        os.unlink(ram)


def clear_socket(path: str) -> None:
    """Removes a door of a host that was killed; ConfigError for a foreign file."""
    if os.path.lexists(path):
        if not _is_socket(path):
            raise _in_the_way(path, f"a host's {os.path.basename(path)} socket", "--rundir")
        os.unlink(path)


def validate_socket_path(path: str) -> None:
    """Refuses a path that the address of a Unix socket has no room for."""
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise ConfigError(
            path, 0, f"a socket's path has at most {SUN_PATH_MAX} bytes; name a shorter one"
        )


def listen_at(path: str, cleanup: contextlib.ExitStack) -> int:
    """The descriptor of a socket that listens at `path`; ConfigError if it can't be there."""
    if os.path.lexists(path):
        if not _is_socket(path):
            raise _in_the_way(path, "a socket", "--socket")
        if _is_served(path):
            raise ConfigError(path, 0, "somebody serves this socket; name another with --socket")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        cleanup.callback(remove_own, path, identity(path))
        os.chmod(path, 0o600)
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise ConfigError(path, 0, f"can't listen there: {error.strerror or error}") from None
    return listener.detach()


def identity(path: str) -> tuple[int, int]:
    """Which file it is that has this name now, whatever becomes of the name."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def remove_own(path: str, made: tuple[int, int]) -> None:
    """Removes the file at `path` if it is still the one that `identity` told of."""
    with contextlib.suppress(FileNotFoundError):
        if identity(path) == made:
            os.unlink(path)


class ExportDir:
    """The directory that a domain's 9pfs device exports; ConfigError if `path` is a user's own."""

    def __init__(self, path: str) -> None:
        self.path = path
        if os.path.lexists(path):
            self._clear()
        self.make()

    def make(self) -> None:
        """Makes the directory if it is not there; OSError if that can't be."""
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:
            return
        with open(os.path.join(self.path, EXPORT_MARK), "x", encoding="utf-8") as mark:
            mark.write(_MARK_TEXT)

    def remove(self) -> None:
        """Removes it: with all that is in it if it is marked, else only if it is empty."""
        if self._is_marked():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            _remove_if_empty(self.path)

    def _clear(self) -> None:
        if os.path.islink(self.path) or not os.path.isdir(self.path):
            raise _in_the_way(self.path, "a directory", "--rundir")
        self.remove()
        if os.path.lexists(self.path):
            raise _in_the_way(self.path, "a directory that xenlive made", "--rundir")

    def _is_marked(self) -> bool:
        try:
            found = os.lstat(os.path.join(self.path, EXPORT_MARK))
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode)


def _in_the_way(path: str, wanted: str, option: str) -> ConfigError:
    return ConfigError(
        path, 0, f"is there, but is not {wanted}; move it away or name another {option}"
    )


def _is_socket(path: str) -> bool:
    return stat.S_ISSOCK(os.lstat(path).st_mode)


def _is_served(path: str) -> bool:
    """Whether somebody accepts connections on the socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except TimeoutError:
            return True
        except OSError:
            return False
    return True


def _remove_if_empty(path: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(path)
