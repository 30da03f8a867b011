/*
 * What a kernel was handed, read once and checked: public/arch-x86/hvm/start_info.h.
 *
 * The kexec module is looked for by its place in the module list: the first entry, as the posted
 * code does.
 */
#ifndef STARTINFO_H
#define STARTINFO_H

#include <stdint.h>

enum { MAX_RANGES = 32, MAX_MODULES = 16 };
enum { TYPE_RAM = 1, TYPE_SOFT_RESERVED = 0xefffffff };

struct hvm_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
    uint32_t memmap_entries, reserved;
};
struct hvm_modlist_entry {
    uint64_t paddr, size, cmdline_paddr, reserved;
};
struct hvm_memmap_table_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};
_Static_assert(sizeof(struct hvm_start_info) == 56, "start_info.h");

#define START_MAGIC 0x336ec578u

struct handed {
    uint32_t address, size;
    const char *cmdline;
};

/* All of it lies below 4 GiB; pointers lead into the start info's own strings. */
struct start {
    struct hvm_memmap_table_entry map[MAX_RANGES];
    struct handed modules[MAX_MODULES];
    unsigned n_map, n_modules;
    uint64_t rsdp;
    const char *cmdline;
};

/* Reads what lies at address; panics if that is no start info. Reserves what it found. */
void read_start_info(uint32_t address, struct start *start);

/* Whether all of it is RAM. */
int is_ram(const struct start *start, uint64_t address, uint64_t size);

/* ---- which memory is spoken for ---- */

void reserve(uint64_t address, uint64_t size);

/* Takes back all that was reserved since n_reserved() was n. */
unsigned n_reserved(void);
void reserved_only(unsigned n);

/* The highest free pages at or above floor and below 4 GiB - 1 page, now reserved; 0 for none. */
uint32_t take_pages(const struct start *start, uint32_t n, uint64_t floor);

#endif
