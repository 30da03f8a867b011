"""The files that a stub domain's log and reports are written to: on its 9pfs device.

    CONTROL logfile, memreport ──▶ LogFiles.open ──▶ sink(line) ──▶ buffer ─┬─▶ 9pfs: append
                                                                            └─▶ or the console

Specification: Xen `tools/xenstored/minios.c`: what the C daemon has mounted at `XENSTORE_LIB_DIR`
is the 9pfs device; a relative name is one in there. A domain without the device, and a name that
can't be opened, have lines of the console under the name of the file.

**Invariants.** A line costs the client that caused it no wait: they are written together, a moment
later, and before an update. A device that does not answer is waited for once, for
`BACKEND_TIMEOUT_S`. No file grows beyond `FILE_MAX_BYTES`, so that the next update's state has
room on the device; the state's own file is never opened.
"""

from __future__ import annotations

from xenlive.errors import XenliveError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.guest import EventLoop
    from xenlive.stubdom.boot import StubDomain

#: Where the C daemon has the device; what is named below it is named in here.
XENSTORE_LIB_DIR = "/var/lib/xen/xenstore/"

#: Seconds until lines are written, and how many bytes are not kept for so long.
WRITE_AFTER_S = 0.05
BUFFER_BYTES = 64 << 10

FILE_MAX_BYTES = 256 << 20
#: Seconds that a silent backend may hold all clients up before its files are given up.
BACKEND_TIMEOUT_S = 3.0


class LogFiles:
    """The open ones of one kernel; `reserved` are paths on the device that are nobody's."""

    __slots__ = ("_domain", "_files", "_is_due", "_loop", "_reserved")

    def __init__(self, domain: StubDomain, loop: EventLoop, reserved: tuple[str, ...]) -> None:
        self._domain = domain
        self._loop = loop
        self._reserved = reserved
        self._files: dict[bytes, LogFile] = {}
        self._is_due = False

    def open(self, name: bytes) -> Callable[[bytes], None]:
        """A sink for the lines of a file; it is made if it is not there, else gets longer."""
        file = self._files.get(name)
        if file is None or not file.is_open:
            file = self._files[name] = LogFile(self._domain, name, self._path_of(name))
        opened = file

        def write(line: bytes) -> None:
            opened.put(line)
            if opened.waits >= BUFFER_BYTES:
                opened.write()
            elif not self._is_due and opened.waits:
                self._is_due = True
                now_s = self._domain.machine.now_s()
                self._loop.call_at(now_s + WRITE_AFTER_S, self.write_all)

        return write

    def write_all(self) -> None:
        """Writes what waits."""
        self._is_due = False
        for file in self._files.values():
            file.write()

    def _path_of(self, name: bytes) -> str | None:
        """The path on the device; None if it can't be one."""
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        parts = [part for part in text.removeprefix(XENSTORE_LIB_DIR).split("/") if part]
        path = "/" + "/".join(parts)
        if not parts or "." in parts or ".." in parts or path in self._reserved:
            return None
        return path


class LogFile:
    """One file, or the lines of the console that stand for it once `is_open` is false."""

    __slots__ = ("_buffer", "_domain", "_name", "_path", "is_open", "waits")

    def __init__(self, domain: StubDomain, name: bytes, path: str | None) -> None:
        self._domain = domain
        self._name = name.decode("utf-8", "backslashreplace")
        self._path = path
        self._buffer: list[bytes] = []
        self.waits = 0
        self.is_open = domain.front is not None and path is not None
        if self.is_open:
            self._append(b"")
        elif domain.front is not None:
            self._give_up("no name of a file on the 9pfs device")

    def put(self, line: bytes) -> None:
        """Takes a line; it is written later, or is on the console at once."""
        if self.is_open:
            self._buffer.append(line)
            self.waits += len(line)
        else:
            self._say(line)

    def write(self) -> None:
        """Writes what waits."""
        if self._buffer and self.is_open:
            data = b"".join(self._buffer)
            self._buffer.clear()
            self.waits = 0
            self._append(data)

    def _append(self, data: bytes) -> None:
        front, path = self._domain.front, self._path
        if front is None or path is None:
            self._give_up("the 9pfs device has gone", data)
            return
        patience_s = front.timeout_s
        front.timeout_s = min(BACKEND_TIMEOUT_S, patience_s)
        try:
            front.append_file(path, data, FILE_MAX_BYTES)
        except XenliveError as error:
            self._give_up(str(error), data)
        finally:
            front.timeout_s = patience_s

    def _give_up(self, why: str, data: bytes = b"") -> None:
        self.is_open = False
        self._domain.machine.console(f"{self._name} is not written: {why}; its lines come here")
        for line in data.splitlines():
            self._say(line)

    def _say(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()
        if text:
            self._domain.machine.console(f"{self._name}: {text}")
