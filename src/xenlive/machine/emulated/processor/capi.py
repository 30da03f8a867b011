"""Unicorn's C interface: its numbers, its structures, and the functions it calls back.

From `unicorn/unicorn.h` and `unicorn/x86.h` of release 2.1.4. `engine.py` loads the library and
says why it is used this way; nothing else needs this file.
"""

from __future__ import annotations

import ctypes
from typing import Any

from xenlive.machine.emulated.processor.exits import EmulatorError

ARCH_X86, MODE_64 = 4, 8
PROT_ALL, PROT_READ, PROT_READ_WRITE, PROT_EXEC = 7, 1, 3, 4
HOOK_INTR, HOOK_INSN, HOOK_CODE, HOOK_BLOCK, HOOK_MEM_UNMAPPED = 1, 2, 4, 8, 7 << 4
HOOK_MEM_READ, HOOK_MEM_WRITE = 1 << 10, 1 << 11
HOOK_EDGE = 1 << 15
ERR_FETCH_UNMAPPED, ERR_FETCH_PROT = 8, 14
REG_CR0, REG_MSR, REG_RAX, REG_RCX, REG_RDX = 50, 248, 35, 38, 40
#: The first of eight or sixteen; of 10 bytes, and of 16.
REG_ST, REG_XMM = 114, 122
#: Registers of the x87 unit and SSE with at most 8 bytes.
_FLOAT_NAMES = ("fstat", "fctrl", "ftag", "mxcsr", "fioff", "fiseg", "fooff", "foseg", "fop")
REG_FLOAT = dict(zip(_FLOAT_NAMES, (31, 246, 247, 249, 254, 255, 256, 257, 258), strict=True))
#: Instructions that have hooks of their own.
INSN = {"in": 218, "out": 500, "syscall": 699, "sysenter": 700, "rdtsc": 608, "rdtscp": 609}

# uc_ctl: the number, how many arguments (bit 26 on), and that it writes (bit 30).
CTL_USE_EXITS, CTL_CPU_MODEL = 4 | 1 << 26 | 1 << 30, 7 | 1 << 26 | 1 << 30
CTL_FORGET = 9 | 2 << 26 | 1 << 30
CTL_TRANSLATIONS_SIZE = 13 | 1 << 26 | 1 << 30
CTL_FLUSH_TB, CTL_FLUSH_TLB = 10 | 1 << 30, 11 | 1 << 30
CPU_OPTERON_G5 = 34

#: struct uc_context: what stands before the processor's state.
CONTEXT_HEADER_SIZE = 40

int32, uint32, uint64, size_t = ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t
pointer = ctypes.c_void_p


class Region(ctypes.Structure):
    """uc_mem_region: what is mapped; `end` is the last byte's address."""

    _fields_ = (("begin", uint64), ("end", uint64), ("rights", uint32))


class Msr(ctypes.Structure):
    """uc_x86_msr: a model-specific register, as uc_reg_write takes it."""

    _fields_ = (("number", uint32), ("value", uint64))


# The last argument of each is the pointer that was given with it.
OnInterrupt = ctypes.CFUNCTYPE(None, pointer, uint32, pointer)
OnTsc = ctypes.CFUNCTYPE(uint32, pointer, pointer)
OnSyscall = ctypes.CFUNCTYPE(None, pointer, pointer)
OnIn = ctypes.CFUNCTYPE(uint32, pointer, uint32, int32, pointer)
OnOut = ctypes.CFUNCTYPE(None, pointer, uint32, int32, uint32, pointer)
OnUnmapped = ctypes.CFUNCTYPE(ctypes.c_bool, pointer, int32, uint64, int32, ctypes.c_int64, pointer)
OnAccess = ctypes.CFUNCTYPE(None, pointer, int32, uint64, int32, ctypes.c_int64, pointer)
OnBlock = ctypes.CFUNCTYPE(None, pointer, uint64, uint32, pointer)
OnEdge = ctypes.CFUNCTYPE(None, pointer, pointer, pointer, pointer)
OnLoad = ctypes.CFUNCTYPE(uint64, pointer, uint64, ctypes.c_uint, pointer)
OnStore = ctypes.CFUNCTYPE(None, pointer, uint64, ctypes.c_uint, uint64, pointer)

_FUNCTIONS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("uc_open", (int32, int32, pointer)),
    ("uc_close", (pointer,)),
    ("uc_emu_start", (pointer, uint64, uint64, uint64, size_t)),
    ("uc_emu_stop", (pointer,)),
    ("uc_vmem_translate", (pointer, uint64, int32, pointer)),
    ("uc_reg_write", (pointer, int32, pointer)),
    ("uc_reg_read", (pointer, int32, pointer)),
    ("uc_mem_map_ptr", (pointer, uint64, size_t, uint32, pointer)),
    ("uc_mmio_map", (pointer, uint64, size_t, OnLoad, pointer, OnStore, pointer)),
    ("uc_hook_del", (pointer, size_t)),
    ("uc_mem_unmap", (pointer, uint64, size_t)),
    ("uc_mem_regions", (pointer, pointer, pointer)),
    ("uc_context_alloc", (pointer, pointer)),
    ("uc_context_save", (pointer, pointer)),
    ("uc_context_restore", (pointer, pointer)),
    ("uc_context_free", (pointer,)),
    ("uc_context_size", (pointer,)),
    ("uc_strerror", (int32,)),
    ("uc_free", (pointer,)),
    # Variadic: these are the arguments that are always there.
    ("uc_ctl", (pointer, int32)),
    ("uc_hook_add", (pointer, pointer, int32, pointer, pointer)),
)


def declare(library: ctypes.CDLL) -> None:
    """Tells ctypes the types of all functions that the engine calls."""
    for name, types in _FUNCTIONS:
        getattr(library, name).argtypes = types
    library.uc_context_size.restype = size_t
    library.uc_strerror.restype = ctypes.c_char_p


def address_of_function(function: Any) -> int:
    """Where a C function is: one of the library's, or one made of a function of ours."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def check(library: ctypes.CDLL, error: int, what: str) -> None:
    """EmulatorError if a call that was to do `what` failed."""
    if error:
        text = library.uc_strerror(error).decode()
        raise EmulatorError(f"the emulator can't {what}: {text}")
