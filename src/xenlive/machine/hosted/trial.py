"""Loading an image before anything stops: does it run, and is it a kernel to hand over to?

The image is started in a process of its own with `--preflight` (`machine/hosted/image.py`), while
the old kernel serves on, and must answer with one line:

    xenlive-kernel version=0.2.0 streams=1,2

Running it also collects the code of its modules in a memfd, which the update enters it with: the
same work inside of the gap would be waited for by every client.

**Invariants.** The child gets none of the domain's descriptors, a time limit, and is reaped. What
it writes is bounded by a pipe's size and is a stranger's: parsed, never trusted.
"""

from __future__ import annotations

import os
import select
import time

from xenlive.errors import UpdateError
from xenlive.machine.guest import LoadedImage
from xenlive.machine.hosted.image import preflight_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.guest import EventLoop

TIMEOUT_S = 10.0
_OUTPUT_MAX = 65536
_CHILDS_MODULES = 3


class Trial:
    """One try of one image; `on_done` gets an `LoadedImage` or the UpdateError that says why."""

    __slots__ = ("_image", "_loop", "_modules", "_on_done", "_output", "_pid", "_pidfd")

    def __init__(
        self, loop: EventLoop, image: str, on_done: Callable[[LoadedImage | UpdateError], None]
    ) -> None:
        self._loop = loop
        self._image = image
        self._on_done = on_done
        self._pid = -1

    def start(self) -> None:
        """Starts the image; the answer comes later. UpdateError if no process can be made."""
        command = preflight_command(self._image, _CHILDS_MODULES)
        self._modules = os.memfd_create("xenlive-image", os.MFD_CLOEXEC)
        output, theirs = os.pipe()
        os.set_blocking(output, False)
        try:
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
        except OSError as error:
            os.close(output)
            os.close(self._modules)
            raise UpdateError("preflight", f"no process for the image: {error}") from None
        finally:
            os.close(theirs)
        self._output = output
        self._loop.watch_fd(self._pidfd, self._ended)
        self._loop.call_at(time.monotonic() + TIMEOUT_S, self._late)

    def _late(self) -> None:
        if self._pid < 0:
            return
        os.kill(self._pid, 9)
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        poll.poll(1000)
        self._finish(UpdateError("preflight", f"the image did not answer within {TIMEOUT_S:.0f} s"))

    def _ended(self) -> None:
        try:
            text = os.read(self._output, _OUTPUT_MAX).decode("utf-8", "replace")
        except BlockingIOError:
            text = ""
        answer = parse_answer(self._image, text)
        if isinstance(answer, LoadedImage):
            if os.fstat(self._modules).st_size == 0:
                answer = UpdateError("preflight", "the image ended before it was loaded")
            else:
                answer.handle = self._modules
        self._finish(answer)

    def _finish(self, result: LoadedImage | UpdateError) -> None:
        self._loop.unwatch_fd(self._pidfd)
        os.close(self._pidfd)
        os.close(self._output)
        os.waitpid(self._pid, os.WNOHANG)
        self._pid = -1
        if isinstance(result, UpdateError):
            os.close(self._modules)
        self._on_done(result)


def parse_answer(image: str, text: str) -> LoadedImage | UpdateError:
    """Reads what an image wrote; the last line is the reason when it is no answer."""
    lines = [line for line in text.splitlines() if line.strip()]
    for line in lines:
        words = line.split()
        if words[0] != "xenlive-kernel":
            continue
        values = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        numbers = values.get("streams", "").split(",")
        version = values.get("version", "")
        if version and all(n.isascii() and n.isdigit() for n in numbers):
            return LoadedImage(image, version, tuple(int(n) for n in numbers))
    last = lines[-1][:200] if lines else "it said nothing"
    return UpdateError("preflight", f"the image does not answer as a kernel: {last}")
