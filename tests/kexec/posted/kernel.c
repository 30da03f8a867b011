/*
 * A kernel that knows the posted format only, as a process: commands on stdin, one a line, and for
 * each a line on stdout. Its memory is the file that it is started with, shared with the test.
 *
 *   map OFFSET SIZE        the module's place in the file; the pages around it are not accessible
 *   defects BITS           see posted.h
 *   create PAGES | attach
 *   add TYPE HEX | find INDEX TYPE | read INDEX SIZE | update INDEX TYPE HEX
 *   alloc INDEX N | free FIRST N
 *   show                   n_pages n_records recs_off, owners, entries, end
 *   layout                 names and numbers as the compiler has them
 *   sync                   answers that wait are written: a whole sequence is one round trip
 *
 * A call's answer is `RESULT CRC`, the CRC-32 being the administration page's after it (0 without
 * one); `read` adds the data in hex.
 */
#define _GNU_SOURCE

#include "posted.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LINE 16384

static struct posted module;
static unsigned char *start;
static size_t size;
static int memory;

static unsigned crc32_of(const unsigned char *data, size_t n)
{
    static unsigned table[256];
    unsigned crc = ~0u;

    if (table[1] == 0)
        for (unsigned i = 0; i < 256; i++) {
            table[i] = i;
            for (int bit = 0; bit < 8; bit++)
                table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
        }
    while (n--)
        crc = crc >> 8 ^ table[(crc ^ *data++) & 255];
    return ~crc;
}

static void answer(int result)
{
    printf("%d %u\n", result, module.mod ? crc32_of((void *)module.mod, POSTED_PAGE) : 0);
}

static unsigned from_hex(const char *hex, unsigned char *data)
{
    unsigned n = 0, byte;

    for (; sscanf(hex, "%2x", &byte) == 1; hex += 2)
        data[n++] = (unsigned char)byte;
    return n;
}

static int map(size_t offset, size_t wanted)
{
    unsigned char *room;

    if (start)
        munmap(start - POSTED_PAGE, size + 2 * POSTED_PAGE);
    module.mod = NULL;
    size = wanted;
    room = mmap(NULL, size + 2 * POSTED_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED)
        return -errno;
    start = mmap(room + POSTED_PAGE, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory,
                 (off_t)offset);
    return start == MAP_FAILED ? -errno : 0;
}

static void show(void)
{
    const struct kexec_module *mod = module.mod;

    printf("%u %u %u ", mod->n_pages, mod->n_records, mod->recs_off);
    for (unsigned i = 0; i < mod->n_pages; i++)
        printf("%02x", mod->pg2rec[i]);
    printf(" ");
    for (unsigned i = 0; i < mod->n_records; i++) {
        struct kexec_module_rec rec = posted_entry(&module, i);

        printf("%u:%u:%u,", rec.offset, rec.type, rec.size);
    }
    printf(" %u\n", module.end);
}

#define SIZE(type) printf("%s=%zu ", #type, sizeof(type))
#define FIELD(type, field)                                                                        \
    printf("%s.%s=%zu:%zu ", #type, #field, offsetof(type, field), sizeof(((type *)0)->field))

static void layout(void)
{
    SIZE(struct kexec_module);
    FIELD(struct kexec_module, eye_catcher);
    FIELD(struct kexec_module, n_pages);
    FIELD(struct kexec_module, n_records);
    FIELD(struct kexec_module, recs_off);
    SIZE(struct kexec_module_rec);
    FIELD(struct kexec_module_rec, offset);
    FIELD(struct kexec_module_rec, type);
    FIELD(struct kexec_module_rec, size);
    SIZE(struct kexec_9pfs);
    FIELD(struct kexec_9pfs, ring_ref);
    FIELD(struct kexec_9pfs, evtchn);
    FIELD(struct kexec_9pfs, prod_pvt_out);
    FIELD(struct kexec_9pfs, cons_pvt_in);
    printf("pg2rec=%zu\n", offsetof(struct kexec_module, pg2rec));
}

static void read_record(unsigned index, unsigned wanted)
{
    unsigned char data[256];
    int result = wanted <= 255 ? posted_read(&module, index, data, wanted) : -EINVAL;

    printf("%d %u ", result, crc32_of((void *)module.mod, POSTED_PAGE));
    for (unsigned i = 0; result == 0 && i < wanted; i++)
        printf("%02x", data[i]);
    printf("\n");
}

static void run(const char *word, unsigned long a, unsigned long b, const char *hex)
{
    unsigned char data[LINE];
    unsigned n = from_hex(hex, data);

    if (!strcmp(word, "map"))
        answer(map(a, b));
    else if (!strcmp(word, "defects"))
        answer((int)(module.defects = (unsigned)a));
    else if (!strcmp(word, "create"))
        answer(posted_create(&module, start, (unsigned)a));
    else if (!strcmp(word, "attach"))
        answer(posted_attach(&module, start, size));
    else if (!strcmp(word, "add"))
        answer(posted_add(&module, (unsigned)a, data, n));
    else if (!strcmp(word, "find"))
        answer(posted_find(&module, (unsigned)a, (unsigned)b));
    else if (!strcmp(word, "read"))
        read_record((unsigned)a, (unsigned)b);
    else if (!strcmp(word, "update"))
        answer(posted_update(&module, (unsigned)a, (unsigned)b, data, n));
    else if (!strcmp(word, "alloc"))
        answer(posted_alloc(&module, (unsigned)a, (unsigned)b));
    else if (!strcmp(word, "free"))
        answer(posted_free(&module, (unsigned)a, (unsigned)b));
    else if (!strcmp(word, "show"))
        show();
    else if (!strcmp(word, "layout"))
        layout();
    else if (!strcmp(word, "sync"))
        fflush(stdout);
    else
        exit(2);
}

int main(int argc, char **argv)
{
    static char line[LINE];

    if (argc != 2 || (memory = open(argv[1], O_RDWR)) < 0)
        return 2;
    while (fgets(line, sizeof(line), stdin)) {
        char word[16] = "", *rest;
        int used = 0;
        unsigned long a, b;

        if (sscanf(line, "%15s%n", word, &used) != 1)
            return 2;
        a = strtoul(line + used, &rest, 10);
        b = strcmp(word, "add") ? strtoul(rest, &rest, 10) : 0;
        run(word, a, b, rest + strspn(rest, " "));
    }
    return 0;
}
