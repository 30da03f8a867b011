/*
 * A 9pfs front end: rings on granted pages, and one 9P2000.u request at a time on each.
 *
 * From docs/misc/9pfs.pandoc and public/io/9pfs.h; the record in the kexec module is Mini-OS'
 * struct kexec_9pfs. Knows no Xenstore.
 */
#ifndef NINEPFRONT_H
#define NINEPFRONT_H

#include <stdint.h>

enum { MAX_RINGS = 4, MAX_ORDER = 6, MAX_MESSAGE = 8192 };

struct ring {
    volatile uint32_t *interface;
    unsigned char *pages[1 << MAX_ORDER];
    unsigned order;
    uint32_t ref, port, prod, cons;
};

/*
 * How the next request is sent, reset by it: only its first bytes_first bytes (all if 0), without
 * those that an earlier kernel sent already, without a notification, without waiting for a reply.
 */
extern struct how {
    unsigned bytes_first, bytes_there;
    int is_quiet, is_left;
} how;

/* Grant table entry ref: the page is domid's to see, or the entry is free again. */
void grant_page(unsigned ref, unsigned domid, const void *page, int is_readonly);
void end_grant(unsigned ref);

/* A page's address by the grant, or NULL if the entry has no such flags and domain. */
void *granted_page(unsigned ref, unsigned domid);

/* Fills in interface page and references for 1 + (1 << order) pages, and makes a port. */
int make_ring(struct ring *ring, unsigned char *const *pages, unsigned order, unsigned first_ref);

/* The ring that the kernel before left, by its grants: -EINVAL if they are not such. */
int take_ring(struct ring *ring, uint32_t ref, uint32_t port, uint32_t prod, uint32_t cons);

/* Tells the other end that there is something to see. */
void notify(struct ring *ring);

/* ---- messages: begun, filled, sent; then the reply's fields are taken in order ---- */

void message(unsigned type);
void add(unsigned bytes, uint64_t value);
void add_text(const char *text, unsigned n);
void add_data(const void *data, unsigned n);

/* Sends what was begun, as how says. 0 or the negative errno of the reply; 0 if it is left. */
int ask(struct ring *ring);

/* Waits for one reply. 0, or its negative errno. */
int await_reply(struct ring *ring);

/* The next field of the last reply. */
uint64_t take(unsigned bytes);
const unsigned char *take_bytes(unsigned n);
unsigned n_left(void);

/* What is wrong with the reply: another tag, another type; a panic if so. */
void expect(unsigned type);

#endif
