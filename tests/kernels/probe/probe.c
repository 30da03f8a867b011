/*
 * A kernel that does what a script says and tells what came of it, on Xen or on what plays Xen.
 *
 * The script is its first module: steps of a fixed form (steps.py writes them). Nothing is done that
 * no step asks for, but for what it takes to get here and to write to the console: the hypercall
 * page, an IDT, and HVMOP_get_param for the console's ring. So the answers of two hypervisors to the
 * same script can be laid side by side.
 *
 * Written from Xen's public interface (xen/include/public: xen.h, arch-x86/hvm/start_info.h,
 * hvm/params.h, io/console.h, event_channel.h, sched.h).
 */

#include "idt.h"
#include "runtime.h"
#include "xen.h"

#include <string.h>

enum { HC_sched_op = 29, HC_event_channel_op = 32, HC_hvm_op = 34 };
enum { SCHED_yield = 0, SCHED_shutdown = 2 };
enum { EVTCHN_send = 4 };
enum { HVM_get_param = 1 };
enum { PARAM_console_pfn = 17, PARAM_console_evtchn = 18 };
enum { GENERAL_PROTECTION = 13 };
enum { MOV_BYTES = 5 };
enum { KEPT = 1 << 20 };

#define DOMID_SELF 0x7ff0
#define LINE_BYTES 64

/* What a step does; see steps.py. */
enum { STORE = 1, CALL, LOAD, CPUID, READ_MSR, WRITE_MSR, END, FLUSH };

struct step {
    uint32_t kind, size;            /* size of the bytes that follow a STORE, or that a LOAD reads */
    uint64_t number;                /* of the hypercall, leaf or MSR, or an address */
    uint64_t args[5];
};

/* arch-x86/hvm/start_info.h */
struct start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist, cmdline, rsdp;
};
struct module {
    uint64_t address, size, cmdline, reserved;
};

/* io/console.h */
struct console {
    char in[1024], out[2048];
    uint32_t in_cons, in_prod, out_cons, out_prod;
};

extern char hypercall_page[];

/* From probe.S: whether the instruction gave a general protection fault, and its handler. */
int read_msr(uint32_t msr, uint32_t value[2]);
int write_msr(uint32_t msr, const uint32_t value[2]);
void on_protection(void);

static volatile struct console *console;
static uint32_t console_port;

/* What was told so far: writing it to the console would raise events between the steps. */
static char told[KEPT];
static unsigned told_bytes;

long hypercall(unsigned number, long a, long b, long c, long d, long e)
{
#ifdef __x86_64__
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    long result = number;

    /* Past the first entry's mov to eax: so the number need not be one of the page's. */
    __asm__ volatile("call *%[page]"
                     : "+a"(result), "+D"(a), "+S"(b), "+d"(c), "+r"(r10), "+r"(r8)
                     : [page] "r"(hypercall_page + MOV_BYTES)
                     : "memory", "rcx", "r11", "r9", "cc");
    return result;
#else
    long result = number;

    __asm__ volatile("call hypercall_page + 5"
                     : "+a"(result), "+b"(a), "+c"(b), "+d"(c), "+S"(d), "+D"(e)
                     :
                     : "memory", "cc");
    return result;
#endif
}

static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    __asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                     : "a"(leaf), "c"(subleaf));
}

/* ---- console ---- */

static uint64_t get_param(uint32_t index)
{
    struct {
        uint16_t domid, pad;
        uint32_t index;
        uint64_t value;
    } arg = {DOMID_SELF, 0, index, 0};

    hypercall(HC_hvm_op, HVM_get_param, (long)&arg, 0, 0, 0);
    return arg.value;
}

static void notify_console(void)
{
    hypercall(HC_event_channel_op, EVTCHN_send, (long)&console_port, 0, 0, 0);
}

static void flush(void)
{
    for (unsigned i = 0; console && i < told_bytes; i++) {
        while (console->out_prod - console->out_cons >= sizeof(console->out)) {
            notify_console();
            hypercall(HC_sched_op, SCHED_yield, 0, 0, 0, 0);
        }
        console->out[console->out_prod % sizeof(console->out)] = told[i];
        __asm__ volatile("" : : : "memory");
        console->out_prod++;
    }
    notify_console();
    told_bytes = 0;
}

void xen_write(const char *text, unsigned n)
{
    if (told_bytes + n > sizeof(told))
        flush();
    memcpy(told + told_bytes, text, n);
    told_bytes += n;
}

_Noreturn void shutdown(unsigned reason)
{
    uint32_t arg = reason;

    flush();
    hypercall(HC_sched_op, SCHED_shutdown, (long)&arg, 0, 0, 0);
    for (;;)
        __asm__ volatile("cli; hlt");
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
}

/* ---- steps ---- */

static void tell_bytes(const unsigned char *at, uint32_t size)
{
    say("load");
    for (uint32_t i = 0; i < size; i++)
        say("%s%x%x", i % LINE_BYTES ? "" : " ", at[i] >> 4, at[i] & 15);
    say("\n");
}

static void tell_msr(const char *what, int faulted, const uint32_t value[2])
{
    if (faulted)
        say("%s #GP\n", what);
    else
        say("%s %llx\n", what, (unsigned long long)value[1] << 32 | value[0]);
}

static void run_step(const struct step *step)
{
    uint32_t number = (uint32_t)step->number, value[4];
    const uint64_t *args = step->args;

    switch (step->kind) {
    case STORE:
        memcpy((void *)(uintptr_t)step->number, step + 1, step->size);
        break;
    case CALL:
        say("call %llx\n", (unsigned long long)hypercall(number, (long)args[0], (long)args[1],
                                                         (long)args[2], (long)args[3],
                                                         (long)args[4]));
        break;
    case LOAD:
        tell_bytes((const unsigned char *)(uintptr_t)step->number, step->size);
        break;
    case CPUID:
        cpuid(number, (uint32_t)args[0], value);
        say("cpuid %x %x %x %x\n", value[0], value[1], value[2], value[3]);
        break;
    case READ_MSR:
        tell_msr("rdmsr", read_msr(number, value), value);
        break;
    case WRITE_MSR:
        value[0] = (uint32_t)args[0];
        value[1] = (uint32_t)(args[0] >> 32);
        tell_msr("wrmsr", write_msr(number, value), value);
        break;
    case FLUSH:
        flush();
        break;
    default:
        panic("step %x", step->kind);
    }
}

void kernel_main(uint32_t start_info)
{
    const struct start_info *info = (const void *)(uintptr_t)start_info;
    const struct module *module = (const void *)(uintptr_t)info->modlist;
    uint32_t page[2] = {(uint32_t)(uintptr_t)hypercall_page, 0};

    load_idt();
    set_gate(GENERAL_PROTECTION, (uintptr_t)on_protection);
    write_msr(0x40000000, page);
    console = (void *)(uintptr_t)(get_param(PARAM_console_pfn) * PAGE);
    console_port = (uint32_t)get_param(PARAM_console_evtchn);
    if (!info->nr_modules)
        panic("no script");
    for (const char *at = (const void *)(uintptr_t)module->address;;) {
        const struct step *step = (const void *)at;

        if (step->kind == END)
            break;
        run_step(step);
        at += sizeof(*step) + (step->kind == STORE ? (step->size + 7) / 8 * 8 : 0);
    }
    say("done\n");
    shutdown(POWEROFF);
}
