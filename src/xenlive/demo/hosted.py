"""The real world of the demo: a hosted stub domain, driven by the commands that people use.

    xenlive up --rundir DIR --config FILE                    the host process
    xenlive update --rundir DIR IMAGE --config FILE --json   one live update

`DIR/control` says what the hypervisor knows; what lies in the domain's memory is read from its
memfd behind `DIR/ram`.

**Invariants.** The host process ends with this one, however this one ends; `stop` waits for it.
A domain or a host that hangs, or was stopped, is killed: neither survives `stop`.
A snapshot is taken between two equal answers of the hypervisor with the ring at rest, or not at
all: then it is a DemoError.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xenlive.abi.kexec_module import PG2REC_OFFSET
from xenlive.abi.xen9pfs import INTERFACE, MAX_RING_ORDER
from xenlive.builder.images import build_folder, build_zipapp
from xenlive.demo.loadproc import DemoError
from xenlive.demo.run import failed_report
from xenlive.demo.world import (
    Backend,
    Grant,
    HandoverSnapshot,
    Image,
    ModuleRecord,
    RingIndices,
    UpdateReport,
)
from xenlive.dump import describe_image
from xenlive.errors import XenliveError
from xenlive.machine.hosted.host import host_status
from xenlive.memory.address import PAGE_SIZE

CONFIG = "CONFIG_9PFRONT=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_MODULE_PAGES={pages}\n"
PAGES_A, PAGES_B, PAGES_C = 18, 24, 18

BOOT_LIMIT_S = 20.0
UPDATE_LIMIT_S = 15.0  # a client that gets no answer for 10 s has failed anyway
REST_LIMIT_S = 5.0
STOP_LIMIT_S = 10.0  # the host gives its domain half of that
POLL_S = 0.01
LAST_WORDS = 3  # lines

RECORD_9PFS = "9PFS"
PR_SET_PDEATHSIG = 1


def make_images(folder: Path, version: str) -> Sequence[Image]:
    """Kernels B, a folder that is configured for more pages than A has, and C, a zipapp."""
    base = version.partition("+")[0]
    version_b, version_c = f"{base}+b", f"{base}+c"
    return (
        Image(build_folder(folder / "b", version_b), version_b, CONFIG.format(pages=PAGES_B)),
        Image(build_zipapp(folder / "c.pyz", version_c), version_c, CONFIG.format(pages=PAGES_C)),
    )


class HostedWorld:
    """A stub domain with its host process, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rundir = folder / "run"
        self._log = folder / "host.log"
        self._host: subprocess.Popen[bytes] | None = None
        self._domain_fd = -1  # its process, which stays the same over updates
        self._version = ""

    @property
    def socket_path(self) -> Path:
        """The domain's Xenstore socket."""
        return self._rundir / "socket"

    def start(self) -> str:
        """Boots kernel A with 18 module pages; DemoError with the host's words if it can't."""
        config = self._config("a", CONFIG.format(pages=PAGES_A))
        command = _xenlive("up", "--rundir", str(self._rundir), "--config", str(config))
        with self._log.open("wb") as log:
            self._host = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_prepare_host,
            )
        deadline_s = time.monotonic() + BOOT_LIMIT_S
        while True:
            try:
                domain = self._status()["domain"]
                self._version = str(domain["version"])
                self._hold(domain["pid"])
            except XenliveError:
                self._version = ""
            if self._version:
                return self._version
            if self._host.poll() is not None:
                raise DemoError(f"the host process ended: {self._last_words()}")
            if time.monotonic() > deadline_s:
                raise DemoError(f"kernel A does not serve after {BOOT_LIMIT_S:.0f} s")
            time.sleep(POLL_S)

    def update(self, image: Image) -> UpdateReport:
        """One cold live update with `xenlive update`."""
        config = self._config(image.path.name, image.config)
        command = _xenlive(
            *("update", str(image.path), "--rundir", str(self._rundir)),
            *("--config", str(config), "--json"),
        )
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=UPDATE_LIMIT_S
            )
            answer = json.loads(done.stdout or b"null")
        except subprocess.TimeoutExpired:
            return failed_report(self._version, f"no answer in {UPDATE_LIMIT_S:.0f} s")
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not answer.get("ok"):
            words = answer.get("reason", "") if isinstance(answer, dict) else ""
            said = done.stderr.decode("utf-8", "replace").strip()
            return failed_report(self._version, words or said or f"exit code {done.returncode}")
        self._version = str(answer["to"])
        started_ns = answer.get("started_ns")
        return UpdateReport(
            ok=True,
            from_version=str(answer["from"]),
            to_version=self._version,
            phases_ms={name: float(value) for name, value in answer["phases"].items()},
            started_s=started_ns / 1e9 if started_ns else None,
        )

    def snapshot(self) -> HandoverSnapshot:
        """What is handed over, read while nothing moves."""
        deadline_s = time.monotonic() + REST_LIMIT_S
        while True:
            before = self._status()
            try:
                found = self._look(before)
            except (LookupError, TypeError) as error:
                raise DemoError(f"the host's status can't be understood: {error!r}") from None
            after = self._status()
            if before["ninepfs"] == after["ninepfs"] and _at_rest(found.indices):
                return found
            if time.monotonic() > deadline_s:
                raise DemoError(f"the 9pfs ring did not come to rest in {REST_LIMIT_S:.0f} s")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Ends the host process and with it the domain."""
        host = self._host
        if host is None:
            return
        self._signal_domain(signal.SIGCONT)  # one that was stopped would not see its end come
        host.send_signal(signal.SIGCONT)
        host.terminate()
        try:
            host.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            host.kill()
            host.wait()
        self._host = None
        self._signal_domain(signal.SIGKILL)  # as a rule it is gone
        if self._domain_fd >= 0:
            os.close(self._domain_fd)
            self._domain_fd = -1

    def _signal_domain(self, number: signal.Signals) -> None:
        if self._domain_fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._domain_fd, number)

    def _hold(self, pid: int | None) -> None:
        """Keeps hold of the domain's process, so that no other of its number is ever meant."""
        if pid is not None and self._domain_fd < 0:
            with contextlib.suppress(ProcessLookupError):
                self._domain_fd = os.pidfd_open(pid)

    def _status(self) -> dict[str, Any]:
        return host_status(str(self._rundir))

    def _config(self, name: str, text: str) -> Path:
        path = self._folder / f"{name}.cfg"
        path.write_text(text)
        return path

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-LAST_WORDS:]) or "without a word"

    def _look(self, status: dict[str, Any]) -> HandoverSnapshot:
        ram = self._rundir / "ram"
        described = describe_image(str(ram))
        if described["address"] is None:
            raise DemoError("there is no kexec module in the domain's memory")
        records = [record for record in described["records"] if record["type_name"] == RECORD_9PFS]
        if len(records) != 1 or status["ninepfs"] is None:
            raise DemoError(f"{len(records)} 9pfs devices in the module, not one")
        device = records[0]["decoded"]
        grants = {g["ref"]: Grant(g["frame"], g["domid"], g["flags"]) for g in status["grants"]}
        if device["ring_ref"] not in grants:
            raise DemoError(f"the interface page's grant {device['ring_ref']} is not active")
        interface = _page(ram, grants[device["ring_ref"]].frame)
        admin = _page(ram, described["address"] // PAGE_SIZE + described["n_pages"])
        fields = INTERFACE.decode(interface)
        refs_end = INTERFACE.size + 4 * (1 << min(fields["ring_order"], MAX_RING_ORDER))
        refs = memoryview(interface)[INTERFACE.size : refs_end].cast("I")
        info = os.stat(ram)
        return HandoverSnapshot(
            version=str(status["domain"]["version"]),
            domain_pid=int(status["domain"]["pid"]),
            ram_identity=f"{info.st_dev}:{info.st_ino}",
            module_address=described["address"],
            module_pages=described["n_pages"] + 1,
            owners=admin[PG2REC_OFFSET : PG2REC_OFFSET + described["n_pages"]].hex(),
            records=tuple(_record(record) for record in described["records"]),
            problems=tuple(problem["message"] for problem in described["problems"]),
            ring_ref=device["ring_ref"],
            event_channel=device["evtchn"],
            ring_order=fields["ring_order"],
            ring_refs=tuple(refs),
            grants=grants,
            indices=RingIndices(
                fields["in_cons"], fields["in_prod"], fields["out_cons"], fields["out_prod"]
            ),
            saved_prod_pvt_out=device["prod_pvt_out"],
            saved_cons_pvt_in=device["cons_pvt_in"],
            backend=_backend(status),
            description=described,
        )


def _xenlive(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "xenlive", *words]


def _prepare_host() -> None:
    """In the new process: have the system end it should the demo die without a word."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _page(ram: Path, frame: int) -> bytes:
    with ram.open("rb") as memory:
        return os.pread(memory.fileno(), PAGE_SIZE, frame * PAGE_SIZE)


def _at_rest(indices: RingIndices) -> bool:
    return indices.in_cons == indices.in_prod and indices.out_cons == indices.out_prod


def _record(record: dict[str, Any]) -> ModuleRecord:
    return ModuleRecord(
        index=record["index"],
        type=record["type"],
        offset=record["offset"],
        size=record["size"],
        data=record["data"],
        pages=tuple(record["pages"]),
    )


def _backend(status: dict[str, Any]) -> Backend:
    device = status["ninepfs"]
    return Backend(
        connected=bool(device["connected"]),
        connects=int(status["ninepfs_connects"]),
        disconnects=int(status["ninepfs_losses"]),
        received_bytes=int(device["bytes_read"]),
        sent_bytes=int(device["bytes_written"]),
    )
