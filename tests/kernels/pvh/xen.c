/*
 * Xen, as far as a small kernel needs it. See runtime.h.
 *
 * The shared info page is mapped just below the special pages, where no RAM is: put over a page of
 * RAM it would still be there for the next kernel, and leave a hole when that one moves it.
 */

#include "xen.h"
#include "idt.h"
#include "runtime.h"

enum {
    HC_memory_op = 12,
    HC_set_timer_op = 15,
    HC_console_io = 18,
    HC_sched_op = 29,
    HC_event_channel_op = 32,
    HC_hvm_op = 34,
};
enum { SCHED_yield = 0, SCHED_shutdown = 2 };
enum { EVTCHN_bind_virq = 1, EVTCHN_close = 3, EVTCHN_send = 4 };
enum { HVM_set_param = 0, HVM_get_param = 1 };
enum { PARAM_callback_irq = 0, PARAM_console_pfn = 17, PARAM_console_evtchn = 18 };
enum { MEM_add_to_physmap = 7, MEM_remove_from_physmap = 15 };
enum { UPCALL = 0xf3, SHARED_GFN = 0xfeff7 };

#define DOMID_SELF 0x7ff0
#define WORD (sizeof(unsigned long))
#define WORD_BITS (8 * WORD)

/* xen.h: struct shared_info; one vcpu is looked at. */
struct vcpu_info {
    uint8_t upcall_pending;
    uint8_t upcall_mask;
    unsigned long pending_sel;
    uint8_t arch[WORD == 8 ? 16 : 24];
    struct {
        uint32_t version, pad0;
        uint64_t tsc_timestamp, system_time;
        uint32_t tsc_to_system_mul;
        int8_t tsc_shift;
        uint8_t flags, pad1[2];
    } time;
};
struct shared_info {
    struct vcpu_info vcpu[32];
    unsigned long pending[WORD_BITS];
    unsigned long mask[WORD_BITS];
};
_Static_assert(sizeof(struct vcpu_info) == 64, "xen.h: struct vcpu_info");
_Static_assert(offsetof(struct vcpu_info, time) == 32, "xen.h: struct vcpu_info");
_Static_assert(offsetof(struct shared_info, mask) == 2048 + WORD * WORD_BITS, "xen.h");

/* io/console.h */
struct console {
    char in[1024], out[2048];
    uint32_t in_cons, in_prod, out_cons, out_prod;
};

extern char hypercall_page[];

static volatile struct shared_info *const shared = (void *)((uintptr_t)SHARED_GFN * PAGE);
static volatile struct console *console;
static uint32_t console_port, timer_port;
static volatile unsigned ticks;

static void cpuid(uint32_t leaf, uint32_t out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                     : "a"(leaf), "c"(0));
}

long hypercall(unsigned number, long a, long b, long c, long d, long e)
{
    char *target = hypercall_page + 32 * number;

#ifdef __x86_64__
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result;

    __asm__ volatile("call *%[target]"
                     : "=a"(result), "+D"(a), "+S"(b), "+d"(c), "+r"(r10), "+r"(r8)
                     : [target] "a"(target)
                     : "memory", "rcx", "r11", "r9", "cc");
    return result;
#else
    long result = (long)target;

    __asm__ volatile("call *%%eax"
                     : "+a"(result), "+b"(a), "+c"(b), "+d"(c), "+S"(d), "+D"(e)
                     :
                     : "memory", "cc");
    return result;
#endif
}

static long call(unsigned number, long op, void *arg)
{
    return hypercall(number, op, (long)arg, 0, 0, 0);
}

/* ---- consoles ---- */

static long get_param(uint32_t index, uint64_t *value)
{
    struct {
        uint16_t domid, pad;
        uint32_t index;
        uint64_t value;
    } arg = {DOMID_SELF, 0, index, 0};
    long result = call(HC_hvm_op, HVM_get_param, &arg);

    *value = arg.value;
    return result;
}

static long set_param(uint32_t index, uint64_t value)
{
    struct {
        uint16_t domid, pad;
        uint32_t index;
        uint64_t value;
    } arg = {DOMID_SELF, 0, index, value};

    return call(HC_hvm_op, HVM_set_param, &arg);
}

static void find_console(void)
{
    uint64_t pfn, port;

    if (hypercall(HC_console_io, 0, 0, (long)image_start, 0, 0) == 0)
        return;
    if (get_param(PARAM_console_pfn, &pfn) || get_param(PARAM_console_evtchn, &port) || !pfn)
        return;
    console = (void *)(uintptr_t)(pfn * PAGE);
    console_port = (uint32_t)port;
}

static void notify_console(void)
{
    call(HC_event_channel_op, EVTCHN_send, &console_port);
}

void xen_write(const char *text, unsigned n)
{
    if (!console) {
        hypercall(HC_console_io, 0, n, (long)text, 0, 0);
        return;
    }
    for (unsigned i = 0; i < n; i++) {
        while (console->out_prod - console->out_cons >= sizeof(console->out)) {
            notify_console();
            call(HC_sched_op, SCHED_yield, NULL);
        }
        console->out[console->out_prod % sizeof(console->out)] = text[i];
        __asm__ volatile("" : : : "memory"); /* x86 keeps the order of stores, the compiler must */
        console->out_prod++;
    }
    notify_console();
}

/* ---- traps ---- */

void on_exception(unsigned long vector, unsigned long error, unsigned long at,
                  unsigned long address)
{
    panic("exception %u error %x at %llx, cr2 %llx", (unsigned)vector, (unsigned)error,
          (unsigned long long)at, (unsigned long long)address);
}

void on_event(void)
{
    volatile struct vcpu_info *vcpu = &shared->vcpu[0];

    vcpu->upcall_pending = 0;
    __atomic_exchange_n(&vcpu->pending_sel, 0, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < WORD_BITS; i++) {
        unsigned long bits = shared->pending[i] & ~shared->mask[i];

        __atomic_and_fetch(&shared->pending[i], ~bits, __ATOMIC_SEQ_CST);
        if (timer_port / WORD_BITS == i && bits >> timer_port % WORD_BITS & 1)
            ticks++;
    }
}

/* ---- start and end ---- */

static void find_xen(void)
{
    uint32_t found[4], page = (uint32_t)(uintptr_t)hypercall_page;

    for (uint32_t base = 0x40000000; base < 0x40010000; base += 0x100) {
        cpuid(base, found);
        /* "XenVMMXenVMM" */
        if (found[1] == 0x566e6558 && found[2] == 0x65584d4d && found[3] == 0x4d4d566e) {
            cpuid(base + 2, found);
            __asm__ volatile("wrmsr" : : "c"(found[1]), "a"(page), "d"(0) : "memory");
            return;
        }
    }
    __asm__ volatile("cli; hlt"); /* nobody to tell */
}

static void map_shared_info(void)
{
    struct {
        uint16_t domid, size;
        uint32_t space;
        unsigned long index, gfn;
    } arg = {DOMID_SELF, 0, 0, 0, SHARED_GFN};
    long result = call(HC_memory_op, MEM_add_to_physmap, &arg);

    if (result)
        panic("no shared info: %d", (int)result);
}

static void bind_timer(void)
{
    struct {
        uint32_t virq, vcpu, port;
    } arg = {0, 0, 0};
    long result = call(HC_event_channel_op, EVTCHN_bind_virq, &arg);

    if (result)
        panic("no timer: %d", (int)result);
    timer_port = arg.port;
}

void xen_start(void)
{
    long result;

    load_idt();
    set_gate(UPCALL, trap_entries[32]);
    find_xen();
    find_console();
    map_shared_info();
    result = set_param(PARAM_callback_irq, 2ull << 56 | UPCALL);
    if (result)
        panic("no callback: %d", (int)result);
    bind_timer();
}

void xen_leave(void)
{
    struct {
        uint16_t domid;
        unsigned long gfn;
    } arg = {DOMID_SELF, SHARED_GFN};
    long result;

    __asm__ volatile("cli");
    result = call(HC_event_channel_op, EVTCHN_close, &timer_port);
    if (result)
        panic("the timer stays: %d", (int)result);
    result = call(HC_memory_op, MEM_remove_from_physmap, &arg);
    if (result)
        panic("shared info stays: %d", (int)result);
}

_Noreturn void shutdown(unsigned reason)
{
    uint32_t arg = reason;

    call(HC_sched_op, SCHED_shutdown, &arg);
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* ---- time ---- */

static uint64_t read_tsc(void)
{
    uint32_t low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

uint64_t now_ns(void)
{
    volatile struct vcpu_info *vcpu = &shared->vcpu[0];
    uint64_t delta, ns;
    uint32_t version;

    do {
        version = vcpu->time.version;
        delta = read_tsc() - vcpu->time.tsc_timestamp;
        if (vcpu->time.tsc_shift < 0)
            delta >>= -vcpu->time.tsc_shift;
        else
            delta <<= vcpu->time.tsc_shift;
        ns = (delta >> 32) * vcpu->time.tsc_to_system_mul;
        ns += (delta & 0xffffffffu) * vcpu->time.tsc_to_system_mul >> 32;
        ns += vcpu->time.system_time;
    } while (version & 1 || version != vcpu->time.version);
    return ns;
}

void wait_ticks(unsigned n)
{
    for (unsigned end = ticks + n; ticks != end;) {
        unsigned before = ticks;
        uint64_t when = now_ns() + 1000000;

#ifdef __x86_64__
        hypercall(HC_set_timer_op, (long)when, 0, 0, 0, 0);
#else
        hypercall(HC_set_timer_op, (long)(uint32_t)when, (long)(when >> 32), 0, 0, 0);
#endif
        while (ticks == before) {
            __asm__ volatile("sti; hlt; cli");
        }
    }
}
