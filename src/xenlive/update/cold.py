"""The cold update: freeze, write the state through the ring, kexec. One attempt, step by step.

    module      module and device are still what the next kernel must find
    freeze      no byte is read from or written to a client      undo: thaw
    reply       the issuer's OK goes into its pending output     undo: take it out again
    dump        the state, as a file on the 9pfs device, and     undo: remove both
                a copy outside of it, for a kernel that comes back
    device      the ring's private indices go into the record    undo: the record as it was
    start-info  blocks for the next kernel and for coming back   (they are nobody's memory)
    kexec       the processor enters the next image              the point of no return

**Invariants.** Each step can be undone until `kexec` has happened, and is, in reverse order, when
one fails: clients then see nothing but a pause. What the next kernel is given never overlaps the
handed-over pages. The state on the device is complete before the record says where the ring is.
"""

from __future__ import annotations

from xenlive.domain.ninepdevice import validate_device
from xenlive.domain.ninepfront import NinePFront
from xenlive.errors import BootError, ImageError, PeerTimeout, UpdateError, XenliveError
from xenlive.kexec.guard import check_clear, module_range
from xenlive.kexec.module import KexecModule
from xenlive.kexec.stages import Stages
from xenlive.kexec.start_info import build_start_info
from xenlive.memory.address import PhysAddr, round_up
from xenlive.stubdom.boot import CAME_BACK, COPY_WORD, LIVE_UPDATE, STATE_FILE
from xenlive.xenstore.stream import encode_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from xenlive.machine.guest import LoadedImage
    from xenlive.stubdom.boot import StubDomain
    from xenlive.stubdom.clients import ClientLoop
    from xenlive.update.issuer import Issuer

#: Seconds that a silent backend may hold all clients up before the update is given up.
BACKEND_TIMEOUT_S = 3.0

#: The word by which a kernel that came back finds whom to tell: `issuer=FD`.
ISSUER_WORD = "issuer="


class ColdUpdate:
    """One attempt to hand `domain` over from the `running` image to the one that is `loaded`."""

    __slots__ = (
        "_blocks",
        "_cmdline",
        "_copy",
        "_domain",
        "_front",
        "_issuer",
        "_listen_fd",
        "_loaded",
        "_loop",
        "_module",
        "_old_record",
        "_running",
        "stages",
    )

    def __init__(
        self,
        domain: StubDomain,
        loop: ClientLoop,
        *,
        running: LoadedImage,
        loaded: LoadedImage,
        cmdline: str,
        issuer: Issuer,
        listen_fd: int,
    ) -> None:
        module, front = handed_over(domain)
        self._domain = domain
        self._loop = loop
        self._module: KexecModule = module
        self._front: NinePFront = front
        self._running = running
        self._loaded = loaded
        self._cmdline = cmdline
        self._issuer = issuer
        self._listen_fd = listen_fd
        self._old_record = b""
        self._copy = -1
        self._blocks = (PhysAddr(0), PhysAddr(0))
        self.stages = Stages()
        self.stages.add("module", self._check_module)
        self.stages.add("freeze", self._freeze, self._thaw)
        self.stages.add("reply", self._put_reply, self._take_reply)
        self.stages.add("dump", self._dump, self._remove_dump)
        self.stages.add("device", self._save_device, self._restore_device)
        self.stages.add("start-info", self._write_blocks)

    def run(self) -> None:
        """Goes through the steps and does not return; UpdateError if one fails: all is undone."""
        self.stages.run()
        try:
            if self.stages.fail_at == "kexec":
                raise UpdateError("kexec", "made to fail")
            self._kexec()
        except Exception as error:
            why = error.why if isinstance(error, UpdateError) else str(error)
            raise UpdateError("kexec", "; ".join([why, *self.stages.undo()])) from error
        raise UpdateError("kexec", "the processor came back")

    # -- the steps -------------------------------------------------------------------------------

    def _check_module(self) -> None:
        check_device(self._domain)

    def _freeze(self) -> None:
        self._domain.machine.milestone("freeze")
        self._loop.freeze()

    def _thaw(self) -> None:
        self._loop.thaw()

    def _put_reply(self) -> None:
        self._issuer.put_ok()
        self._domain.machine.milestone("frozen")

    def _take_reply(self) -> None:
        self._issuer.take_ok_back()

    def _dump(self) -> None:
        fds = dict(self._loop.connections())
        state = encode_state(
            self._domain.server,
            listen_fd=self._listen_fd,
            evtchn_fd=-1,
            fd_of=fds.__getitem__,
        )
        self._copy = self._domain.machine.new_copy()
        patience_s = self._front.timeout_s
        self._front.timeout_s = BACKEND_TIMEOUT_S
        try:
            self._front.write_file(STATE_FILE, self._copied(state))
        except PeerTimeout:
            # Clients wait: who did not answer is not asked again. The next dump replaces the file.
            self._domain.machine.drop_copy(self._copy)
            raise
        except BaseException:
            self._remove_dump()
            raise
        finally:
            self._front.timeout_s = patience_s
        self._domain.machine.milestone("dumped")

    def _copied(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._domain.machine.write_copy(self._copy, chunk)
            yield chunk

    def _remove_dump(self) -> None:
        self._domain.machine.drop_copy(self._copy)
        try:
            self._front.remove(STATE_FILE)
        except XenliveError as error:
            self._domain.machine.console(f"{STATE_FILE} was not removed: {error}")

    def _save_device(self) -> None:
        self._old_record = self._module.read_record(self._front.device.record)
        self._front.save()

    def _restore_device(self) -> None:
        self._module.update_record(self._front.device.record, self._old_record)

    def _write_blocks(self) -> None:
        machine = self._domain.machine
        memmap = self._domain.start_info.memmap.for_next_kernel()
        modules = [module_range(self._module)]
        words = [LIVE_UPDATE, f"{COPY_WORD}{self._copy}"]
        forward = " ".join([*words, self._cmdline])
        words += [CAME_BACK, f"{ISSUER_WORD}{self._issuer.fd}"]
        back = " ".join([*words, plain_words(self._domain.cmdline)])
        forward_at = machine.load_end
        forward_block = build_start_info(forward_at, memmap, modules, forward.rstrip())
        back_at = PhysAddr(round_up(forward_at + len(forward_block), 8))
        back_block = build_start_info(back_at, memmap, modules, back.rstrip())
        check_clear([(forward_at, len(forward_block)), (back_at, len(back_block))], modules)
        machine.memory.write(forward_at, forward_block)
        machine.memory.write(back_at, back_block)
        self._blocks = (forward_at, back_at)

    def _kexec(self) -> None:
        keep = [self._listen_fd, self._copy, *(fd for _, fd in self._loop.connections())]
        self._domain.machine.kexec(
            self._loaded, self._blocks[0], self._running, self._blocks[1], keep
        )


def handed_over(domain: StubDomain) -> tuple[KexecModule, NinePFront]:
    """Module and device of a domain that can be updated; UpdateError if it lacks one."""
    if domain.module is None:
        raise UpdateError(
            "module", "this kernel has no kexec module; set CONFIG_KEXEC and its module's pages"
        )
    if domain.front is None:
        raise UpdateError(
            "device", "this kernel has no 9pfs device; it needs CONFIG_9PFRONT and 18 module pages"
        )
    return domain.module, domain.front


def settle_device(domain: StubDomain) -> None:
    """Brings the rings to rest after a backend that was silent for too long.

    Late answers are taken; if that is not enough, the rings start over. XenliveError if the backend
    does not play along.
    """
    module, front = handed_over(domain)
    if front.settle():
        return
    machine = domain.machine
    domain.front = NinePFront.resume(
        machine.memory,
        module,
        front.device.record,
        domain.grants,
        machine,
        timeout_s=BACKEND_TIMEOUT_S,
        reconnect=machine.connect_ninepfs,
    )


def check_device(domain: StubDomain) -> None:
    """What the next kernel would refuse, refused where it costs nothing: UpdateError."""
    module, front = handed_over(domain)
    memory = domain.machine.memory
    try:
        KexecModule.attach(memory, module.address, module.size_bytes)
        validate_device(memory, module, domain.grants, front.device)
    except (ImageError, BootError) as error:
        raise UpdateError("module", str(error)) from error


def plain_words(cmdline: str) -> str:
    """A command line without the words that an update adds."""
    return " ".join(
        word
        for word in cmdline.split()
        if word not in (LIVE_UPDATE, CAME_BACK) and not word.startswith((ISSUER_WORD, COPY_WORD))
    )
