/* See kexec.h. The steps and the block's order are Mini-OS' (posted July 2025). */

#include "kexec.h"
#include "runtime.h"

#include <errno.h>
#include <string.h>

enum { PT_LOAD = 1, PT_NOTE = 4, SHT_NOTE = 7, PHYS32_ENTRY = 18 };
/* As an action's source, before sources are addresses; no file has so high an offset. */
#define ZEROES UINT32_MAX
enum { MAX_ACTIONS = 16, LEAVE_CODE_SIZE = 1024, BLOCK_ALIGN = 8 };

/* One ELF header field for both classes. */
#define FIELD(elf, type, at32, at64) \
    (((elf)[4] == 2) ? (uint64_t)*(const type##64 *)((elf) + (at64)) \
                     : (uint64_t)*(const type##32 *)((elf) + (at32)))
typedef uint16_t half32, half64;
typedef uint32_t word32, word64, addr32;
typedef uint64_t addr64;

struct segment {
    uint64_t type, offset, address, file_size, memory_size;
};

/* What leave.S does, from a page of its own. Its offsets are known there. */
struct leave_page {
    uint8_t code[LEAVE_CODE_SIZE];
    uint64_t gdt[3];
    uint16_t gdt_pad, gdt_limit;
    uint32_t gdt_base, gdt_base_high;
    uint32_t entry, start_info, n_actions;
    struct {
        uint32_t target, source, size;
    } actions[MAX_ACTIONS];
};
_Static_assert(offsetof(struct leave_page, gdt_limit) == 1050, "leave.S");
_Static_assert(offsetof(struct leave_page, entry) == 1060, "leave.S");
_Static_assert(offsetof(struct leave_page, actions) == 1072, "leave.S");
_Static_assert(sizeof(struct leave_page) <= PAGE, "one page");

extern const char leave_start[], leave_end[];

int kexec_names_buffer;

static struct leave_page *page;
static struct leave_page wanted;

static int read_segment(const uint8_t *elf, uint64_t size, unsigned index, struct segment *out)
{
    uint64_t at = FIELD(elf, addr, 28, 32), each = FIELD(elf, half, 42, 54);
    const uint8_t *header;

    if (each < (elf[4] == 2 ? 56 : 32) || at > size || (index + 1) * each > size - at)
        return -ENOEXEC;
    header = elf + at + index * each;
    out->type = *(const uint32_t *)header;
    out->offset = elf[4] == 2 ? *(const uint64_t *)(header + 8) : *(const uint32_t *)(header + 4);
    out->address = elf[4] == 2 ? *(const uint64_t *)(header + 24) : *(const uint32_t *)(header + 12);
    out->file_size =
        elf[4] == 2 ? *(const uint64_t *)(header + 32) : *(const uint32_t *)(header + 16);
    out->memory_size =
        elf[4] == 2 ? *(const uint64_t *)(header + 40) : *(const uint32_t *)(header + 20);
    if (out->offset > size || out->file_size > size - out->offset)
        return -ENOEXEC;
    return 0;
}

/* The entry from Xen's note, or 0. */
static uint32_t entry_in(const uint8_t *notes, uint64_t size)
{
    while (size >= 12) {
        const uint32_t *head = (const void *)notes;
        uint64_t name = ((uint64_t)head[0] + 3) & ~3ull, desc = ((uint64_t)head[1] + 3) & ~3ull;

        if (12 + name + desc > size)
            return 0;
        if (head[0] == 4 && head[2] == PHYS32_ENTRY && !memcmp(notes + 12, "Xen", 4)) {
            uint64_t entry = 0;

            if (head[1] != 1 && head[1] != 2 && head[1] != 4 && head[1] != 8)
                return 0;
            memcpy(&entry, notes + 12 + name, head[1]);
            return entry < MEMORY_TOP ? (uint32_t)entry : 0;
        }
        notes += 12 + name + desc;
        size -= 12 + name + desc;
    }
    return 0;
}

/* The same from the sections, for a file whose program headers have no note. */
static uint32_t entry_by_section(const uint8_t *elf, uint64_t size)
{
    uint64_t at = FIELD(elf, addr, 32, 40), each = FIELD(elf, half, 46, 58);
    uint64_t n = FIELD(elf, half, 48, 60);
    uint32_t entry = 0;

    if (each < (elf[4] == 2 ? 64 : 40) || at > size || n * each > size - at)
        return 0;
    for (const uint8_t *header = elf + at; n && !entry; n--, header += each) {
        uint64_t offset, length;

        offset = elf[4] == 2 ? *(const uint64_t *)(header + 24) : *(const uint32_t *)(header + 16);
        length = elf[4] == 2 ? *(const uint64_t *)(header + 32) : *(const uint32_t *)(header + 20);
        if (*(const uint32_t *)(header + 4) == SHT_NOTE && offset <= size && length <= size - offset)
            entry = entry_in(elf + offset, length);
    }
    return entry;
}

static int add_action(uint64_t target, uint64_t source, uint64_t size)
{
    if (!size)
        return 0;
    if (wanted.n_actions == MAX_ACTIONS)
        return -ENOSPC;
    wanted.actions[wanted.n_actions].target = (uint32_t)target;
    wanted.actions[wanted.n_actions].source = (uint32_t)source;
    wanted.actions[wanted.n_actions++].size = (uint32_t)size;
    return 0;
}

/* Entry and actions of an ELF file; sources are offsets in it until it has its place. */
static int analyse(const uint8_t *elf, uint64_t size, uint64_t *end)
{
    unsigned n;

    if (size < 64 || memcmp(elf, "\177ELF", 4) || (elf[4] != 1 && elf[4] != 2) || elf[5] != 1)
        return -ENOEXEC;
    if (*(const uint16_t *)(elf + 18) != (elf[4] == 2 ? 62 : 3))
        return -ENOEXEC;
    n = (unsigned)FIELD(elf, half, 44, 56);
    *end = 0;
    for (unsigned i = 0; i < n; i++) {
        struct segment segment;
        int result = read_segment(elf, size, i, &segment);

        if (result)
            return result;
        if (segment.type == PT_NOTE && !wanted.entry)
            wanted.entry = entry_in(elf + segment.offset, segment.file_size);
        if (segment.type != PT_LOAD || !segment.memory_size)
            continue;
        if (segment.file_size > segment.memory_size || segment.address >= MEMORY_TOP ||
            segment.memory_size > MEMORY_TOP - segment.address)
            return -ENOEXEC;
        result = add_action(segment.address, segment.offset, segment.file_size);
        if (!result)
            result = add_action(segment.address + segment.file_size, ZEROES,
                                segment.memory_size - segment.file_size);
        if (result)
            return result;
        if (segment.address + segment.memory_size > *end)
            *end = segment.address + segment.memory_size;
    }
    if (!wanted.entry)
        wanted.entry = entry_by_section(elf, size);
    return wanted.entry && *end ? 0 : -ENOEXEC;
}

/* ---- the block ---- */

static struct handed hand[MAX_MODULES + 1];
static unsigned n_hand;

static unsigned kept_ranges(const struct start *start)
{
    unsigned n = 0;

    for (unsigned i = 0; i < start->n_map; i++)
        n += start->map[i].type != TYPE_SOFT_RESERVED;
    return n;
}

static uint32_t block_size(const struct start *start, const char *cmdline)
{
    size_t size = sizeof(struct hvm_start_info) + strlen(cmdline) + 1;

    size += kept_ranges(start) * sizeof(struct hvm_memmap_table_entry);
    for (unsigned i = 0; i < n_hand; i++)
        size += sizeof(struct hvm_modlist_entry) + strlen(hand[i].cmdline) + 1;
    return (uint32_t)size;
}

/* Puts text at to, whose final address is next to address; where it will be. */
static uint64_t put_text(char **to, uint32_t *address, const char *text)
{
    uint64_t where = *address;

    memcpy(*to, text, strlen(text) + 1);
    *to += strlen(text) + 1;
    *address += (uint32_t)strlen(text) + 1;
    return where;
}

/* start info | memory map | module list | command line | the further modules' command lines */
static void build_block(const struct start *start, char *block, uint32_t address,
                        const char *cmdline)
{
    struct hvm_start_info info = {.magic = START_MAGIC, .version = 1};
    uint32_t next = address + sizeof(info);
    char *to = block + sizeof(info);
    struct hvm_modlist_entry *entries;

    info.memmap_paddr = next;
    for (unsigned i = 0; i < start->n_map; i++) {
        struct hvm_memmap_table_entry range = start->map[i];

        if (range.type == TYPE_SOFT_RESERVED)
            continue;
        memcpy(to, &range, sizeof(range));
        to += sizeof(range);
        info.memmap_entries++;
    }
    next += info.memmap_entries * sizeof(struct hvm_memmap_table_entry);
    info.nr_modules = n_hand;
    info.modlist_paddr = n_hand ? next : 0;
    entries = (void *)to;
    to += n_hand * sizeof(*entries);
    next += n_hand * sizeof(*entries);
    info.rsdp_paddr = start->rsdp;
    info.cmdline_paddr = put_text(&to, &next, cmdline);
    for (unsigned i = 0; i < n_hand; i++) {
        struct hvm_modlist_entry entry = {.paddr = hand[i].address, .size = hand[i].size};

        if (*hand[i].cmdline)
            entry.cmdline_paddr = put_text(&to, &next, hand[i].cmdline);
        memcpy(&entries[i], &entry, sizeof(entry));
    }
    memcpy(block, &info, sizeof(info));
}

/* ---- places ---- */

static uint32_t pages_of(uint64_t size)
{
    return (uint32_t)((size + PAGE - 1) / PAGE);
}

/* Where it can be read in the last step and by the next kernel: there, or a copy above limit. */
static uint32_t above(const struct start *start, uint32_t address, uint32_t size, uint64_t limit)
{
    uint32_t copy;

    if (address >= limit)
        return address;
    copy = take_pages(start, pages_of(size), limit);
    if (copy)
        memcpy((void *)(uintptr_t)copy, (const void *)(uintptr_t)address, size);
    return copy;
}

/* The kexec module first, as the posted code looks at the first entry alone. */
static int choose_handed(const struct start *start, unsigned which, uint32_t module,
                         uint32_t module_size)
{
    n_hand = 0;
    if (module_size)
        hand[n_hand++] = (struct handed){module, module_size, ""};
    for (unsigned i = 0; i < start->n_modules; i++)
        if (i != which && start->modules[i].address != module)
            hand[n_hand++] = start->modules[i];
    return n_hand <= MAX_MODULES ? 0 : -ENOSPC;
}

/* All that the next kernel takes is RAM, and nothing of it is the module's. */
static int is_clear(const struct start *start, uint32_t block, uint32_t size, uint32_t module,
                    uint32_t module_size)
{
    if (!is_ram(start, block, size) || (module_size && module < block + size))
        return 0;
    for (unsigned i = 0; i < wanted.n_actions; i++)
        if (!is_ram(start, wanted.actions[i].target, wanted.actions[i].size))
            return 0;
    return 1;
}

/* Everything the last step reads is put above limit; the actions' sources become addresses. */
static int find_places(const struct start *start, const struct handed *file, uint32_t block_at,
                       uint32_t size)
{
    uint64_t limit = (uint64_t)pages_of((uint64_t)block_at + size) * PAGE;
    uint32_t at = above(start, file->address, file->size, limit);
    uint32_t block = take_pages(start, pages_of(size), limit);

    page = (void *)(uintptr_t)take_pages(start, 1, limit);
    for (unsigned i = 0; i < n_hand; i++) {
        hand[i].address = above(start, hand[i].address, hand[i].size, limit);
        if (!hand[i].address)
            return -ENOMEM;
    }
    if (!at || !block || !page)
        return -ENOMEM;
    for (unsigned i = 0; i < wanted.n_actions; i++)
        wanted.actions[i].source =
            wanted.actions[i].source == ZEROES ? 0 : wanted.actions[i].source + at;
    build_block(start, (char *)(uintptr_t)block, kexec_names_buffer ? block : block_at,
                file->cmdline);
    wanted.start_info = block_at;
    return add_action(block_at, block, size);
}

int kexec_prepare(const struct start *start, unsigned which, uint32_t module,
                  uint32_t module_size)
{
    const struct handed *file = &start->modules[which];
    unsigned reserved_before = n_reserved();
    uint32_t block_at, size;
    uint64_t end;
    int result;

    if (which >= start->n_modules)
        return -EINVAL;
    memset(&wanted, 0, sizeof(wanted));
    result = analyse((const void *)(uintptr_t)file->address, file->size, &end);
    if (!result)
        result = choose_handed(start, which, module, module_size);
    if (result)
        return result;
    end = (end + BLOCK_ALIGN - 1) & ~(uint64_t)(BLOCK_ALIGN - 1);
    size = block_size(start, file->cmdline);
    block_at = (uint32_t)end;
    if (end >= MEMORY_TOP || !is_clear(start, block_at, size, module, module_size))
        return -EBUSY;
    result = find_places(start, file, block_at, size);
    if (result)
        reserved_only(reserved_before);
    return result;
}

_Noreturn void kexec_enter(void)
{
    uint32_t at = (uint32_t)(uintptr_t)page;

    memcpy(wanted.code, leave_start, (size_t)(leave_end - leave_start));
    wanted.gdt[1] = 0x00cf9b000000ffff;
    wanted.gdt[2] = 0x00cf93000000ffff;
    wanted.gdt_limit = sizeof(wanted.gdt) - 1;
    wanted.gdt_base = at + (uint32_t)offsetof(struct leave_page, gdt);
    memcpy(page, &wanted, sizeof(wanted));
    __asm__ volatile("jmp *%0" : : "a"((uintptr_t)at), "D"((uintptr_t)at) : "memory");
    __builtin_unreachable();
}
