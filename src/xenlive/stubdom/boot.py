"""From a start info to a stub domain that is ready to serve, on any machine.

    start info ─▶ configuration ─▶ module ─▶ 9pfs device ─▶ store ─▶ ready
                                   module.py   device.py     -U: read from the
                                                             device; else new

The order is the safety: nothing is read through the device before the module and the device's
record were checked, and nothing is served before the state was read whole.

The command line's words, as the old kernel or the host wrote them: `CONFIG_…=…` overrides the
image's own configuration, `-U` says that this is a live update and the state waits on the device
(the C daemon's name for it), `came-back` that another kernel has died on that device in between and
the state is to be had from the copy `copy=HANDLE`; others are for whoever looks for them.

**Invariants.** A handed-over module that is not sound is never used and is reported; a first boot
then finds or makes its own, a live update stops (`BootError`), since what it needs lies in the
module. A handed-over device that can't be taken over stops the boot before any state is read.
"""

from __future__ import annotations

from xenlive.domain.config import Config, is_option
from xenlive.domain.grants import GrantTable
from xenlive.errors import BootError, ConfigError, ImageError, XenliveError
from xenlive.kexec.start_info import parse_start_info
from xenlive.stubdom.device import take_over_or_make_device
from xenlive.stubdom.module import find_or_make_module
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import load_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from xenlive.domain.ninepfront import NinePFront
    from xenlive.kexec.module import KexecModule
    from xenlive.kexec.start_info import StartInfo
    from xenlive.machine.guest import GuestMachine
    from xenlive.memory.address import PhysAddr
    from xenlive.xenstore.stream import LoadedState

#: The configuration of an image that brings none: what Xen's stub domain configures.
DEFAULT_CONFIG = "CONFIG_9PFRONT=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=18\n"

#: The file on the 9pfs device that carries the state from one kernel to the next.
STATE_FILE = "/xenstore-state"

LIVE_UPDATE = "-U"

#: `copy=HANDLE`: where the machine keeps a copy of the state, for a kernel that comes back.
COPY_WORD = "copy="

#: Said to a kernel that is entered again because the next one did not take over.
CAME_BACK = "came-back"


class StubDomain:
    """A booted stub domain: what the kernel serves with, and what the next update hands over."""

    __slots__ = (
        "cmdline",
        "config",
        "front",
        "grants",
        "has_new_module",
        "loaded",
        "machine",
        "module",
        "module_note",
        "server",
        "start_info",
        "survivor_record",
    )

    def __init__(self, machine: GuestMachine, start_info: StartInfo, config: Config) -> None:
        self.machine = machine
        self.start_info = start_info
        self.cmdline = start_info.cmdline
        self.config = config
        self.module: KexecModule | None = None
        self.module_note = ""
        #: Whether this kernel made the module.
        self.has_new_module = False
        #: The device's record in a module that was not handed over, but found again in memory.
        self.survivor_record: int | None = None
        self.grants = GrantTable(machine.grant_frames)
        self.front: NinePFront | None = None
        self.server = XenstoreServer(now=machine.now_s)
        self.loaded: LoadedState | None = None

    @property
    def is_update(self) -> bool:
        """Whether this kernel was entered by a live update."""
        return LIVE_UPDATE in self.cmdline.split()

    @property
    def has_survivor(self) -> bool:
        """Whether the module was not handed over, but found again in memory."""
        return self.survivor_record is not None

    @property
    def came_back(self) -> bool:
        """Whether this kernel was entered because the next one did not take over."""
        return CAME_BACK in self.cmdline.split()

    @property
    def copy(self) -> int | None:
        """The machine's handle of a copy of the state, if this is a live update."""
        for word in self.cmdline.split():
            number = word[len(COPY_WORD) :]
            if word.startswith(COPY_WORD) and number.isascii() and number.isdigit():
                return int(number[:9])
        return None


def boot(
    machine: GuestMachine, address: PhysAddr, image_config: str = DEFAULT_CONFIG
) -> StubDomain:
    """Boots a stub domain from the start info at `address`; BootError when it can't be."""
    try:
        start_info = parse_start_info(machine.memory, address)
        config = Config.parse(image_config, "image").with_options(
            [word for word in start_info.cmdline.split() if is_option(word)]
        )
        domain = StubDomain(machine, start_info, config)
        find_or_make_module(domain)
        take_over_or_make_device(domain)
        machine.milestone("booted")
        if domain.is_update:
            _read_state(domain)
            machine.milestone("restored")
        return domain
    except BootError:
        raise
    except ConfigError as error:
        raise BootError("config", str(error)) from error
    except ImageError as error:
        raise BootError(error.code, error.what) from error


def _read_state(domain: StubDomain) -> None:
    """The state from the device, or from its copy for a kernel that comes back."""
    copy = domain.copy
    try:
        if domain.came_back and copy is not None:
            data: Buffer = domain.machine.read_copy(copy)
        elif domain.front is not None:
            data = domain.front.read_file(STATE_FILE)
        else:
            raise BootError("9pfs-no-record", "there is no device to read the state from")
    except (XenliveError, OSError) as error:
        raise BootError("state-unreadable", f"{STATE_FILE}: {error}") from error
    domain.loaded = load_state(domain.server, data)
