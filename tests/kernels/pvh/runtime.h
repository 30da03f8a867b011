/*
 * What a small PVH kernel stands on: text, hypercalls, events, time, an end.
 *
 * Written from Xen's public interface (xen/include/public: xen.h, event_channel.h, memory.h,
 * sched.h, hvm/params.h, io/console.h). Everything is mapped one to one or not at all.
 */
#ifndef RUNTIME_H
#define RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#define PAGE 4096u
#define MEMORY_TOP 0x100000000ull

enum { POWEROFF, REBOOT, SUSPEND, CRASH };

extern char image_start[], image_end[];

/* The kernel: start_info is what ebx held. It must not return. */
void kernel_main(uint32_t start_info);

/* ---- text: to Xen's console if it takes any, else to the console ring ---- */

/* %s %d %u %x and %llx. Lines are put out whole. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Says what is wrong and shuts down with the reason CRASH. */
_Noreturn void panic(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- Xen ---- */

/* Hypercall page, shared info, IDT, the callback; panics without Xen. */
void xen_start(void);

/* Undoes what the next kernel would stumble over: the timer's event, the shared info page. */
void xen_leave(void);

long hypercall(unsigned number, long a, long b, long c, long d, long e);

_Noreturn void shutdown(unsigned reason);

/* Nanoseconds since boot. */
uint64_t now_ns(void);

/* Waits, halted, until `n` timer events have come, one each millisecond. */
void wait_ticks(unsigned n);

#endif
