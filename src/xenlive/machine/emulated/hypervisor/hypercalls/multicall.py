"""Hypercall 13, multicall: many hypercalls in one.

Specification: Xen 4.17 `do_multicall` of `xen/common/multicall.c`, `hvm_do_multicall_call` of
`xen/arch/x86/hvm/hypercall.c`.

**Invariants.** A call that fails says so in its own result and does not stop the others. There is
no multicall within a multicall.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenlive.abi.hypercalls.xen import MULTICALL_ENTRY, MULTICALL_ENTRY_32, XEN_EINVAL
from xenlive.errors import HypercallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenlive.machine.emulated.hypervisor.hypercalls.caller import Caller


def multicall(
    caller: Caller,
    call_list: int,
    n_calls: int,
    one: Callable[[Caller, int, tuple[int, ...]], int],
) -> int:
    """Makes the calls of a list in order, each by `one`."""
    if caller.in_multicall:
        raise HypercallError("multicall", XEN_EINVAL, "a multicall within a multicall")
    caller.in_multicall = True
    layout = caller.form(MULTICALL_ENTRY, MULTICALL_ENTRY_32)
    sign = 1 << 8 * caller.word_bytes - 1
    for index in range(n_calls & 0xFFFFFFFF):
        caller.work()
        place = call_list + index * layout.size
        entry = caller.read_struct(layout, place)
        args = tuple(entry[f"arg{i}"] for i in range(5))
        result = one(caller, entry["op"], args) & 2 * sign - 1
        caller.write_field(layout, place, "result", (result ^ sign) - sign)
        if caller.domain.is_shut_down:
            break
    caller.in_multicall = False
    return 0
