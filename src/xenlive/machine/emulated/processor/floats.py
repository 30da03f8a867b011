"""The registers of the x87 unit and of SSE, for a debugger: nobody else needs one by itself.

They go through Unicorn's public calls, one at a time; a saved state has them all anyway.

**Invariants.** Names are a debugger's: st0 to st7 (from the top of the stack), fctrl, fstat, ftag,
fiseg, fioff, foseg, fooff, fop, xmm0 to xmm15, mxcsr. Values are 16 bytes, the lowest first.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated.processor import capi

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 16
# More than Unicorn writes for any of them.
_ROOM = 64


class FloatRegisters:
    """Those of one engine `uc`: `commit` tells Unicorn the state before, `load` learns it after."""

    def __init__(
        self,
        library: Any,
        uc: ctypes.c_void_p,
        commit: Callable[[], None],
        load: Callable[[], None],
    ) -> None:
        self._lib = library
        self._uc = uc
        self._commit = commit
        self._load = load

    def read(self, name: str) -> bytes:
        """A register; KeyError or ValueError if there is none of that name."""
        self._commit()
        value = ctypes.create_string_buffer(_ROOM)
        capi.check(self._lib, self._lib.uc_reg_read(self._uc, _number(name), value), "read it")
        return value.raw[:SIZE]

    def write(self, name: str, value: bytes) -> None:
        """Sets a register from up to 16 bytes."""
        self._commit()
        buffer = ctypes.create_string_buffer(value, _ROOM)
        capi.check(self._lib, self._lib.uc_reg_write(self._uc, _number(name), buffer), "set it")
        self._load()


def _number(name: str) -> int:
    for prefix, first in (("st", capi.REG_ST), ("xmm", capi.REG_XMM)):
        if name.startswith(prefix):
            return first + int(name.removeprefix(prefix))
    return capi.REG_FLOAT[name]
