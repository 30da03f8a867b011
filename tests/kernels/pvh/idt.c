/* The interrupt descriptor table. See idt.h. */

#include "idt.h"

struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_high;
#ifdef __x86_64__
    uint32_t offset_top, reserved;
#endif
};

static struct gate idt[256];

void set_gate(unsigned vector, uintptr_t handler)
{
    struct gate gate = {.type = 0x8e};

    __asm__("mov %%cs, %0" : "=r"(gate.selector));
    gate.offset_low = (uint16_t)handler;
    gate.offset_high = (uint16_t)(handler >> 16);
    idt[vector] = gate;
}

void load_idt(void)
{
    struct {
        uint16_t limit;
        uintptr_t base;
    } __attribute__((packed)) pointer = {sizeof(idt) - 1, (uintptr_t)idt};

    for (unsigned vector = 0; vector < 32; vector++)
        set_gate(vector, trap_entries[vector]);
    __asm__ volatile("lidt %0" : : "m"(pointer));
}
