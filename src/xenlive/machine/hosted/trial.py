"""Loading an image before anything stops: does it run, and is it a kernel to hand over to?

The image is started in a process of its own with `--preflight` (`machine/hosted/image.py`), while
the old kernel serves on, and must answer with one line:

    xenlive-kernel version=0.2.0 streams=1,2

Running it also collects the code of its modules in a memfd, which the update enters it with: the
same work inside of the gap would be waited for by every client.

**Invariants.** The child gets none of the domain's descriptors and a time limit, its own alarm
ends it if everybody else is gone, and it is reaped. What it writes is a stranger's: bounded,
parsed, never trusted; whatever it is, the answer is a `LoadedImage` or one `UpdateError`.
"""

from __future__ import annotations

import os
import select
import time

from xenlive.errors import UpdateError
from xenlive.machine.guest import LoadedImage, Loading
from xenlive.machine.hosted.image import TRIAL_TIMEOUT_S, preflight_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.guest import EventLoop

_OUTPUT_MAX = 65536
_CHILDS_MODULES = 3
_VERSION_MAX = 64
_STREAMS_MAX = 16


class Trial(Loading):
    """One try of one image; `on_done` gets a `LoadedImage` or the UpdateError that says why.

    UpdateError at once if no process can be made for it.
    """

    __slots__ = ("_image", "_loop", "_modules", "_on_done", "_output", "_pid", "_pidfd", "_text")

    def __init__(
        self, loop: EventLoop, image: str, on_done: Callable[[LoadedImage | UpdateError], None]
    ) -> None:
        self._loop = loop
        self._image = image
        self._on_done = on_done
        self._text = b""
        self._modules = self._output = self._pidfd = self._pid = -1
        try:
            self._start()
        except OSError as error:
            self._clean_up(keep_modules=False)
            raise UpdateError("preflight", f"no process for the image: {error}") from None
        loop.watch_fd(self._pidfd, self._ended)
        loop.watch_fd(self._output, self._read)
        loop.call_at(time.monotonic() + TRIAL_TIMEOUT_S, self._late)

    def _start(self) -> None:
        command = preflight_command(self._image, _CHILDS_MODULES)
        self._modules = os.memfd_create("xenlive-image", os.MFD_CLOEXEC)
        self._output, theirs = os.pipe()
        try:
            os.set_blocking(self._output, False)
            self._pid = os.posix_spawn(
                command[0],
                command,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, theirs, 1),
                    (os.POSIX_SPAWN_DUP2, theirs, 2),
                    (os.POSIX_SPAWN_DUP2, self._modules, _CHILDS_MODULES),
                ],
            )
            self._pidfd = os.pidfd_open(self._pid)
        finally:
            os.close(theirs)

    def cancel(self) -> None:
        """Kills the child and forgets it."""
        if self._pid >= 0:
            self._unwatch()
            self._clean_up(keep_modules=False)

    def _late(self) -> None:
        if self._pid >= 0:
            why = f"the image did not answer within {TRIAL_TIMEOUT_S} s"
            self._finish(UpdateError("preflight", why))

    def _read(self) -> None:
        """Takes what the child wrote; what is too much is read all the same, so it can end."""
        try:
            data = os.read(self._output, _OUTPUT_MAX)
        except BlockingIOError:
            return
        if not data:
            self._loop.unwatch_fd(self._output)
            os.close(self._output)
            self._output = -1
        self._text = (self._text + data)[-_OUTPUT_MAX:]

    def _ended(self) -> None:
        if self._output >= 0:
            self._read()
        answer = parse_answer(self._image, self._text.decode("utf-8", "replace"))
        if isinstance(answer, LoadedImage):
            if os.fstat(self._modules).st_size == 0:
                answer = UpdateError("preflight", "the image ended before it was loaded")
            else:
                answer.handle = self._modules
        self._finish(answer)

    def _finish(self, result: LoadedImage | UpdateError) -> None:
        self._unwatch()
        self._clean_up(keep_modules=isinstance(result, LoadedImage))
        self._on_done(result)

    def _unwatch(self) -> None:
        self._loop.unwatch_fd(self._pidfd)
        if self._output >= 0:
            self._loop.unwatch_fd(self._output)

    def _clean_up(self, keep_modules: bool) -> None:
        """Ends the child if it has not ended, reaps it, and closes what is open."""
        if self._pid >= 0:
            os.kill(self._pid, 9)
            if self._pidfd >= 0:
                poll = select.poll()
                poll.register(self._pidfd, select.POLLIN)
                poll.poll(1000)
            os.waitpid(self._pid, os.WNOHANG)
        for fd in (self._pidfd, self._output, -1 if keep_modules else self._modules):
            if fd >= 0:
                os.close(fd)
        self._modules = self._output = self._pidfd = self._pid = -1


def parse_answer(image: str, text: str) -> LoadedImage | UpdateError:
    """Reads what an image wrote; the last line is the reason when it is no answer."""
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines:
        words = line.split()
        if words[0] != "xenlive-kernel":
            continue
        values = dict([word.split("=", 1) for word in words[1:] if "=" in word])
        numbers = values.get("streams", "").split(",")
        version = values.get("version", "")
        if (
            0 < len(version) <= _VERSION_MAX
            and version.isprintable()
            and len(numbers) <= _STREAMS_MAX
            and all(n.isascii() and n.isdigit() and len(n) <= 4 for n in numbers)
        ):
            return LoadedImage(image, version, tuple([int(n) for n in numbers]))
    last = lines[-1][:200] if lines else "it said nothing"
    return UpdateError("preflight", f"the image does not answer as a kernel: {last}")
