/* See posted.h. Offsets count from the start of the administration page, the module's last. */

#include "posted.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static unsigned char *page_of(const struct posted *p)
{
    return (unsigned char *)p->mod;
}

static unsigned entry_at(const struct posted *p, unsigned index)
{
    return p->mod->recs_off + index * (unsigned)sizeof(struct kexec_module_rec);
}

/* By copy, as a table may start at an odd offset. */
struct kexec_module_rec posted_entry(const struct posted *p, unsigned index)
{
    struct kexec_module_rec rec;

    memcpy(&rec, page_of(p) + entry_at(p, index), sizeof(rec));
    return rec;
}

static void set_entry(struct posted *p, unsigned index, struct kexec_module_rec rec)
{
    memcpy(page_of(p) + entry_at(p, index), &rec, sizeof(rec));
}

static int defect(const struct posted *p, unsigned which)
{
    return (p->defects & which) != 0;
}

static int is_used(const struct posted *p, unsigned index)
{
    return index < p->mod->n_records && posted_entry(p, index).type != 0;
}

/* Where record data ends, from what the table says: all that the next kernel can know. */
static unsigned end_by_table(const struct posted *p)
{
    unsigned end = entry_at(p, p->mod->n_records);

    for (unsigned i = 0; i < p->mod->n_records; i++) {
        struct kexec_module_rec rec = posted_entry(p, i);

        if (rec.type != 0 && (unsigned)rec.offset + rec.size > end)
            end = (unsigned)rec.offset + rec.size;
    }
    return end;
}

static int full(const struct posted *p)
{
    if (defect(p, DEFECT_FULL))
        abort();
    return -ENOSPC;
}

int posted_create(struct posted *p, unsigned char *start, unsigned n_module_pages)
{
    unsigned n_pages = n_module_pages - 1;

    if (n_module_pages == 0 || n_module_pages > POSTED_MAX_PAGES) {
        if (!defect(p, DEFECT_MAKE))
            return -EINVAL;
        if (n_module_pages == 0) {
            /* Nothing was reserved, and the pointer to it is used all the same. */
            n_pages = 0;
            start = NULL;
        }
    }
    p->start = start;
    p->mod = (struct kexec_module *)(void *)(start + (size_t)n_pages * POSTED_PAGE);
    memset(p->mod, 0, POSTED_PAGE);
    memcpy(p->mod->eye_catcher, "KexecMem", 8);
    p->mod->n_pages = (uint16_t)n_pages;
    p->mod->n_records = POSTED_FRESH_RECORDS;
    p->mod->recs_off = (uint16_t)(14 + n_pages + (n_pages & 1));
    memset(p->mod->pg2rec, POSTED_FREE, n_pages);
    for (unsigned i = 0; i < POSTED_FRESH_RECORDS; i++)
        set_entry(p, i, (struct kexec_module_rec){0});
    p->end = end_by_table(p);
    return 0;
}

int posted_attach(struct posted *p, unsigned char *start, size_t size)
{
    struct kexec_module *mod;

    if (size == 0 || size % POSTED_PAGE)
        return -EINVAL;
    mod = (struct kexec_module *)(void *)(start + size - POSTED_PAGE);
    if (memcmp(mod->eye_catcher, "KexecMem", 8) || mod->n_pages != size / POSTED_PAGE - 1)
        return -EINVAL;
    p->start = start;
    p->mod = mod;
    p->end = end_by_table(p);
    return 0;
}

int posted_add(struct posted *p, unsigned type, const void *data, unsigned size)
{
    struct kexec_module_rec rec;
    unsigned index;

    if ((type == 0 || type > 255) && !defect(p, DEFECT_TYPE))
        return -EINVAL;
    if (size > 255 && !defect(p, DEFECT_SIZE))
        return -EINVAL;
    for (index = 0; index < p->mod->n_records; index++)
        if (posted_entry(p, index).type == 0)
            break;
    if (index == p->mod->n_records || size > POSTED_PAGE - p->end)
        return full(p);
    rec.offset = (uint16_t)p->end;
    rec.type = (uint8_t)type;
    rec.size = (uint8_t)size;
    memcpy(page_of(p) + rec.offset, data, size);
    set_entry(p, index, rec);
    p->end += size;
    return (int)index;
}

int posted_find(const struct posted *p, unsigned index, unsigned type)
{
    for (; index < p->mod->n_records; index++)
        if (posted_entry(p, index).type == type)
            return (int)index;
    return -ENOENT;
}

int posted_read(const struct posted *p, unsigned index, void *data, unsigned size)
{
    struct kexec_module_rec rec;

    if (index >= p->mod->n_records)
        return -ENOENT;
    rec = posted_entry(p, index);
    if (rec.size != size)
        return -EINVAL;
    memcpy(data, page_of(p) + rec.offset, size);
    return 0;
}

int posted_update(struct posted *p, unsigned index, unsigned type, const void *data, unsigned size)
{
    struct kexec_module_rec rec;

    if (index >= p->mod->n_records)
        return -ENOENT;
    rec = posted_entry(p, index);
    if (rec.type != type || rec.size != size)
        return -EINVAL;
    memcpy(page_of(p) + rec.offset, data, size);
    return 0;
}

int posted_alloc(struct posted *p, unsigned index, unsigned n)
{
    unsigned looked_at = defect(p, DEFECT_LAST_PAGE) ? n - 1 : n;
    unsigned first, found;

    if (!is_used(p, index))
        return -ENOENT;
    if (n == 0)
        return -EINVAL;
    for (first = 0; n <= p->mod->n_pages && first <= p->mod->n_pages - n; first++) {
        for (found = 0; found < looked_at; found++)
            if (p->mod->pg2rec[first + found] != POSTED_FREE)
                break;
        if (found == looked_at) {
            memset(p->mod->pg2rec + first, (int)index, n);
            return (int)first;
        }
    }
    return -ENOSPC;
}

int posted_free(struct posted *p, unsigned first, unsigned n)
{
    if (n == 0 || first > p->mod->n_pages || n > p->mod->n_pages - first)
        return -EINVAL;
    for (unsigned i = first; i < first + n; i++)
        if (p->mod->pg2rec[i] == POSTED_FREE)
            return -EINVAL;
    memset(p->mod->pg2rec + first, POSTED_FREE, n);
    return 0;
}
