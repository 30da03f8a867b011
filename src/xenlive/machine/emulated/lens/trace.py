"""A trace: what a guest asks, what it is answered, and what that did to pages, grants and events.

      0.003520 ms  memory_op.add_to_physmap domid=self space=shared_info … = 0  from init+0x1c
                     page 0x105: ram -> xen
      0.004030 ms  event_channel_op.send port=2 = 0  from notify+0x8
                     event for port 2

What a call caused stands below it; what came by itself (a timer, a back end) stands alone. As JSON
each line is an object: `time_ns guest kind` and, by kind,

| kind | keys |
|---|---|
| `hypercall` | name arguments result errno why from, inner (in a multicall) |
| `page` | gfn before after frame |
| `grant` | ref gfn domid use (map, copy or unmap) readonly |
| `event` | port |
| `exception`, `interrupt` | vector name error rip from |
| `handover` | n from_kernel entry start_info |

**Invariants.** Nothing is changed by being watched, and nothing that a guest gives raises. Without
a trace no line of this file runs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated.hypervisor.hypercalls.table import operation_name
from xenlive.machine.emulated.lens.arguments import arguments
from xenlive.machine.emulated.lens.faults import error_in
from xenlive.machine.emulated.lens.report import name_at, read_virtual
from xenlive.machine.emulated.processor.faults import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.grants import Active
    from xenlive.machine.emulated.processor.delivery import Event
    from xenlive.machine.emulated.processor.handling import HypercallRecord
    from xenlive.machine.emulated.space import Mapping
    from xenlive.machine.emulated.world import Guest

_HOLE = "hole"
_INDENT = 21


class Trace:
    """Watches one guest from now on and gives each line to `write`, without a newline."""

    def __init__(
        self,
        guest: Guest,
        write: Callable[[str], object],
        *,
        as_json: bool = False,
        exceptions: bool = False,
        prefix: str = "",
    ) -> None:
        self._guest = guest
        self._write = write
        self._as_json = as_json
        self._prefix = prefix
        self._in_call = False
        self._effects: list[dict[str, Any]] = []
        self._refusal = guest.domain.last_refusal
        self._attach(exceptions)

    def _attach(self, exceptions: bool) -> None:
        domain, vcpu = self._guest.domain, self._guest.vcpu
        refuse, heard, delivered = domain.refuse, vcpu.on_hypercall, vcpu.on_event

        def before(number: int, args: tuple[int, ...]) -> int:
            self._in_call = True
            return refuse(number, args) if refuse is not None else 0

        def after(record: HypercallRecord) -> None:
            if heard is not None:
                heard(record)
            self._on_hypercall(record)

        def event(one: Event) -> None:
            if delivered is not None:
                delivered(one)
            self._on_event(one)

        domain.refuse, vcpu.on_hypercall = before, after
        if exceptions:
            vcpu.on_event = event
        domain.space.watch = self._on_page
        domain.grants.watch = self._on_grant
        domain.events.watch = self._on_port

    # ---- what happens --------------------------------------------------------------------

    def _on_hypercall(self, record: HypercallRecord) -> None:
        guest = self._guest
        self._in_call = False
        said: dict[str, Any] = {
            "name": operation_name(record.number, record.args),
            "arguments": arguments(
                record.number,
                record.args,
                guest.vcpu.engine.code_bits == 64,
                lambda address, size: read_virtual(guest, address, size),
            ),
            "result": record.result,
        }
        error = error_in(record.result)
        if error:
            said["errno"] = error
        refusal = guest.domain.last_refusal
        if refusal is not None and refusal is not self._refusal:
            said["why"] = refusal.why
        self._refusal = refusal
        said["from"] = self._where(record.caller, record.when_ns)
        self._emit("hypercall", said, record.when_ns)
        effects, self._effects = self._effects, []
        for effect in effects:
            self._emit(effect.pop("kind"), effect, record.when_ns, is_effect=True)

    def _on_event(self, event: Event) -> None:
        rip = self._guest.vcpu.engine.reg("rip")
        kind = "interrupt" if event.is_external else "exception"
        said: dict[str, Any] = {"vector": event.vector}
        if not event.is_external:
            said["name"] = NAMES.get(event.vector, f"int {event.vector:#x}")
        if event.error is not None:
            said["error"] = event.error
        if NAMES.get(event.vector) == "#PF" and not event.is_external:
            said["address"] = f"{self._guest.vcpu.engine.reg('cr2'):#x}"
        said["from"] = self._where(rip, self._guest.vcpu.clock.now_ns)
        self._emit(kind, said)

    def _on_page(self, gfn: int, before: Mapping | None, after: Mapping | None) -> None:
        said = {"gfn": f"{gfn:#x}", "before": _standing(before), "after": _standing(after)}
        if after is not None and after.is_foreign:
            said["frame"] = self._frame(after.frame.home.domid, after)
        self._effect("page", said)

    def _frame(self, domid: int, mapping: Mapping) -> str:
        gfn = mapping.frame.home.gfn_of(mapping.frame)
        return f"{gfn:#x} of domain {domid}" if gfn is not None else f"domain {domid}'s"

    def _on_grant(self, step: int, ref: int, active: Active, readonly: bool) -> None:
        gfn = active.frame.home.gfn_of(active.frame)
        use = ("in use" if step > 0 else "let go") + (", read-only" if readonly else "")
        self._effect(
            "grant",
            {
                "ref": ref,
                "gfn": f"{gfn:#x}" if gfn is not None else None,
                "domid": active.domid,
                "use": use,
            },
        )

    def _on_port(self, port: int) -> None:
        self._effect("event", {"port": port})

    def handover(self, said: dict[str, Any]) -> None:
        """The next kernel is at its entry."""
        self._emit("handover", said)

    # ---- lines ---------------------------------------------------------------------------

    def _effect(self, kind: str, said: dict[str, Any]) -> None:
        if self._in_call:
            self._effects.append({"kind": kind, **said})
        else:
            self._emit(kind, said)

    def _where(self, rip: int, when_ns: int) -> str:
        return name_at(self._guest, rip, when_ns) or f"{rip:#x}"

    def _emit(
        self, kind: str, said: dict[str, Any], when_ns: int = -1, is_effect: bool = False
    ) -> None:
        when_ns = self._guest.vcpu.clock.now_ns if when_ns < 0 else when_ns
        if self._as_json:
            head = {"time_ns": when_ns, "guest": self._guest.name, "kind": kind}
            self._write(json.dumps(head | said))
            return
        when = " " * _INDENT if is_effect else f"{when_ns / 1e6:>16.6f} ms  "
        self._write(f"{self._prefix}{when}{_TEXT[kind](said)}")


def _standing(mapping: Mapping | None) -> str:
    return _HOLE if mapping is None else mapping.kind


def _hypercall_text(said: dict[str, Any]) -> str:
    result = "does not return" if said["result"] is None else f"= {said['result']}"
    if "errno" in said:
        result += f" {said['errno']}"
    why = f" ({said['why']})" if said.get("why") else ""
    given = f" {said['arguments']}" if said["arguments"] else ""
    return f"{said['name']}{given} {result}{why}  from {said['from']}"


def _exception_text(said: dict[str, Any]) -> str:
    error = f" error {said['error']:#x}" if "error" in said else ""
    address = f" at {said['address']}" if "address" in said else ""
    return f"exception {said['name']}{error}{address}  in {said['from']}"


def _page_text(said: dict[str, Any]) -> str:
    frame = f", frame {said['frame']}" if "frame" in said else ""
    return f"page {said['gfn']}: {said['before']} -> {said['after']}{frame}"


def _grant_text(said: dict[str, Any]) -> str:
    page = f"page {said['gfn']}" if said["gfn"] else "a page that stands nowhere"
    return f"grant {said['ref']} ({page}): {said['use']} by domain {said['domid']}"


def _handover_text(said: dict[str, Any]) -> str:
    return (
        f"---- kernel {said['n']} at its entry {said['entry']} ({said['name']}), "
        f"start info {said['start_info']} ----"
    )


_TEXT: dict[str, Callable[[dict[str, Any]], str]] = {
    "hypercall": _hypercall_text,
    "exception": _exception_text,
    "interrupt": lambda said: f"interrupt {said['vector']:#x}  in {said['from']}",
    "page": _page_text,
    "grant": _grant_text,
    "event": lambda said: f"event for port {said['port']}",
    "handover": _handover_text,
}
