"""The simulated world: one seed, clients, a domain that goes through kernels, and what must hold.

    step:  a client acts │ the loop moves some bytes │ time passes, timers fire │ an update is asked
    kexec: RAM is poisoned, the next kernel boots from its start info alone
    end:   every client's nodes are read back, the handed-over memory is what it was

Faults come from the seed as well: a step of an update that fails, a next kernel that dies before
it takes over, at its entry or after its boot.

**Invariants** (checked, `Mismatch` if broken): each request gets the one right answer, each change
its events, in order, through all updates; the module keeps address and owners, grants and port
stay, the backend is connected once; a failed update changes nothing.
"""

from __future__ import annotations

from random import Random

from xenlive.abi.xs_wire import XS_CONTROL, XSD_SOCKMSG
from xenlive.errors import BootError, XenliveError
from xenlive.kexec.module import KexecModule
from xenlive.memory.address import PhysAddr
from xenlive.sim.client import Mismatch, SimClient
from xenlive.sim.loop import SimLoop, SimSocket
from xenlive.sim.machine import Entered, Hypervisor, SimMachine
from xenlive.stubdom.boot import boot
from xenlive.stubdom.module import LOAD_RESERVE_BYTES
from xenlive.update.verb import LiveUpdateVerb

STAGES = ("module", "freeze", "reply", "dump", "device", "start-info", "kexec")
CONFIGS = {
    "A": "CONFIG_9PFRONT=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=18\n",
    "B": "CONFIG_9PFRONT=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=24\n",
    "C": "CONFIG_9PFRONT=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES=18\n",
}
NEXT = {"A": "B", "B": "C", "C": "A"}


class SimKernel:
    """One kernel: what `image/kernel.py` puts together on the hosted machine."""

    def __init__(self, world: SimWorld, image: str, start_info: int, came_back: str = "") -> None:
        machine = SimMachine(world.hypervisor)
        self.image = image
        self.domain = boot(machine, PhysAddr(start_info), CONFIGS[image])
        self.loop = SimLoop(self.domain.server, world.sockets, world.random, machine.now_s)
        if self.domain.loaded is not None:
            for connection, fd in self.domain.loaded.connections:
                self.loop.adopt(connection, fd)
        self.verb = LiveUpdateVerb(self.domain, self.loop, image, image, listen_fd=3)
        self.verb.register()
        if came_back:
            self.verb.undo_after_fallback(came_back)


class SimWorld:
    """A world run from `seed`; `run` gives what happened in figures."""

    def __init__(self, seed: int, clients: int = 4, faults: bool = True) -> None:
        self.random = Random(seed)
        self.faults = faults
        self.hypervisor = Hypervisor()
        self.hypervisor.images = {name: f"version-{name}" for name in CONFIGS}
        self.sockets: dict[int, SimSocket] = {}
        self.kernel = SimKernel(self, "A", self.hypervisor.load("t=sim"))
        self.clients = [self._connect_client(number) for number in range(clients)]
        self.operator = self._connect(100)
        self.updates = 0
        self.failed_updates = 0
        self.came_back = 0
        self._asked = False
        self._before = self._handed_over()

    def _connect(self, fd: int) -> SimSocket:
        self.sockets[fd] = SimSocket()
        self.kernel.loop.adopt(self.kernel.domain.server.connect(), fd)
        return self.sockets[fd]

    def _connect_client(self, number: int) -> SimClient:
        return SimClient(number, self._connect(10 + number), self.random)

    # -- running ---------------------------------------------------------------------------------

    def run(self, steps: int = 600) -> dict[str, int]:
        """Takes `steps` steps, lets everything come to rest, and checks the end."""
        for _ in range(steps):
            self._step()
        for _ in range(100_000):
            if not self._at_rest():
                self._step(winding_down=True)
        if not self._at_rest():
            raise Mismatch("the world does not come to rest")
        self._check_end()
        return {
            "requests": sum(client.requests for client in self.clients),
            "events": sum(client.events for client in self.clients),
            "updates": self.updates,
            "failed_updates": self.failed_updates,
            "came_back": self.came_back,
        }

    def _at_rest(self) -> bool:
        return not self._asked and not any(
            client.waiting or client.in_transaction for client in self.clients
        )

    def _step(self, winding_down: bool = False) -> None:
        try:
            choice = self.random.random()
            if choice < 0.3:
                client = self.random.choice(self.clients)
                client.finish() if winding_down else client.act()
            elif choice < 0.9:
                self.kernel.loop.step()
            elif choice < 0.98 or winding_down or self._asked:
                self.hypervisor.clock_s += self.random.choice((0.001, 0.01, 0.1, 0.6))
                self.kernel.loop.run_timers()
            else:
                self._ask_for_update()
        except Entered as entered:
            self._enter(entered)
        for client in self.clients:
            client.listen()
        self._listen_operator()

    def _ask_for_update(self) -> None:
        self._asked = True
        self.kernel.verb.fail_at = ""
        if self.faults and self.random.random() < 0.3:
            self.kernel.verb.fail_at = self.random.choice(STAGES)
        for words in (f"-f\0{NEXT[self.kernel.image]}\0", "-s\0-t\09\0"):
            payload = b"live-update\0" + words.encode()
            self.operator.to_server += XSD_SOCKMSG.pack(XS_CONTROL, 7, 0, len(payload)) + payload
        self._answers: list[bytes] = []

    def _listen_operator(self) -> None:
        data = self.operator.to_client
        while len(data) >= XSD_SOCKMSG.size:
            length = XSD_SOCKMSG.unpack(data)[3]
            if len(data) < XSD_SOCKMSG.size + length:
                return
            self._answers.append(bytes(data[XSD_SOCKMSG.size : XSD_SOCKMSG.size + length]))
            del data[: XSD_SOCKMSG.size + length]
            if len(self._answers) == 2:
                self._asked = False
                if self._answers[0] != b"OK\0":
                    raise Mismatch(f"choosing an image: {self._answers[0]!r}")
                if self._answers[1] == b"OK\0":
                    self.updates += 1
                else:
                    self.failed_updates += 1

    # -- kexec -----------------------------------------------------------------------------------

    def _enter(self, entered: Entered) -> None:
        module = self.kernel.domain.module
        assert module is not None
        self.hypervisor.poison(
            [
                (module.address, module.size_bytes),
                (SimMachine(self.hypervisor).load_end, LOAD_RESERVE_BYTES),
            ]
        )
        self.hypervisor.events.forget_kernel()
        fault = self.random.choice(("", "", "", "entry", "booted")) if self.faults else ""
        try:
            if fault == "entry":
                raise BootError("sim", "the next kernel died at its entry")
            kernel = SimKernel(self, entered.image, entered.start_info)
            if fault == "booted":
                raise BootError("sim", "the next kernel died after its boot")
        except XenliveError as error:
            self.came_back += 1
            self.hypervisor.events.forget_kernel()
            kernel = SimKernel(
                self, entered.fallback, entered.fallback_start_info, came_back=str(error)
            )
        self.kernel = kernel
        now = self._handed_over()
        if now != self._before:
            raise Mismatch(f"handed-over memory changed: {self._before} -> {now}")

    def _handed_over(self) -> tuple[object, ...]:
        """All that must never change: module, owners, grants, ring references, connections."""
        module = self.kernel.domain.module
        front = self.kernel.domain.front
        assert module is not None
        assert front is not None
        independent = KexecModule.attach(self.hypervisor.memory, module.address, module.size_bytes)
        return (
            module.address,
            module.size_bytes,
            independent.owners(),
            bytes(self.hypervisor.grant_frames),
            tuple(front.device.refs),
            front.device.port,
            self.hypervisor.backend_connects - self.came_back,
        )

    def _check_end(self) -> None:
        nodes = self.kernel.domain.server.store.nodes
        for client in self.clients:
            home = client.home.encode()
            found = {
                path.decode(): node.value
                for path, node in nodes.items()
                if path == home or path.startswith(home + b"/")
            }
            if found != client.nodes:
                odd = sorted(
                    path
                    for path in found.keys() | client.nodes.keys()
                    if found.get(path) != client.nodes.get(path)
                )
                raise Mismatch(f"{client.home}: store and model differ at {', '.join(odd)}")
        problems = self.kernel.domain.server.store.check()
        if problems:
            raise Mismatch(f"the store is not sound: {problems}")
