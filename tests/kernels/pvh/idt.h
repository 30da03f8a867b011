/* The interrupt descriptor table of a kernel. See traps.S. */
#ifndef KERNEL_IDT_H
#define KERNEL_IDT_H

#include <stdint.h>

/* From traps.S: what each exception goes to, and behind them what an event goes to. */
extern const uint32_t trap_entries[33];

/* A gate for exceptions to trap_entries, and none for what else there is. */
void load_idt(void);

/* The gate of a vector: an interrupt gate, with this handler. */
void set_gate(unsigned vector, uintptr_t handler);

#endif
