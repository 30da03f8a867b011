"""One hosted domain's resources, and what it gets for hypercalls that make no sense."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenlive.abi.hypercalls.xen import VIRQ_DOM_EXC
from xenlive.domain.events import FIRST_FREE_PORT, MAX_PORTS
from xenlive.errors import ConfigError, HypercallError
from xenlive.kexec.start_info import parse_start_info
from xenlive.machine.hosted import hypercall as hc
from xenlive.machine.hosted.hypervisor import (
    MILESTONE_MAX,
    RAM_MIN_BYTES,
    HostedDomain,
    Port,
)


@pytest.fixture
def domain() -> Iterator[HostedDomain]:
    made = HostedDomain(1, 8 << 20)
    yield made
    made.close()


def call(domain: HostedDomain, op: int, a0: int = 0, a1: int = 0) -> tuple[int, int, list[int]]:
    answer = domain.answer(hc.CALL.pack(op, a0, a1, 0, 0))
    assert answer is not None
    status, v0, *_ = hc.ANSWER.unpack(answer[0])
    return status, v0, answer[1]


def test_the_memory_map_call_gives_ram_and_grant_frames(domain: HostedDomain) -> None:
    status, size, fds = call(domain, hc.MEMORY_MAP)
    assert (status, size) == (0, 8 << 20)
    assert [os.fstat(fd).st_size for fd in fds] == [8 << 20, 4 * 4096]


def test_the_first_start_info_names_ram_and_special_pages(domain: HostedDomain) -> None:
    address = domain.load_start_info("a=1 b")
    start_info = parse_start_info(domain.memory, address)
    assert start_info.cmdline == "a=1 b"
    assert start_info.modules == []
    assert start_info.memmap == domain.memory_map()


@pytest.mark.parametrize(
    "ram_bytes", [0, -4096, 4096, 1 << 20, RAM_MIN_BYTES - 4096, RAM_MIN_BYTES + 1, 1 << 40]
)
def test_ram_of_an_impossible_size_is_refused(ram_bytes: int) -> None:
    with pytest.raises(ConfigError, match="from 1160K to 3840M"):
        HostedDomain(1, ram_bytes)


def test_an_event_channel_rings_both_ways_and_closes(domain: HostedDomain) -> None:
    status, port, _ = call(domain, hc.EVTCHN_ALLOC_UNBOUND, 0)
    assert (status, port) == (0, FIRST_FREE_PORT)
    status, _, (to_host, from_host) = call(domain, hc.EVTCHN_BIND, port)
    os.eventfd_write(to_host, 1)
    assert os.eventfd_read(domain.port(port).to_remote) == 1
    os.eventfd_write(domain.port(port).from_remote, 1)
    assert os.eventfd_read(from_host) == 1
    assert call(domain, hc.EVTCHN_CLOSE, port)[0] == 0
    assert call(domain, hc.EVTCHN_BIND, port)[0] == -errno.EINVAL


def test_who_serves_a_port_hears_of_its_end_while_its_bells_are_open(domain: HostedDomain) -> None:
    ended: list[tuple[int, int]] = []
    domain.on_port_close = lambda port: ended.append(
        (port, os.fstat(domain.port(port).to_remote).st_size)
    )
    _, port, _ = call(domain, hc.EVTCHN_ALLOC_UNBOUND, 0)
    assert call(domain, hc.EVTCHN_CLOSE, port)[0] == 0
    assert call(domain, hc.EVTCHN_CLOSE, port)[0] == -errno.EINVAL
    assert ended == [(port, 0)]


def test_a_domain_can_not_change_the_size_of_what_the_host_has_mapped(
    domain: HostedDomain,
) -> None:
    _, _, fds = call(domain, hc.MEMORY_MAP)
    for fd in fds:
        for size in (0, 64 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)


def test_a_host_with_few_descriptors_gives_few_ports(domain: HostedDomain) -> None:
    domain.ports_max = 2
    assert [call(domain, hc.EVTCHN_ALLOC_UNBOUND)[0] for _ in range(3)] == [0, 0, -errno.ENOSPC]


def test_no_descriptor_left_is_an_answer(
    domain: HostedDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def eventfd(initial: int, flags: int) -> int:
        if given:
            raise OSError(errno.EMFILE, "Too many open files")
        given.append(os.open(os.devnull, os.O_RDONLY))
        return given[0]

    monkeypatch.setattr("os.eventfd", eventfd)
    assert call(domain, hc.EVTCHN_ALLOC_UNBOUND)[0] == -errno.ENOSPC
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(given[0])


def test_ports_run_out_with_an_error_and_come_back(domain: HostedDomain) -> None:
    # The doorbells of all ports would be 2,000 descriptors; fewer show the same.
    for number in range(FIRST_FREE_PORT, MAX_PORTS):
        if number != 500:
            domain.ports[number] = domain.ports.get(number) or _port()
    assert call(domain, hc.EVTCHN_ALLOC_UNBOUND)[:2] == (0, 500)
    assert call(domain, hc.EVTCHN_ALLOC_UNBOUND)[0] == -errno.ENOSPC
    for number in [n for n in domain.ports if n != 500]:
        del domain.ports[number]


def _port() -> Port:
    return Port(0, -1, -1)  # stands for a port that is taken


@pytest.mark.parametrize(
    ("op", "a0", "status"),
    [
        (hc.EVTCHN_BIND, 0, -errno.EINVAL),
        (hc.EVTCHN_BIND, 1 << 63, -errno.EINVAL),
        (hc.EVTCHN_CLOSE, 77, -errno.EINVAL),
        (hc.EVTCHN_ALLOC_UNBOUND, 5, -errno.ESRCH),
        (hc.LISTENER, 0, -errno.ENOENT),
        (hc.GNTTAB_MAP, 2, -errno.ESRCH),
        (hc.GNTTAB_MAP, 1, -errno.ESRCH),
        (hc.EVTCHN_BIND_INTERDOMAIN, 2, -errno.ESRCH),
        (hc.EVTCHN_BIND_INTERDOMAIN, 1 << 63, -errno.ESRCH),
        (hc.EVTCHN_BIND_VIRQ, 0, -errno.EINVAL),
        (hc.DOMAIN_STATE, 2, -errno.ESRCH),
        (99, 0, -errno.ENOSYS),
        (0, 0, -errno.ENOSYS),
    ],
)
def test_refused_calls(domain: HostedDomain, op: int, a0: int, status: int) -> None:
    assert call(domain, op, a0)[0] == status


def test_console_text_can_not_play_tricks_on_a_terminal(domain: HostedDomain) -> None:
    lines: list[str] = []
    domain.on_console = lines.append
    domain.answer(hc.CALL.pack(hc.CONSOLE_WRITE, 0, 0, 0, 0) + b"\x1b[2Jhi\r\nthere\xff\n")
    assert lines == ["?[2Jhi??there\N{REPLACEMENT CHARACTER}"]


def test_milestones_can_not_play_tricks_either(domain: HostedDomain) -> None:
    names: list[str] = []
    domain.on_milestone = lambda name, when_ns: names.append(name)
    domain.answer(hc.CALL.pack(hc.MILESTONE, 0, 0, 0, 0) + b"running \x1b[2J" + b"x" * 5000)
    assert names[0].startswith("running ?[2Jxxx")
    assert len(names[0]) == MILESTONE_MAX


def test_an_empty_packet_is_no_call(domain: HostedDomain) -> None:
    answer = domain.answer(b"")
    assert answer is not None
    assert hc.ANSWER.unpack(answer[0])[0] == -errno.EINVAL


@pytest.mark.parametrize(
    ("error", "status"), [(OSError(errno.EMFILE, "x"), -errno.EMFILE), (OSError("x"), -errno.EIO)]
)
def test_what_the_system_refuses_the_host_is_the_callers_answer(
    domain: HostedDomain, error: OSError, status: int
) -> None:
    def refuse(ring_ref: int, port: int) -> None:
        raise error

    domain.on_ninepfs_connect = refuse
    assert call(domain, hc.NINEPFS_CONNECT, 5, 6)[0] == status


def test_a_connect_that_the_device_refuses_is_the_callers_error(domain: HostedDomain) -> None:
    def refuse(ring_ref: int, port: int) -> None:
        raise HypercallError("ninepfs_connect", errno.EINVAL)

    domain.on_ninepfs_connect = refuse
    assert call(domain, hc.NINEPFS_CONNECT, 5, 6)[0] == -errno.EINVAL


@settings(deadline=None, max_examples=200)
@given(packet=st.binary(max_size=80))
def test_no_packet_makes_the_hypervisor_fail(packet: bytes) -> None:
    domain = _shared_domain()
    answer = domain.answer(packet)
    if answer is not None:
        assert len(answer[0]) == hc.ANSWER.size


_SHARED: list[HostedDomain] = []


def _shared_domain() -> HostedDomain:
    if not _SHARED:
        _SHARED.append(HostedDomain(1, RAM_MIN_BYTES))
    return _SHARED[0]


def test_another_domain_is_reached_by_what_it_shares_alone(domain: HostedDomain) -> None:
    other = domain.others.enter()
    memory = os.memfd_create("other", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 8192)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    other.share_page(1, memory, 4096)
    hears, rings = other.share_port(7)
    assert call(domain, hc.GNTTAB_MAP, other.domid, 1)[:2] == (0, 4096)
    assert call(domain, hc.GNTTAB_MAP, other.domid, 2)[0] == -errno.EINVAL
    assert call(domain, hc.EVTCHN_BIND_INTERDOMAIN, other.domid, 8)[0] == -errno.EINVAL
    status, port = call(domain, hc.EVTCHN_BIND_INTERDOMAIN, other.domid, 7)[:2]
    assert status == 0
    os.eventfd_write(domain.ports[port].to_remote, 1)
    assert os.eventfd_read(hears) == 1
    os.eventfd_write(rings, 1)
    assert os.eventfd_read(domain.ports[port].from_remote) == 1
    assert call(domain, hc.DOMAIN_STATE, other.domid)[:2] == (0, 0)


def test_changes_of_other_domains_ring_one_port_that_stays(domain: HostedDomain) -> None:
    other = domain.others.enter()
    port = call(domain, hc.EVTCHN_BIND_VIRQ, VIRQ_DOM_EXC)[1]
    assert call(domain, hc.EVTCHN_BIND_VIRQ, VIRQ_DOM_EXC)[1] == port
    bell = domain.ports[port].from_remote
    domain.others.shut_down(other)
    domain.others.shut_down(other)
    assert os.eventfd_read(bell) == 1
    assert call(domain, hc.DOMAIN_STATE, other.domid)[1] == 1
    os.eventfd_write(bell, (1 << 64) - 2)
    domain.others.leave(other)
    assert call(domain, hc.DOMAIN_STATE, other.domid)[0] == -errno.ESRCH
    assert call(domain, hc.EVTCHN_CLOSE, port)[0] == 0
    domain.others.leave(domain.others.enter())


def test_a_domain_id_comes_again_only_after_all_others(domain: HostedDomain) -> None:
    others = domain.others
    kept = others.enter()
    seen = []
    for _ in range(0x7FF0 - 3):
        other = others.enter()
        seen.append(other.domid)
        others.leave(other)
    assert len(set(seen)) == len(seen) == 0x7FF0 - 3
    assert {0, domain.domid, kept.domid}.isdisjoint(seen)
    assert others.enter().domid == seen[0]
