"""What is asked about hvm_op, vcpu_op and sched_op."""

from __future__ import annotations

from kernels.probe.script import ARG, FRAME, HOLE, MORE, SELF, Script

from xenlive.abi.hypercalls import hvm, sched, vcpu

_HARMLESS = 0x5555
#: Parameters whose values change how the guest or its services run.
_LEAVE = {
    *(hvm.HVM_PARAM_STORE_PFN, hvm.HVM_PARAM_CONSOLE_PFN, hvm.HVM_PARAM_VM86_TSS_SIZED),
}


def params(s: Script) -> None:
    """HVM parameters and the rest of hvm_op."""
    s.read_in("do_hvm_op, xen/arch/x86/hvm/hvm.c")
    for op in (*range(28), 100, 0xFFFFFFFF):
        s.call(f"op {op}: hole", "hvm_op", op, HOLE)
    if s.bits == 64:
        s.call("wide op", "hvm_op", 1 << 32 | 1, HOLE)
    s.read_in("hvm_get_param, hvm_allow_get_param, xen/arch/x86/hvm/hvm.c")
    for index in (*range(41), 100, 0xFFFFFFFF):
        s.put("HHIQ", SELF, 0, index, 0x77)
        s.call(f"get {index}", "hvm_op", hvm.HVMOP_get_param, ARG, out=16)
    for name, who in s.domids()[1:]:
        for index in (1, 3, 100):
            s.put("HHIQ", who, 0, index, 0x77)
            s.call(f"get {index} of {name}", "hvm_op", hvm.HVMOP_get_param, ARG)
            s.call(f"set {index} of {name}", "hvm_op", hvm.HVMOP_set_param, ARG)
    s.read_in("hvm_set_param, hvm_allow_set_param, xen/arch/x86/hvm/hvm.c")
    for index in (*range(41), 100, 0xFFFFFFFF):
        if index in _LEAVE:
            continue
        for value in (0, 1, _HARMLESS):
            s.put("HHIQ", SELF, 0, index, value)
            s.call(f"set {index} = {value:#x}", "hvm_op", hvm.HVMOP_set_param, ARG)
        s.put("HHIQ", SELF, 0, index, 0x77)
        s.call(f"get {index} then", "hvm_op", hvm.HVMOP_get_param, ARG, out=16)
    for via in (0x0200000000000030, 0x02000000000000F3, 0x0300000000000000, 0xFF00000000000001):
        s.put("HHIQ", SELF, 0, 0, via)
        s.call(f"callback {via:#x}", "hvm_op", hvm.HVMOP_set_param, ARG)
        s.put("HHIQ", SELF, 0, 0, 0x77)
        s.call(f"callback after {via:#x}", "hvm_op", hvm.HVMOP_get_param, ARG, out=16)
    s.put("HHIQ", SELF, 0, 0, 0)
    s.call("callback: none", "hvm_op", hvm.HVMOP_set_param, ARG)
    s.read_in("do_hvm_op, xen/arch/x86/hvm/hvm.c")
    s.call("flush_tlbs", "hvm_op", hvm.HVMOP_flush_tlbs, 0)
    s.call("flush_tlbs: pointer", "hvm_op", hvm.HVMOP_flush_tlbs, ARG)
    for name, who in s.domids():
        s.put("HHHHQ", who, 0, 0, 0, FRAME)
        s.call(f"mem type of {name}", "hvm_op", hvm.HVMOP_get_mem_type, ARG, out=16)
        s.put("HHIQ", who, 0, 0, 0)
        s.call(f"pagetable dying of {name}", "hvm_op", hvm.HVMOP_pagetable_dying, ARG)
        s.put("IIHHIQQ", 1, 1, who, 0, 0, 0, 0)
        s.call(f"altp2m of {name}", "hvm_op", hvm.HVMOP_altp2m, ARG)
    s.put("HHHHQ", SELF, 0, 0, 0, 0xD0000)
    s.call("mem type of a hole", "hvm_op", hvm.HVMOP_get_mem_type, ARG, out=16)
    s.put("HHHHQ", SELF, 0, 0, 0, 0xFEFFF)
    s.call("mem type of the console", "hvm_op", hvm.HVMOP_get_mem_type, ARG, out=16)
    s.put("HBx2Q", 1, 0, 0, 0)
    s.call("xentrace", "hvm_op", hvm.HVMOP_xentrace, ARG)
    s.put("HBx2Q", 1, 9, 0, 0)
    s.call("xentrace: too much", "hvm_op", hvm.HVMOP_xentrace, ARG)
    s.put("HBx2Q", 0xFFFF, 9, 0, 0)
    s.call("xentrace: no such event", "hvm_op", hvm.HVMOP_xentrace, ARG)
    s.call("vm event", "hvm_op", hvm.HVMOP_guest_request_vm_event, 0)
    s.call("vm event: pointer", "hvm_op", hvm.HVMOP_guest_request_vm_event, ARG)
    for number in (0, 1, 128, 0xFFFFFFFF):
        for vector in (0, 8, 15, 16, 0x30, 255):
            if (number, vector) != (0, 0x30) and not (number == 0 and vector > 15):
                s.put("II", number, vector)
                s.call(
                    f"upcall vector {vector} of {number}",
                    "hvm_op",
                    hvm.HVMOP_set_evtchn_upcall_vector,
                    ARG,
                )


def small_task_segment(s: Script) -> None:
    """A task state segment for virtual 8086 mode that is too small."""
    s.read_in("hvm_set_param, xen/arch/x86/hvm/hvm.c")
    for size in (0x68, 0x67):
        s.put("HHIQ", SELF, 0, hvm.HVM_PARAM_VM86_TSS_SIZED, size << 32 | 0x1000)
        s.flush()
        s.call(f"{size:#x} bytes", "hvm_op", hvm.HVMOP_set_param, ARG)
        s.put("HHIQ", SELF, 0, hvm.HVM_PARAM_VM86_TSS_SIZED, 0x77)
        s.call(f"after {size:#x} bytes", "hvm_op", hvm.HVMOP_get_param, ARG, out=16)


def vcpus(s: Script) -> None:
    """vcpu_op."""
    s.read_in("do_vcpu_op, xen/arch/x86/domain.c; common_vcpu_op, xen/common/domain.c")
    for cmd in (*range(20), 0xFFFFFFFF):
        if cmd == vcpu.VCPUOP_down:
            continue
        for vcpuid in (1, 127, 128, 0xFFFFFFFF):
            s.call(f"{cmd} of {vcpuid}: hole", "vcpu_op", cmd, vcpuid, HOLE)
        if cmd != vcpu.VCPUOP_send_nmi:
            s.call(f"{cmd} of 0: hole", "vcpu_op", cmd, 0, HOLE)
    if s.bits == 64:
        s.call("wide vcpu", "vcpu_op", vcpu.VCPUOP_is_up, 1 << 32, 0)
        s.call("wide command", "vcpu_op", 1 << 32 | vcpu.VCPUOP_is_up, 0, 0)
    s.read_in("arch_initialise_vcpu, xen/arch/x86/domain.c and hvm/domain.c")
    for mode in (0, 1, 2, 3):
        s.put("II64Q", mode, 0, *(0,) * 64)
        for vcpuid in (0, 1):
            s.call(
                f"initialise {vcpuid}: mode {mode}", "vcpu_op", vcpu.VCPUOP_initialise, vcpuid, ARG
            )
    s.call("up", "vcpu_op", vcpu.VCPUOP_up, 0, 0)
    s.call("is up", "vcpu_op", vcpu.VCPUOP_is_up, 0, 0)
    s.call("down of 1", "vcpu_op", vcpu.VCPUOP_down, 1, 0)
    s.read_in("common_vcpu_op, xen/common/domain.c")
    for period in (0, 1, 999_999, 1_000_000, 1 << 62, (1 << 62) - 1, (1 << 64) - 1):
        s.put("Q", period)
        s.call(f"periodic {period}", "vcpu_op", vcpu.VCPUOP_set_periodic_timer, 0, ARG)
    s.call("stop periodic", "vcpu_op", vcpu.VCPUOP_stop_periodic_timer, 0, 0)
    for flags in (0, 1, 2, 3):
        for when in (1, 1 << 50, 1 << 63, (1 << 64) - 1):
            s.put("QII", when, flags, 0)
            s.call(
                f"singleshot {when}, {flags}", "vcpu_op", vcpu.VCPUOP_set_singleshot_timer, 0, ARG
            )
    s.call("stop singleshot", "vcpu_op", vcpu.VCPUOP_stop_singleshot_timer, 0, 0)
    s.call("nmi of 1", "vcpu_op", vcpu.VCPUOP_send_nmi, 1, 0)
    s.call("nmi: pointer", "vcpu_op", vcpu.VCPUOP_send_nmi, 0, ARG)
    s.call("physid", "vcpu_op", vcpu.VCPUOP_get_physid, 0, ARG)
    s.read_in("map_vcpu_info, xen/common/domain.c")
    for mfn, offset in (
        *((FRAME, 4032), (FRAME, 4033), (FRAME, 4036), (FRAME, 4096 - 56), (FRAME, 4), (FRAME, 1)),
        *((0xD0000, 0), (1 << 40, 0), (FRAME, 0xFFFFFFF8)),
    ):
        if s.bits == 32 and (mfn, offset) in ((FRAME, 4032), (FRAME, 4036), (FRAME, 4)):
            continue
        if s.bits == 64 and (mfn, offset) == (FRAME, 4032):
            continue
        s.put("QII", mfn, offset, 0)
        s.call(
            f"vcpu_info at {mfn:#x}+{offset:#x}", "vcpu_op", vcpu.VCPUOP_register_vcpu_info, 0, ARG
        )
        s.call(
            f"vcpu_info of 1 at {mfn:#x}+{offset:#x}",
            "vcpu_op",
            vcpu.VCPUOP_register_vcpu_info,
            1,
            ARG,
        )
    s.put("QII", FRAME, 64, 0)
    s.call("vcpu_info", "vcpu_op", vcpu.VCPUOP_register_vcpu_info, 0, ARG)
    s.load("vcpu_info there", (FRAME << 12) + 64, 16)
    s.call("vcpu_info again", "vcpu_op", vcpu.VCPUOP_register_vcpu_info, 0, ARG)
    s.put("QII", FRAME, 8, 0)
    s.call("vcpu_info elsewhere", "vcpu_op", vcpu.VCPUOP_register_vcpu_info, 0, ARG)
    s.read_in("VCPUOP_register_runstate_memory_area of do_vcpu_op and compat_vcpu_op")
    for address in (HOLE, 0, MORE):
        s.put("Q", address)
        s.call(
            f"runstate at {address:#x}",
            "vcpu_op",
            vcpu.VCPUOP_register_runstate_memory_area,
            0,
            ARG,
        )
        s.call(
            f"time at {address:#x}", "vcpu_op", vcpu.VCPUOP_register_vcpu_time_memory_area, 0, ARG
        )
        s.call(
            f"runstate of 1 at {address:#x}",
            "vcpu_op",
            vcpu.VCPUOP_register_runstate_memory_area,
            1,
            ARG,
        )
    s.put("Q", 0)
    s.call("runstate nowhere", "vcpu_op", vcpu.VCPUOP_register_runstate_memory_area, 0, ARG)
    s.call("time nowhere", "vcpu_op", vcpu.VCPUOP_register_vcpu_time_memory_area, 0, ARG)


def hungry_watchdog(s: Script) -> None:
    """A watchdog that is due at once."""
    s.read_in("domain_watchdog, xen/common/sched/core.c")
    s.put("II", 0, 0)
    s.call("no time", "sched_op", sched.SCHEDOP_watchdog, ARG)
    s.flush()
    for n in range(3):
        s.put("WIxxxxQ" if s.bits == 64 else "WIQ", 0, 0, (1 << 62))
        s.call(f"later {n}", "sched_op", sched.SCHEDOP_poll, ARG)


def schedules(s: Script) -> None:
    """sched_op and set_timer_op."""
    s.read_in("do_sched_op, xen/common/sched/core.c")
    for op in (0, *range(2, 10), 0xFFFFFFFF):
        s.call(f"{op}: hole", "sched_op", op, HOLE)
    s.read_in("do_poll, xen/common/sched/core.c")
    for count in (129, 128, 0xFFFFFFFF):
        s.put("WIxxxxQ" if s.bits == 64 else "WIQ", MORE, count, 1)
        s.call(f"poll {count}", "sched_op", sched.SCHEDOP_poll, ARG)
    for port in (0, 1, 3, 63, 64, 0xFFFFFFFF):
        s.put("I", port, at=MORE)
        s.put("WIxxxxQ" if s.bits == 64 else "WIQ", MORE, 1, 1)
        s.call(f"poll port {port}", "sched_op", sched.SCHEDOP_poll, ARG)
    s.put("WIxxxxQ" if s.bits == 64 else "WIQ", HOLE, 1, 1)
    s.call("poll: list in a hole", "sched_op", sched.SCHEDOP_poll, ARG)
    s.put("WIxxxxQ" if s.bits == 64 else "WIQ", HOLE, 0, 1)
    s.call("poll: none, for a time", "sched_op", sched.SCHEDOP_poll, ARG)
    s.put("WIxxxxQ" if s.bits == 64 else "WIQ", HOLE, 129, 1)
    s.call("poll: too many in a hole", "sched_op", sched.SCHEDOP_poll, ARG)
    s.read_in("domain_watchdog, SCHEDOP_remote_shutdown of do_sched_op, xen/common/sched/core.c")
    for number, timeout in ((1, 0), (1, 1000), (3, 1), (0xFFFFFFFF, 1)):
        s.put("II", number, timeout)
        s.call(f"watchdog {number}, {timeout}", "sched_op", sched.SCHEDOP_watchdog, ARG)
    for n in range(3):
        s.put("II", 0, 1000 + n)
        s.call(f"watchdog: new, {n}", "sched_op", sched.SCHEDOP_watchdog, ARG)
    for number, timeout in ((1, 2000), (2, 0), (2, 1000), (1, 0), (1, 0)):
        name = f"watchdog: {number}, {timeout}{s.again(f'watchdog: {number}, {timeout}')}"
        s.put("II", number, timeout)
        s.call(name, "sched_op", sched.SCHEDOP_watchdog, ARG)
    for name, who in s.domids():
        s.put("HHI", who, 0, 0)
        s.call(f"remote shutdown of {name}", "sched_op", sched.SCHEDOP_remote_shutdown, ARG)
    for pcpu in (-1, 0, 1, 1000):
        s.put("i", pcpu)
        s.call(f"pin {pcpu}", "sched_op", sched.SCHEDOP_pin_override, ARG)
    for reason in (0, 3, 5, 6, 0x100, 0xFFFFFFFF):
        s.put("I", reason)
        s.call(f"shutdown code {reason}", "sched_op", sched.SCHEDOP_shutdown_code, ARG)
    s.read_in("do_set_timer_op, xen/common/sched/core.c")
    for when in (0, 1, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1):
        low, high = when & 0xFFFFFFFF, when >> 32
        args = (when,) if s.bits == 64 else (low, high)
        s.call(f"timer at {when:#x}", "set_timer_op", *args)
    s.call("timer: none", "set_timer_op", 0, 0)
