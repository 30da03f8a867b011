"""The processor: Unicorn, made to stop wherever a hypervisor has a say.

This file alone runs Unicorn; what is known of its insides is here and in `cpustate.py`. Unicorn
is QEMU's x86 translator as a library. It runs instructions well, but it was made for fragments of
programs: it delivers no exception, has no hook for MSRs or control registers, and forgets to say
why it stopped. What closes the gap is in the same translator: QEMU can emulate AMD's SVM, and its
checks for intercepted instructions are all still there.

    HF_GUEST in hflags, intercept bits in the processor's state
        |
    guest executes hlt, cpuid, rdmsr, wrmsr, mov to CR or DR, int n, or faults
        |
    QEMU: cpu_vmexit(): RIP at the instruction, older exceptions forgotten, number 0x100 + reason
        |
    Unicorn: that number goes to the interrupt hook, which stops the run     --->  an `Exit`

So no code is scanned, no byte patched, and each exit is exact, wherever and however the code runs.
A guest has no SVM of its own to change it with. What is leaned on, and why:

* **The C interface**, through ctypes. The Python classes of the package hide the hook of RDTSC, and
  cost more for a register than the whole saved context costs.
* **The saved context**, a copy of QEMU's CPUX86State (`cpustate.py`). There is no other way to set
  a privilege level, a segment's hidden part or an intercept. Where things are in it is checked
  against public calls before the first guest runs.
* **A page for the VMCB** above the 40 bits of physical address that QEMU's page walks allow: QEMU
  reads the MSR permission map there, and leaves a page fault's address there instead of in CR2.
* **A hook for each block** that counts (`counter.py`): nothing else bounds `jmp .`, for Unicorn's
  own `count` hooks every instruction and its `timeout` is another thread's, different each time.
* **A processor model** without RDRAND, whose numbers come from the host.
* **`uc_ctl` with exits enabled and none given**: otherwise the address to stop at is looked up in
  the guest's page tables at the end of each run, which spoils CR2.

**Invariants.** The same state and the same memory give the same run: nothing here depends on time,
threads or addresses of the host. Nothing a guest does raises in `run`; an error of Unicorn's is an
`Exit` too. What a hook raises (Ctrl-C is one) leaves through `run`, after the engine has stopped.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from xenlive.machine.emulated.processor import capi, exits
from xenlive.machine.emulated.processor.breaks import Breaks
from xenlive.machine.emulated.processor.counter import BlockCounter
from xenlive.machine.emulated.processor.cpustate import (
    ERROR_CODE,
    FLOAT_SIZE,
    FLOAT_SPACE,
    FLOATS,
    HOST_POINTERS,
    OLD_EXCEPTION,
    STATE_SIZE,
    CpuState,
)
from xenlive.machine.emulated.processor.effort import CALL_BLOCKS, Effort
from xenlive.machine.emulated.processor.exits import EmulatorError, EngineHooks, Exit
from xenlive.machine.emulated.processor.floats import FloatRegisters
from xenlive.machine.emulated.processor.library import VERSION, load_library
from xenlive.machine.emulated.processor.mappings import Mappings
from xenlive.machine.emulated.processor.paging import PAGE_SIZE
from xenlive.machine.emulated.processor.vmcb import VMCB_ADDRESS, Vmcb
from xenlive.machine.emulated.processor.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable

# Registers that the check at the start looks for, and their numbers.
_MSR_AT = {
    0x175: "sysenter_esp",
    0x176: "sysenter_eip",
    0xC0000081: "star",
    0xC0000082: "lstar",
    0xC0000083: "cstar",
    0xC0000084: "fmask",
    0xC0000102: "kernel_gs_base",
    0xC0000103: "tsc_aux",
    0x277: "pat",
}

# SVM exit codes (AMD64 APM volume 2, appendix C); Unicorn shows them with 0x100 added.
_VMEXIT, _EXIT_WRITE_CR, _EXIT_WRITE_DR, _EXIT_EXCEPTION, _EXIT_MSR = 0x100, 0x10, 0x30, 0x40, 0x7C
_EXIT_KIND = {0x72: exits.CPUID, 0x75: exits.SOFT_INTERRUPT, 0x78: exits.HALT}
_EXITS_UNDEFINED = (0x88, 0x8A, 0x8B)  # icebp, monitor, mwait: CPUID has none of them
_EXIT_READ_CR8 = 0x08
_INTERCEPTS = sum(1 << code - 0x60 for code in (*_EXIT_KIND, *_EXITS_UNDEFINED, _EXIT_MSR))
_CR_READS, _CR_WRITES = 1 << 8, 1 << 0 | 1 << 4 | 1 << 8

# What has been translated takes so much of the host's memory, then all of it is forgotten. Left to
# itself Unicorn takes a GiB, which a guest fills with code that it runs once.
_TRANSLATIONS_SIZE = 128 << 20
#: Beyond this it is cheaper to translate everything again.
_FORGET_MAX = 1 << 16


class Engine(CpuState):
    """One processor. `hooks` is asked while it runs; memory comes with `map`."""

    def __init__(self, hooks: EngineHooks) -> None:
        self._hooks = hooks
        self._lib = load_library()
        self._uc = ctypes.c_void_p()
        self._must(self._lib.uc_open(capi.ARCH_X86, capi.MODE_64, ctypes.byref(self._uc)), "start")
        self._control(capi.CTL_CPU_MODEL, capi.CPU_OPTERON_G5)
        self._control(capi.CTL_TRANSLATIONS_SIZE, _TRANSLATIONS_SIZE)
        self._control(capi.CTL_USE_EXITS, 1)
        #: The registers of x87 and SSE.
        self.floats = FloatRegisters(self._lib, self._uc, self._commit, self._load)
        self._callbacks: list[object] = []  # ctypes forgets them, Unicorn doesn't
        self._raised: BaseException | None = None
        self._exit: Exit | None = None
        #: What the last run cost beside its blocks.
        self.effort = Effort(lambda: self.limit(0))
        self._mappings = Mappings(self._lib, self._uc, hooks, self._callback, self.effort)
        #: Breakpoints by linear address: a run ends with BREAKPOINT before such an instruction.
        self.breaks = Breaks(self._hook_late, self._unhook, self._callback, self._on_break)
        self._stop_at = capi.address_of_function(self._lib.uc_emu_stop)
        #: Watchpoints by physical address: a run ends with STOPPED after such an access.
        self.watches = Watches(self._hook_late, self._unhook, self._callback, self._stop_at)
        super().__init__(self._make_context())
        self._load()
        self._check_offsets()
        self._vmcb = Vmcb(self._mappings)
        self._add_hooks()
        self._budget = self._cut = 0
        self._was_step = False
        #: Blocks that the last run executed.
        self.executed = 0
        self._pristine = bytes(self._raw)
        self.reset()
        self._commit()
        self._flat_context = self._new_context()
        self._lib.uc_context_save(self._uc, self._flat_context)

    # ---- setting up ----------------------------------------------------------------------

    def _must(self, error: int, what: str) -> None:
        capi.check(self._lib, error, what)

    def _control(self, what: int, *values: int) -> None:
        error = self._lib.uc_ctl(self._uc, what, *(capi.int32(value) for value in values))
        self._must(error, "be set up")

    def _make_context(self) -> ctypes.Array[ctypes.c_ubyte]:
        size = self._lib.uc_context_size(self._uc)
        if size != capi.CONTEXT_HEADER_SIZE + STATE_SIZE:
            raise EmulatorError(f"a saved context has {size} bytes: not Unicorn {VERSION}")
        self._context = self._new_context()
        at = (self._context.value or 0) + capi.CONTEXT_HEADER_SIZE
        return (ctypes.c_ubyte * STATE_SIZE).from_address(at)

    def _new_context(self) -> ctypes.c_void_p:
        context = ctypes.c_void_p()
        self._must(self._lib.uc_context_alloc(self._uc, ctypes.byref(context)), "save a state")
        return context

    def _check_offsets(self) -> None:
        # What can be set through a public call is set, and must turn up where we look for it.
        for number, name in _MSR_AT.items():
            msr = capi.Msr(number, 0x0000_1234_5600_0000 | number & 0xFFF)
            self._lib.uc_reg_write(self._uc, capi.REG_MSR, ctypes.byref(msr))
            self._load()
            if self.reg(name) != msr.value:
                raise EmulatorError(f"{name} is not where Unicorn {VERSION} has it")
            msr.value = 0
            self._lib.uc_reg_write(self._uc, capi.REG_MSR, ctypes.byref(msr))
        self._load()
        found = (self.reg("dr6"), self.reg("dr7"), self._words[OLD_EXCEPTION // 4])
        if found != (0xFFFF0FF0, 0x400, 0xFFFFFFFF):
            raise EmulatorError(f"debug registers are not where Unicorn {VERSION} has them")

    def _add_hooks(self) -> None:
        self._hook(capi.HOOK_INTR, capi.OnInterrupt, self._on_interrupt)
        self._mappings.watch.begin(self._callback(capi.OnUnmapped, self._on_unmapped))
        self._hook(capi.HOOK_INSN, capi.OnIn, self._on_in, "in")
        self._hook(capi.HOOK_INSN, capi.OnOut, self._on_out, "out")
        self._hook(capi.HOOK_INSN, capi.OnTsc, lambda *_: self._on_tsc(), "rdtsc")
        self._hook(capi.HOOK_INSN, capi.OnTsc, lambda *_: self._on_tsc(is_rdtscp=True), "rdtscp")
        self._hook(
            capi.HOOK_INSN, capi.OnSyscall, lambda *_: self._on_syscall(exits.SYSCALL), "syscall"
        )
        self._hook(
            capi.HOOK_INSN, capi.OnSyscall, lambda *_: self._on_syscall(exits.SYSENTER), "sysenter"
        )
        self._add_counter()

    def _callback(self, kind: Any, function: Callable[..., Any]) -> Any:
        """A C function that calls `function`; what that raises is kept and ends the run."""

        def guarded(*args: Any) -> Any:
            try:
                return function(*args)
            except BaseException as problem:
                self._raised = self._raised or problem
                self._lib.uc_emu_stop(self._uc)
                return 0

        callback = kind(guarded)
        self._callbacks.append(callback)
        return callback

    def _hook(self, what: int, kind: Any, function: Callable[..., Any], insn: str = "") -> None:
        callback = ctypes.cast(self._callback(kind, function), ctypes.c_void_p)
        self._hook_native(what, callback.value or 0, 0, insn)

    def _hook_native(
        self,
        what: int,
        function: int,
        argument: int,
        insn: str = "",
        between: tuple[int, int] = (1, 0),
    ) -> int:
        handle = ctypes.c_size_t()
        bounds = [capi.uint64(bound) for bound in between]
        number = [capi.int32(capi.INSN[insn])] if insn else []
        error = self._lib.uc_hook_add(
            self._uc, ctypes.byref(handle), what, function, argument, *bounds, *number
        )
        self._must(error, "add a hook")
        return handle.value

    def _add_counter(self) -> None:
        self._counter = BlockCounter(self._stop_at)
        if self._counter.native is None:
            self._hook(capi.HOOK_BLOCK, capi.OnBlock, self._on_block)
        else:
            self._hook_native(capi.HOOK_BLOCK, *self._counter.native)

    # ---- hooks ---------------------------------------------------------------------------

    def _end_run(self, why: Exit) -> None:
        if self._exit is None:
            self._exit = why
        self._lib.uc_emu_stop(self._uc)

    def _on_block(self, *_: int) -> None:
        self._counter.left -= 1
        if self._counter.left < 0:
            self._lib.uc_emu_stop(self._uc)

    def _on_interrupt(self, _: int, number: int, __: int) -> None:
        code = number - _VMEXIT
        if _EXIT_EXCEPTION <= code < _EXIT_EXCEPTION + 32:
            self._end_run(Exit(exits.EXCEPTION, code - _EXIT_EXCEPTION))
        elif code in _EXIT_KIND:
            self._end_run(Exit(_EXIT_KIND[code]))
        elif code == _EXIT_MSR:
            self._end_run(Exit(exits.READ_MSR))
        elif code == _EXIT_READ_CR8:
            self._end_run(Exit(exits.READ_CR, 8))
        elif _EXIT_WRITE_CR <= code < _EXIT_WRITE_CR + 16:
            self._end_run(Exit(exits.WRITE_CR, code - _EXIT_WRITE_CR))
        elif _EXIT_WRITE_DR <= code < _EXIT_WRITE_DR + 16:
            self._end_run(Exit(exits.WRITE_DR, code - _EXIT_WRITE_DR))
        elif code in _EXITS_UNDEFINED:
            self._end_run(Exit(exits.EXCEPTION, 6))
        else:
            self._end_run(Exit(exits.ERROR, text=f"exception {number:#x} that nobody asked for"))

    def _on_break(self, address: int) -> None:
        self._end_run(Exit(exits.BREAKPOINT, address=address))

    def _hook_late(self, what: int, function: int, argument: int, between: tuple[int, int]) -> int:
        self._mappings.is_stale = True
        return self._hook_native(what, function, argument, between=between)

    def _unhook(self, handle: int) -> None:
        self._mappings.is_stale = True
        self._must(self._lib.uc_hook_del(self._uc, handle), "take a hook away")

    def _on_syscall(self, kind: str) -> None:
        # QEMU goes on to the next instruction whatever we do: keep where this one was.
        self._lib.uc_context_save(self._uc, self._context)
        self._end_run(Exit(kind, address=self._quads[16]))

    def _on_in(self, _: int, port: int, size: int, __: int) -> int:
        self.effort.add(CALL_BLOCKS)
        return self._hooks.read_port(port, size)

    def _on_out(self, _: int, port: int, size: int, value: int, __: int) -> None:
        self.effort.add(CALL_BLOCKS)
        self._hooks.write_port(port, size, value)

    def _on_tsc(self, is_rdtscp: bool = False) -> int:
        self.effort.add(CALL_BLOCKS)
        value = self._hooks.read_tsc()
        self._poke(capi.REG_RAX, value & 0xFFFFFFFF)
        self._poke(capi.REG_RDX, value >> 32 & 0xFFFFFFFF)
        if is_rdtscp:  # as the last run left it: writing it is an exit
            self._poke(capi.REG_RCX, self.reg("tsc_aux") & 0xFFFFFFFF)
        return 1

    def _poke(self, register: int, value: int) -> None:
        self._lib.uc_reg_write(self._uc, register, ctypes.byref(capi.uint64(value)))

    def _on_unmapped(self, _: int, __: int, address: int, ___: int, ____: int, _____: int) -> bool:
        # A page at a time becomes a hole that answers; the access is then tried again.
        self._mappings.make_hole(address)
        if self._mappings.has_too_many_holes:
            self.limit(0)
        return True

    # ---- memory --------------------------------------------------------------------------

    def map(self, address: int, size: int, buffer_address: int, writable: bool = True) -> None:
        """Physical memory at `address` is the `size` bytes at `buffer_address` of this process.

        Whole pages. The buffer must stay where it is until `unmap` or `close`. What can't be
        written is slow to read: each load asks here.
        """
        self._mappings.map(address, size, buffer_address, writable)

    def unmap(self, address: int, size: int) -> None:
        """There is nothing at `address` any more: loads and stores go to the hooks."""
        self._mappings.unmap(address, size)

    @property
    def holes(self) -> list[int]:
        """Addresses of the pages of nothing that were touched lately: what is forgotten, and when,
        ends a run, so that it is a part of the state.
        """
        return self._mappings.holes()

    @holes.setter
    def holes(self, pages: list[int]) -> None:
        self._mappings.restore_holes(pages)

    def wrote(self, address: int, size: int) -> None:
        """Memory was changed behind the engine's back: code translated from it is forgotten."""
        if self._mappings.is_stale:
            return
        if size > _FORGET_MAX or address + size > 1 << 32:
            self._mappings.is_stale = True
            return
        # Unicorn forgets by virtual address alone, so paging is off meanwhile.
        self._commit()
        self._lib.uc_context_restore(self._uc, self._flat_context)
        self._control(capi.CTL_FLUSH_TLB)
        self.forget_code(address, size)
        self._lib.uc_context_restore(self._uc, self._context)
        self._control(capi.CTL_FLUSH_TLB)

    def forget_code(self, address: int, size: int) -> None:
        """The same for virtual addresses, as far as the guest may execute there."""
        self._commit()
        while size > 0:
            part = min(size, PAGE_SIZE - address % PAGE_SIZE)
            bounds = capi.uint64(address), capi.uint64(address + part)
            self._lib.uc_ctl(self._uc, capi.CTL_FORGET, *bounds)
            address, size = address + part, size - part

    def _flush_translations(self) -> None:
        self._mappings.is_stale = True

    # ---- running -------------------------------------------------------------------------

    def run(
        self, budget: int, *, goes_on: bool = False, is_step: bool = False, passes: bool = False
    ) -> Exit:
        """Runs from RIP on, `budget` blocks at most, until there is a reason to stop.

        `goes_on` after BREAKPOINT or STOPPED: the block that RIP is in was begun and counted by the
        run before, and is not counted again. `passes` over a breakpoint at RIP itself. `is_step`:
        one instruction, breakpoint or not, then STOPPED (of `rep`, one round). The first step after
        a run, and the first run after a step, translate everything again.
        """
        if self._mappings.has_too_many_holes:
            self._mappings.forget_holes()
        self.breaks.tidy()
        if is_step and not self._was_step:  # Unicorn forgets what has no steps in it only later
            self._mappings.is_stale = True
        self._was_step = is_step
        self._commit()
        watch = self._mappings.watch
        if watch.can_begin(self.executed > 0) or self._mappings.is_stale:
            self._mappings.is_stale = False
            self._control(capi.CTL_FLUSH_TB)
            self._control(capi.CTL_FLUSH_TLB)
            watch.forget_code()
        watch.tidy()
        self._budget, self._counter.left = budget, budget + goes_on
        self._cut = 0
        self.effort.begin()
        self._exit = None
        self.breaks.passed, self.breaks.is_silent = self.linear_rip if passes else None, is_step
        error = self._lib.uc_emu_start(self._uc, self._quads[16], 0, 0, is_step)
        self._load()
        self.executed = max(budget - self._cut - self.left, 0)
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised
        return self._why(error)

    def _why(self, error: int) -> Exit:
        found = self._exit
        if found is None:
            if error in (capi.ERR_FETCH_UNMAPPED, capi.ERR_FETCH_PROT):
                # All ones are no instruction.
                return Exit(exits.EXCEPTION, 6)
            if error:
                return Exit(exits.ERROR, text=self._lib.uc_strerror(error).decode())
            return Exit(exits.BUDGET if self._counter.left < 0 else exits.STOPPED)
        if found.kind in (exits.SYSCALL, exits.SYSENTER):
            self._quads[16] = found.address
            self._dirty = True
        elif found.kind == exits.READ_MSR and self._words[ERROR_CODE // 4]:
            return Exit(exits.WRITE_MSR)
        elif found.kind == exits.EXCEPTION:
            error_code = self._words[ERROR_CODE // 4]
            return Exit(exits.EXCEPTION, found.vector, error_code, self._vmcb.fault_address)
        return found

    def run_past_write_cr(self) -> Exit:
        """Lets the instruction of a WRITE_CR exit happen. BUDGET if nothing came of it."""
        self._set_intercepts(VMCB_ADDRESS, _INTERCEPTS, _CR_READS, 0)
        try:
            return self.run(1, passes=True)
        finally:
            self._set_intercepts(VMCB_ADDRESS, _INTERCEPTS, _CR_READS, _CR_WRITES)

    def limit(self, blocks: int) -> None:
        """From a hook: no more than `blocks` further blocks in this run, which ends with BUDGET."""
        self._cut += max(self._counter.left - blocks, 0)
        self._counter.left = min(self._counter.left, blocks)

    @property
    def left(self) -> int:
        """Blocks that the last run was still allowed."""
        return max(self._counter.left, 0)

    @property
    def running(self) -> int:
        """From a hook: blocks that this run has begun so far."""
        return self._budget - self._cut - self._counter.left

    # ---- state ---------------------------------------------------------------------------

    def _load(self) -> None:
        self._lib.uc_context_save(self._uc, self._context)
        self._dirty = False

    def _commit(self) -> None:
        if self._dirty:
            self._lib.uc_context_restore(self._uc, self._context)
            self._dirty = False

    def _write_control(self, number: int, value: int) -> None:
        self._commit()
        self._lib.uc_reg_write(self._uc, capi.REG_CR0 + number, ctypes.byref(capi.uint64(value)))
        self._load()

    def reset(self) -> None:
        """The state in which a PVH kernel is entered, but for RIP and RBX."""
        self._raw[:] = self._pristine
        self._set_pvh_entry()
        self._set_intercepts(VMCB_ADDRESS, _INTERCEPTS, _CR_READS, _CR_WRITES)
        self._mappings.is_stale = True

    def save(self) -> bytes:
        """The whole state of the processor, memory apart. The same state gives the same bytes."""
        saved = bytearray(self._raw)
        saved[HOST_POINTERS:] = bytes(STATE_SIZE - HOST_POINTERS)
        for at in FLOATS:
            saved[at + FLOAT_SIZE : at + FLOAT_SPACE] = bytes(FLOAT_SPACE - FLOAT_SIZE)
        return bytes(saved)

    def restore(self, saved: bytes) -> None:
        """Goes back to what `save` gave. Memory is the caller's to put back, before it runs."""
        self._raw[:] = saved
        self._dirty = True
        self._mappings.is_stale = True

    def close(self) -> None:
        """Lets go of everything; the memory that was mapped is its owner's again."""
        for view in (self._quads, self._words, self._raw):
            view.release()
        for context in (self._context, self._flat_context):
            self._lib.uc_context_free(context)
        self._lib.uc_close(self._uc)
