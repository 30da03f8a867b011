"""The simulated world: seeds run clean, and the world notices what it is there to notice."""

from __future__ import annotations

import pytest

from xenlive.sim.__main__ import repeat_command
from xenlive.sim.client import Mismatch
from xenlive.sim.machine import POISON, Hypervisor, SimMachine
from xenlive.sim.world import SimWorld
from xenlive.stubdom import boot as boot_module
from xenlive.xenstore.server import XenstoreServer
from xenlive.xenstore.stream import load_state
from xenlive.xenstore.watches import Watches

STEPS = 400
SEEDS = range(1, 41)


@pytest.mark.parametrize("block", range(4))
def test_seeds(block: int) -> None:
    totals: dict[str, int] = {}
    for seed in SEEDS[block::4]:
        try:
            figures = SimWorld(seed).run(STEPS)
        except Mismatch as broken:
            pytest.fail(f"{broken}\nrepeat: {repeat_command(seed, STEPS)}")
        for name, figure in figures.items():
            totals[name] = totals.get(name, 0) + figure
    assert all(totals[name] > 0 for name in totals), totals


def test_the_same_seed_is_the_same_world() -> None:
    assert SimWorld(5).run(STEPS) == SimWorld(5).run(STEPS)
    assert SimWorld(5).run(STEPS) != SimWorld(6).run(STEPS)


def test_an_update_without_faults_always_succeeds() -> None:
    figures = SimWorld(3, faults=False).run(800)
    assert figures["updates"] > 1
    assert (figures["failed_updates"], figures["came_back"]) == (0, 0)


def broken_world(seeds: range = range(1, 12)) -> str:
    """What the first of some worlds complains of."""
    for seed in seeds:
        try:
            SimWorld(seed, faults=False).run(STEPS)
        except Mismatch as broken:
            return str(broken)
    return ""


def test_a_lost_event_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Watches.send
    sent = []

    def lossy(self: Watches, *args: object) -> None:
        sent.append(args)
        if len(sent) % 40:
            send(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Watches, "send", lossy)
    assert broken_world()


def test_a_node_lost_in_an_update_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    load = load_state

    def forgetful(server: XenstoreServer, data: bytes) -> object:
        loaded = load(server, data)
        for path in list(server.store.nodes):
            if path.startswith(b"/c/0/"):
                server.store.remove(path)
                break
        return loaded

    monkeypatch.setattr(boot_module, "load_state", forgetful)
    assert broken_world()


def test_a_grant_that_changes_in_an_update_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    poison = Hypervisor.poison

    def meddle(self: Hypervisor, keep: object) -> None:
        poison(self, keep)  # type: ignore[arg-type]
        self.grant_frames[100 * 8] ^= 1

    monkeypatch.setattr(Hypervisor, "poison", meddle)
    assert "handed-over" in broken_world()


def test_what_was_not_handed_over_is_poisoned() -> None:
    hypervisor = Hypervisor()
    hypervisor.ram[5000] = 1
    hypervisor.ram[9000] = 2
    hypervisor.poison([(8192, 4096)])
    assert hypervisor.ram[5000] == POISON
    assert hypervisor.ram[9000] == 2
    assert SimMachine(hypervisor).memory.read(SimMachine(hypervisor).load_end, 1) == b"\xa5"
