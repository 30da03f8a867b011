"""What an update would meet, found out without doing it: `xenlive update --preflight`.

One line a check, `ok NAME: detail` or `FAIL NAME: detail`; the update would be refused, or could
be, where a line fails.
"""

from __future__ import annotations

from xenlive.abi.xs_state import XS_STATE_READ_VERSIONS
from xenlive.errors import UpdateError, XenliveError
from xenlive.update.cold import check_device, handed_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.guest import LoadedImage, Loading
    from xenlive.stubdom.boot import StubDomain
    from xenlive.stubdom.clients import ClientLoop


class Preflight:
    """One report; `on_done` gets its text, once."""

    __slots__ = ("_domain", "_image", "_lines", "_loading", "_loop", "_on_done", "is_done")

    def __init__(
        self, domain: StubDomain, loop: ClientLoop, image: str, on_done: Callable[[str], None]
    ) -> None:
        self._domain = domain
        self._image = image
        self._lines: list[str] = []
        self._loading: Loading | None = None
        self._loop = loop
        self._on_done = on_done
        self.is_done = False

    def start(self) -> None:
        """Makes the report: what is known at once, and the image when it has answered."""
        self._check_domain()
        machine = self._domain.machine
        try:
            machine.validate_image(self._image)
            self._loading = machine.load_image(self._loop, self._image, self._image_answered)
        except UpdateError as error:
            self._image_answered(error)

    def cancel(self) -> None:
        """Ends it without an answer."""
        self.is_done = True
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None

    def give_up(self, why: str) -> None:
        """Ends it with what is known so far, if it has not ended."""
        if not self.is_done:
            self.cancel()
            self._say(False, "image", why)
            self._on_done("\n".join(self._lines))

    def _say(self, good: bool, name: str, detail: str) -> None:
        self._lines.append(f"{'ok' if good else 'FAIL'} {name}: {' '.join(detail.split())}")

    def _check_domain(self) -> None:
        domain = self._domain
        try:
            module, front = handed_over(domain)
            check_device(domain)
        except UpdateError as error:
            self._say(False, error.step, error.why)
        except XenliveError as error:
            self._say(False, "module", str(error))
        else:
            pages = module.n_pages + 1
            self._say(True, "module", f"{pages} pages at {module.address:#x}, stays there")
            self._say(True, "device", f"9pfs, {len(front.device.refs)} granted pages")
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
        self._loading = None
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
        if not self.is_done:
            self.is_done = True
            self._on_done("\n".join(self._lines))
