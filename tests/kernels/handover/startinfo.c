/* See startinfo.h. */

#include "startinfo.h"
#include "runtime.h"

#include <string.h>

enum { MAX_RESERVED = 64 };

static struct {
    uint64_t start, end;
} taken[MAX_RESERVED];
static unsigned n_taken;

static const void *at(uint64_t address, uint64_t size)
{
    if (address == 0 || address >= MEMORY_TOP || size > MEMORY_TOP - address)
        panic("start info names %llx", (unsigned long long)address);
    return (const void *)(uintptr_t)address;
}

static const char *text_at(uint64_t address)
{
    const char *text;

    if (!address)
        return "";
    text = at(address, 1);
    reserve(address, strlen(text) + 1);
    return text;
}

static void read_modules(const struct hvm_start_info *info, struct start *start)
{
    const struct hvm_modlist_entry *entries;

    if (info->nr_modules > MAX_MODULES)
        panic("%u modules", info->nr_modules);
    if (!info->nr_modules)
        return;
    entries = at(info->modlist_paddr, info->nr_modules * sizeof(*entries));
    reserve(info->modlist_paddr, info->nr_modules * sizeof(*entries));
    for (unsigned i = 0; i < info->nr_modules; i++) {
        at(entries[i].paddr, entries[i].size);
        reserve(entries[i].paddr, entries[i].size);
        start->modules[i].address = (uint32_t)entries[i].paddr;
        start->modules[i].size = (uint32_t)entries[i].size;
        start->modules[i].cmdline = text_at(entries[i].cmdline_paddr);
    }
    start->n_modules = info->nr_modules;
}

static void read_map(const struct hvm_start_info *info, struct start *start)
{
    const struct hvm_memmap_table_entry *entries;

    if (info->version < 1 || info->memmap_entries > MAX_RANGES)
        panic("no memory map of use");
    entries = at(info->memmap_paddr, info->memmap_entries * sizeof(*entries));
    reserve(info->memmap_paddr, info->memmap_entries * sizeof(*entries));
    memcpy(start->map, entries, info->memmap_entries * sizeof(*entries));
    start->n_map = info->memmap_entries;
}

void read_start_info(uint32_t address, struct start *start)
{
    const struct hvm_start_info *info = at(address, sizeof(*info));

    if (info->magic != START_MAGIC)
        panic("no start info at %x", address);
    reserve(0, PAGE); /* nobody wants a null pointer to work */
    reserve((uintptr_t)image_start, (uintptr_t)image_end - (uintptr_t)image_start);
    reserve(address, sizeof(*info));
    read_map(info, start);
    read_modules(info, start);
    start->cmdline = text_at(info->cmdline_paddr);
    start->rsdp = info->rsdp_paddr;
}

int is_ram(const struct start *start, uint64_t address, uint64_t size)
{
    for (unsigned i = 0; i < start->n_map; i++) {
        const struct hvm_memmap_table_entry *range = &start->map[i];

        if (range->type == TYPE_RAM && address >= range->addr && size <= range->size &&
            address - range->addr <= range->size - size)
            return 1;
    }
    return 0;
}

void reserve(uint64_t address, uint64_t size)
{
    if (n_taken == MAX_RESERVED)
        panic("too much is reserved");
    taken[n_taken].start = address;
    taken[n_taken++].end = address + size;
}

unsigned n_reserved(void)
{
    return n_taken;
}

void reserved_only(unsigned n)
{
    n_taken = n;
}

/* Below end, the highest free run in [floor, end), or 0. */
static uint64_t highest(uint64_t floor, uint64_t end, uint64_t size)
{
    while (end >= size && end - size >= floor) {
        uint64_t start = end - size, next = end;

        for (unsigned i = 0; i < n_taken; i++)
            if (taken[i].start < end && start < taken[i].end && taken[i].start < next)
                next = taken[i].start;
        if (next == end)
            return start;
        end = next & ~(uint64_t)(PAGE - 1);
    }
    return 0;
}

uint32_t take_pages(const struct start *start, uint32_t n, uint64_t floor)
{
    uint64_t best = 0;

    for (unsigned i = 0; i < start->n_map; i++) {
        uint64_t low = start->map[i].addr, end = low + start->map[i].size, found;

        if (start->map[i].type != TYPE_RAM || low >= MEMORY_TOP)
            continue;
        if (end > MEMORY_TOP - PAGE)
            end = MEMORY_TOP - PAGE;
        low = ((low > floor ? low : floor) + PAGE - 1) & ~(uint64_t)(PAGE - 1);
        found = highest(low, end & ~(uint64_t)(PAGE - 1), (uint64_t)n * PAGE);
        if (found > best)
            best = found;
    }
    if (best)
        reserve(best, (uint64_t)n * PAGE);
    return (uint32_t)best;
}
