"""What an update would meet, found out without doing it: `xenlive update --preflight`.

One line a check, `ok NAME: detail` or `FAIL NAME: detail`; the update would be refused, or could
be, where a line fails.
"""

from __future__ import annotations

from xenlive.abi.xs_state import XS_STATE_READ_VERSIONS
from xenlive.errors import UpdateError
from xenlive.update.cold import handed_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.guest import LoadedImage
    from xenlive.stubdom.boot import StubDomain
    from xenlive.stubdom.clients import ClientLoop


class Preflight:
    """One report; `start` collects what is known and tries the image."""

    __slots__ = ("_domain", "_image", "_lines", "_loop", "_on_done")

    def __init__(self, domain: StubDomain, loop: ClientLoop, image: str) -> None:
        self._domain = domain
        self._loop = loop
        self._image = image
        self._lines: list[str] = []

    def start(self, on_done: Callable[[str], None]) -> None:
        """Makes the report; `on_done` gets its text, now or when the image has answered."""
        self._on_done = on_done
        self._check_domain()
        try:
            self._domain.machine.validate_image(self._image)
            self._domain.machine.load_image(self._loop, self._image, self._image_answered)
        except UpdateError as error:
            self._image_answered(error)

    def _say(self, good: bool, name: str, detail: str) -> None:
        self._lines.append(f"{'ok' if good else 'FAIL'} {name}: {detail}")

    def _check_domain(self) -> None:
        domain = self._domain
        try:
            module, front = handed_over(domain)
        except UpdateError as error:
            self._say(False, error.step, error.why)
        else:
            pages = module.n_pages + 1
            self._say(True, "module", f"{pages} pages at {module.address:#x}, stays there")
            self._say(
                True, "device", f"9pfs, {len(module.pages_of(front.device.record))} granted pages"
            )
        server = domain.server
        open_ones = server.open_transactions()
        self._say(
            not open_ones,
            "transactions",
            f"{len(open_ones)} open, the update would wait" if open_ones else "none open",
        )
        self._say(
            True,
            "state",
            f"{server.node_count} nodes, {server.watch_count} watches, "
            f"{len(server.connections)} connections",
        )

    def _image_answered(self, answer: LoadedImage | UpdateError) -> None:
        if isinstance(answer, UpdateError):
            self._say(False, "image", f"{self._image}: {answer.why}")
        else:
            self._domain.machine.unload(answer)
            self._say(True, "image", f"{self._image}, version {answer.version}")
            self._say(
                set(XS_STATE_READ_VERSIONS) <= set(answer.streams),
                "stream",
                f"the image reads state streams of versions {answer.streams}",
            )
        self._on_done("\n".join(self._lines))
