"""The `live-update` verb: its words and refusals, as the C daemon has them; whose a session is.

The words are from Xen `tools/xenstored/lu.c` and `docs/misc/xenstore.txt`, as answers show them.
"""

from __future__ import annotations

import pytest

from xenlive.abi.xs_wire import (
    XS_CONTROL,
    XS_ERROR,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
    XSD_SOCKMSG,
)
from xenlive.sim.loop import SimSocket
from xenlive.sim.machine import Entered
from xenlive.sim.world import STAGES, SimWorld


class Operator:
    """A connection of a quiet world that sends one request at a time."""

    def __init__(self, world: SimWorld, fd: int) -> None:
        self.world = world
        self.fd = fd
        self.socket = world.sockets.setdefault(fd, SimSocket())
        world.kernel.loop.adopt(world.kernel.domain.server.connect(), fd)

    def send(self, kind: int, payload: bytes, tx_id: int = 0) -> None:
        self.socket.to_server += XSD_SOCKMSG.pack(kind, 1, tx_id, len(payload)) + payload
        for _ in range(300):
            self.world.kernel.loop.step()

    def answer(self) -> tuple[int, bytes] | None:
        data = self.socket.to_client
        if len(data) < XSD_SOCKMSG.size:
            return None
        kind, _, _, length = XSD_SOCKMSG.unpack(data)
        payload = bytes(data[XSD_SOCKMSG.size : XSD_SOCKMSG.size + length])
        del data[: XSD_SOCKMSG.size + length]
        return kind, payload

    def ask(self, kind: int, payload: bytes, tx_id: int = 0) -> tuple[int, bytes] | None:
        self.send(kind, payload, tx_id)
        return self.answer()

    def live_update(self, *words: str) -> bytes | None:
        payload = "".join(f"{word}\0" for word in ("live-update", *words)).encode()
        answer = self.ask(XS_CONTROL, payload)
        return None if answer is None else answer[1].rstrip(b"\0")

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds * 100)):
            self.world.hypervisor.clock_s += 0.01
            self.world.kernel.loop.run_timers()
        for _ in range(300):
            self.world.kernel.loop.step()


@pytest.fixture
def world() -> SimWorld:
    return SimWorld(1, clients=0, faults=False)


@pytest.fixture
def operator(world: SimWorld) -> Operator:
    return Operator(world, 50)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["-f", "nothing"], b"File not accessible."),
        (["-f"], b"EINVAL"),
        (["-f", "B", "C"], b"EINVAL"),
        (["-c", "words"], b"Not in live-update session."),
        (["-s"], b"Not in live-update session."),
        (["-s", "-t"], b"EINVAL"),
        (["-s", "-t", "soon"], b"EINVAL"),
        (["-s", "-v", "9"], b"Migration stream version not supported."),
        (["-s", "-x"], b"EINVAL"),
        (["-a"], b"No live-update session active."),
        (["-a", "now"], b"EINVAL"),
        (["-b", "5"], b"EINVAL"),
        ([], b"EINVAL"),
        (["--preflight"], b"EINVAL"),
    ],
)
def test_words_out_of_turn(operator: Operator, words: list[str], answer: bytes) -> None:
    assert operator.live_update(*words) == answer


def test_a_session_is_its_owners_alone(world: SimWorld, operator: Operator) -> None:
    other = Operator(world, 51)
    assert operator.live_update("-f", "B") == b"OK"
    assert other.live_update("-f", "B") == b"live-update session already active."
    assert other.live_update("-c", "x") == b"Not in live-update session."
    assert other.live_update("-s") == b"Not in live-update session."
    assert operator.live_update("-a") == b"OK"
    assert other.live_update("-f", "B") == b"OK"


def test_a_session_ends_with_its_owners_connection(world: SimWorld, operator: Operator) -> None:
    assert operator.live_update("-f", "B") == b"OK"
    for connection, fd in world.kernel.loop.connections():
        if fd == operator.fd:
            world.kernel.domain.server.disconnect(connection)
    assert Operator(world, 51).live_update("-f", "B") == b"OK"


def test_an_owner_that_goes_while_its_image_is_loaded_stops_the_update(
    world: SimWorld, operator: Operator
) -> None:
    operator.live_update("-f", "B")
    assert operator.live_update("-s") is None
    for connection, fd in world.kernel.loop.connections():
        if fd == operator.fd:
            world.kernel.domain.server.disconnect(connection)
    other = Operator(world, 51)
    other.pass_time(1)
    assert world.hypervisor.milestones.count("freeze") == 0
    assert other.live_update("-f", "B") == b"OK"


def test_an_abort_answers_the_start_as_well(operator: Operator) -> None:
    operator.live_update("-f", "B")
    assert operator.live_update("-s") is None
    assert operator.live_update("-a") == b"Cancellation was requested"
    assert operator.answer() == (XS_CONTROL, b"OK\0")


def test_a_start_goes_all_the_way(world: SimWorld, operator: Operator) -> None:
    operator.live_update("-f", "B")
    operator.live_update("-s")
    with pytest.raises(Entered) as entered:
        operator.pass_time(1)
    assert entered.value.image == "B"


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_can_fail_and_is_undone(
    world: SimWorld, operator: Operator, stage: str
) -> None:
    module = world.kernel.domain.module
    assert module is not None
    before = (module.owners(), module.read_record(0), bytes(world.hypervisor.grant_frames))
    world.kernel.verb.fail_at = stage
    operator.live_update("-f", "B")
    assert operator.live_update("-s") is None
    operator.pass_time(1)
    assert operator.answer() == (XS_CONTROL, f"{stage}: made to fail\0".encode())
    assert operator.answer() is None
    assert not world.kernel.loop.frozen
    after = (module.owners(), module.read_record(0), bytes(world.hypervisor.grant_frames))
    assert after == before
    # And it was not the last one.
    world.kernel.verb.fail_at = ""
    assert operator.live_update("-f", "B") == b"OK"
    assert operator.live_update("-s") is None
    with pytest.raises(Entered):
        operator.pass_time(1)


def test_an_open_transaction_is_waited_for(world: SimWorld, operator: Operator) -> None:
    other = Operator(world, 51)
    started = other.ask(XS_TRANSACTION_START, b"\0")
    assert started is not None
    operator.live_update("-f", "B")
    assert operator.live_update("-s", "-t", "5") is None
    operator.pass_time(3)
    assert operator.answer() is None
    assert other.ask(XS_TRANSACTION_END, b"F\0", int(started[1][:-1])) is not None
    with pytest.raises(Entered):
        operator.pass_time(1)


def test_a_long_transaction_is_named_and_survives_the_refusal(
    world: SimWorld, operator: Operator
) -> None:
    other = Operator(world, 51)
    started = other.ask(XS_TRANSACTION_START, b"\0")
    assert started is not None
    operator.live_update("-f", "B")
    operator.live_update("-s", "-t", "3")
    operator.pass_time(4)
    answer = operator.answer()
    assert answer == (XS_CONTROL, b"Domains with long running transactions:\nDomain 0: 3 s\0")
    assert not world.kernel.domain.server.hold_transactions
    ended = other.ask(XS_TRANSACTION_END, b"T\0", int(started[1][:-1]))
    assert ended == (XS_TRANSACTION_END, b"OK\0")


def test_force_goes_ahead_and_the_transaction_is_lost(world: SimWorld, operator: Operator) -> None:
    other = Operator(world, 51)
    started = other.ask(XS_TRANSACTION_START, b"\0")
    assert started is not None
    operator.live_update("-f", "B")
    operator.live_update("-s", "-t", "2", "-F")
    with pytest.raises(Entered) as entered:
        operator.pass_time(4)
    world._enter(entered.value)
    ended = other.ask(XS_TRANSACTION_END, b"T\0", int(started[1][:-1]))
    assert ended == (XS_ERROR, b"ENOENT\0")


def test_a_stale_timer_of_one_session_does_not_drive_the_next(
    world: SimWorld, operator: Operator
) -> None:
    other = Operator(world, 51)
    holder = Operator(world, 52)
    assert holder.ask(XS_TRANSACTION_START, b"\0") is not None
    operator.live_update("-f", "B")
    operator.live_update("-s", "-t", "60")
    operator.pass_time(1)  # its timer looks for the transaction again and again
    assert other.live_update("-a") == b"OK"
    assert other.live_update("-f", "C") == b"OK"
    assert other.live_update("-s", "-F") is None
    world.kernel.loop.run_timers()
    with pytest.raises(Entered) as entered:
        other.pass_time(1)
    assert entered.value.image == "C"


def test_the_answer_of_an_image_that_is_not_wanted_any_more_is_not_taken(
    world: SimWorld, operator: Operator
) -> None:
    operator.live_update("-f", "B")
    assert operator.live_update("-s") is None
    for connection, fd in world.kernel.loop.connections():
        if fd == operator.fd:
            world.kernel.domain.server.disconnect(connection)
    other = Operator(world, 51)
    assert other.live_update("-f", "C") == b"OK"
    assert other.live_update("-s") is None
    with pytest.raises(Entered) as entered:
        other.pass_time(1)
    assert entered.value.image == "C"


def test_a_preflight_is_answered_before_an_update_takes_its_kernel_away(
    world: SimWorld, operator: Operator
) -> None:
    other = Operator(world, 51)
    operator.live_update("-f", "B")
    operator.live_update("-s")
    world.hypervisor.clock_s += 0.04
    assert other.live_update("--preflight", "C") is None
    with pytest.raises(Entered) as entered:
        other.pass_time(0.5)
    world._enter(entered.value)
    other.pass_time(0.1)
    answer = other.answer()
    assert answer is not None
    assert b"an update came in between" in answer[1]


def test_not_more_than_a_few_images_are_tried_at_a_time(
    world: SimWorld, operator: Operator
) -> None:
    for _ in range(4):
        assert operator.live_update("--preflight", "B") is None
    busy = operator.live_update("--preflight", "B")
    assert busy is not None
    assert busy.startswith(b"FAIL busy")
    operator.pass_time(1)
    for _ in range(4):
        answer = operator.answer()
        assert answer is not None
        assert b"ok image: B, version version-B" in answer[1]
    assert operator.live_update("--preflight", "B") is None


def test_what_goes_wrong_in_an_update_fails_it_and_not_the_domain(
    world: SimWorld, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenlive.update.session.ColdUpdate", lambda *args, **words: 1 / 0)
    operator.live_update("-f", "B")
    assert operator.live_update("-s") is None
    operator.pass_time(1)
    assert operator.answer() == (XS_CONTROL, b"division by zero\0")
    assert operator.live_update("-f", "B") == b"OK"
