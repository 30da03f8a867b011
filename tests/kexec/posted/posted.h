/*
 * The kexec module as the posted Mini-OS code keeps it (include/kexec.h, July 2025), written anew
 * from the format's description: an independent witness for the tests, by nobody else used.
 *
 * One implementation, twice: as the code is meant, and with the defects it was posted with. Each
 * defect is a bit of `posted.defects`; with none set every call does what its comment says.
 *
 * All calls return a number from 0 on, or a negative errno.
 */
#ifndef POSTED_H
#define POSTED_H

#include <stddef.h>
#include <stdint.h>

#define POSTED_PAGE 4096u
#define POSTED_FREE 255u
#define POSTED_FRESH_RECORDS 16u
#define POSTED_MAX_PAGES 4019u

struct kexec_module {
    uint8_t eye_catcher[8];
    uint16_t n_pages;
    uint16_t n_records;
    uint16_t recs_off;
    uint8_t pg2rec[];
};

struct kexec_module_rec {
    uint16_t offset;
    uint8_t type;
    uint8_t size;
};

struct kexec_9pfs {
    uint32_t ring_ref;
    uint32_t evtchn;
    uint32_t prod_pvt_out;
    uint32_t cons_pvt_in;
};

enum {
    DEFECT_LAST_PAGE = 1, /* a run's last page is not looked at; a single page is its own last */
    DEFECT_SIZE = 2,      /* sizes of 256 and more are stored modulo 256 */
    DEFECT_TYPE = 4,      /* types of 256 and more are stored modulo 256 */
    DEFECT_FULL = 8,      /* no entry or no room left stops the machine */
    DEFECT_MAKE = 16,     /* a module is made in any size: of no page, or larger than its page */
};

/* What a kernel keeps in variables of its own, and so loses at kexec. */
struct posted {
    unsigned char *start;
    struct kexec_module *mod;
    unsigned end; /* where the next record's data goes */
    unsigned defects;
};

/* A fresh module of n_module_pages at start. EINVAL for a number that no module has. */
int posted_create(struct posted *p, unsigned char *start, unsigned n_module_pages);

/* The module of size bytes at start, if it passes the three checks; EINVAL if not. */
int posted_attach(struct posted *p, unsigned char *start, size_t size);

/* Index of a new record. EINVAL for its type or size, ENOSPC when the table or page is full. */
int posted_add(struct posted *p, unsigned type, const void *data, unsigned size);

/* Index of the first record of type from index on; type 0 finds an unused entry. ENOENT. */
int posted_find(const struct posted *p, unsigned index, unsigned type);

/* Copies a record's data. ENOENT for its index, EINVAL if its size is another. */
int posted_read(const struct posted *p, unsigned index, void *data, unsigned size);

/* Replaces a record's data. ENOENT for its index, EINVAL if its type or size is another. */
int posted_update(struct posted *p, unsigned index, unsigned type, const void *data, unsigned size);

/* First of n pages side by side that are the record's now. ENOENT, EINVAL for no page, ENOSPC. */
int posted_alloc(struct posted *p, unsigned index, unsigned n);

/* Gives n pages from first on back. EINVAL unless all of them are owned. */
int posted_free(struct posted *p, unsigned first, unsigned n);

/* An entry of the record table, used or not; index is below n_records. */
struct kexec_module_rec posted_entry(const struct posted *p, unsigned index);

#endif
