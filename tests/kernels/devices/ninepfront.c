/* See ninepfront.h. Both indices of this end are private; the shared ones are only written. */

#include "ninepfront.h"
#include "../pair/store.h"
#include "runtime.h"

#include <errno.h>
#include <string.h>

enum { HC_memory_op = 12, HC_event_channel_op = 32 };
enum { MEM_add_to_physmap = 7, SPACE_grant_table = 1, EVTCHN_alloc_unbound = 6, EVTCHN_send = 4 };
enum { DOMID_SELF = 0x7ff0, TABLE_GFN = 0xfeff6, BACKEND = 0 };
enum { GTF_permit_access = 1, GTF_type_mask = 3, GTF_readonly = 4 };
enum { IN_CONS = 0, IN_PROD = 1, OUT_CONS = 16, OUT_PROD = 17, RING_ORDER = 32, REF0 = 33 };
enum { RERROR = 107, TVERSION = 100, NOTAG = 0xffff, HEADER = 7 };

struct entry {
    uint16_t flags, domid;
    uint32_t frame;
};

struct how how;

static volatile struct entry *table;
static unsigned char out[MAX_MESSAGE], in[MAX_MESSAGE];
static unsigned n_out, n_in, in_at;

/* ---- grants ---- */

static volatile struct entry *entry(unsigned ref)
{
    struct {
        uint16_t domid, size;
        unsigned space;
        unsigned long index, gfn;
    } arg = {DOMID_SELF, 0, SPACE_grant_table, 0, TABLE_GFN};

    if (ref >= PAGE / sizeof(*table))
        panic("reference %u", ref);
    if (!table && hypercall(HC_memory_op, MEM_add_to_physmap, (long)&arg, 0, 0, 0))
        panic("no grant table");
    table = (void *)((uintptr_t)TABLE_GFN * PAGE);
    return &table[ref];
}

void grant_page(unsigned ref, unsigned domid, const void *page, int is_readonly)
{
    volatile struct entry *to = entry(ref);

    to->frame = (uint32_t)((uintptr_t)page / PAGE);
    to->domid = (uint16_t)domid;
    __asm__ volatile("" : : : "memory");
    to->flags = GTF_permit_access | (is_readonly ? GTF_readonly : 0);
}

void end_grant(unsigned ref)
{
    entry(ref)->flags = 0;
}

void *granted_page(unsigned ref, unsigned domid)
{
    volatile struct entry *from = entry(ref);

    if ((from->flags & (GTF_type_mask | GTF_readonly)) != GTF_permit_access ||
        from->domid != domid)
        return NULL;
    return (void *)((uintptr_t)from->frame * PAGE);
}

/* ---- rings ---- */

static uint32_t half(const struct ring *ring)
{
    return PAGE << (ring->order - 1);
}

/* The byte of the in or out ring that a running index stands for. */
static unsigned char *byte_at(const struct ring *ring, int is_out, uint32_t index)
{
    uint32_t place = (index & (half(ring) - 1)) + (is_out ? half(ring) : 0);

    return ring->pages[place / PAGE] + place % PAGE;
}

static int new_port(uint32_t *port)
{
    struct {
        uint16_t domid, remote;
        uint32_t port;
    } arg = {DOMID_SELF, BACKEND, 0};
    long result = hypercall(HC_event_channel_op, EVTCHN_alloc_unbound, (long)&arg, 0, 0, 0);

    *port = arg.port;
    return (int)result;
}

int make_ring(struct ring *ring, unsigned char *const *pages, unsigned order, unsigned first_ref)
{
    if (order < 1 || order > MAX_ORDER)
        return -EINVAL;
    memset(ring, 0, sizeof(*ring));
    memset(pages[0], 0, PAGE);
    ring->interface = (void *)pages[0];
    ring->order = order;
    ring->ref = first_ref;
    ring->interface[RING_ORDER] = order;
    grant_page(first_ref, BACKEND, pages[0], 0);
    for (unsigned i = 0; i < 1u << order; i++) {
        ring->pages[i] = pages[1 + i];
        ring->interface[REF0 + i] = first_ref + 1 + i;
        grant_page(first_ref + 1 + i, BACKEND, pages[1 + i], 0);
    }
    return new_port(&ring->port);
}

int take_ring(struct ring *ring, uint32_t ref, uint32_t port, uint32_t prod, uint32_t cons)
{
    memset(ring, 0, sizeof(*ring));
    ring->interface = granted_page(ref, BACKEND);
    if (!ring->interface)
        return -EINVAL;
    ring->order = ring->interface[RING_ORDER];
    if (ring->order < 1 || ring->order > MAX_ORDER)
        return -EINVAL;
    for (unsigned i = 0; i < 1u << ring->order; i++) {
        ring->pages[i] = granted_page(ring->interface[REF0 + i], BACKEND);
        if (!ring->pages[i])
            return -EINVAL;
    }
    ring->ref = ref;
    ring->port = port;
    ring->prod = prod;
    ring->cons = cons;
    return ring->interface[OUT_PROD] == prod && ring->interface[IN_CONS] == cons ? 0 : -EINVAL;
}

void notify(struct ring *ring)
{
    long result =
        hypercall(HC_event_channel_op, EVTCHN_send, (long)&ring->port, 0, 0, 0);

    if (result)
        panic("port %u: %d", ring->port, (int)result);
}

static void put(struct ring *ring, const unsigned char *bytes, unsigned n)
{
    for (; n; n--) {
        while (ring->prod - ring->interface[OUT_CONS] >= half(ring)) {
            ring->interface[OUT_PROD] = ring->prod;
            notify(ring);
            await_event(ring->port);
        }
        *byte_at(ring, 1, ring->prod++) = *bytes++;
    }
    __asm__ volatile("" : : : "memory"); /* x86 keeps the order of stores, the compiler must */
    ring->interface[OUT_PROD] = ring->prod;
}

static void get(struct ring *ring, unsigned char *bytes, unsigned n)
{
    for (; n; n--) {
        while (ring->interface[IN_PROD] == ring->cons) {
            ring->interface[IN_CONS] = ring->cons;
            notify(ring);
            await_event(ring->port);
        }
        *bytes++ = *byte_at(ring, 0, ring->cons++);
    }
    __asm__ volatile("" : : : "memory");
    ring->interface[IN_CONS] = ring->cons;
}

/* ---- messages ---- */

void add(unsigned bytes, uint64_t value)
{
    add_data(&value, bytes);
}

void add_data(const void *data, unsigned n)
{
    if (n > sizeof(out) - n_out)
        panic("too long a message");
    memcpy(out + n_out, data, n);
    n_out += n;
}

void add_text(const char *text, unsigned n)
{
    add(2, n);
    add_data(text, n);
}

void message(unsigned type)
{
    n_out = 0;
    add(4, 0);
    add(1, type);
    add(2, type == TVERSION ? NOTAG : 1);
}

int ask(struct ring *ring)
{
    struct how sent = how;
    unsigned end = sent.bytes_first && sent.bytes_first < n_out ? sent.bytes_first : n_out;

    memset(&how, 0, sizeof(how));
    memcpy(out, &n_out, 4);
    if (sent.bytes_there > end)
        panic("%u bytes are there already", sent.bytes_there);
    put(ring, out + sent.bytes_there, end - sent.bytes_there);
    if (!sent.is_quiet)
        notify(ring);
    return sent.is_left ? 0 : await_reply(ring);
}

int await_reply(struct ring *ring)
{
    uint32_t size, error;

    get(ring, in, HEADER);
    memcpy(&size, in, 4);
    if (size < HEADER || size > sizeof(in))
        panic("a reply of %u bytes", size);
    get(ring, in + HEADER, size - HEADER);
    n_in = size;
    in_at = HEADER;
    if (in[4] != RERROR)
        return 0;
    take_bytes((unsigned)take(2));
    error = (uint32_t)take(4);
    return -(int)error;
}

uint64_t take(unsigned bytes)
{
    uint64_t value = 0;

    memcpy(&value, take_bytes(bytes), bytes);
    return value;
}

const unsigned char *take_bytes(unsigned n)
{
    if (n > n_in - in_at)
        panic("too short a reply: type %u of %u bytes", in[4], n_in);
    in_at += n;
    return in + in_at - n;
}

unsigned n_left(void)
{
    return n_in - in_at;
}

void expect(unsigned type)
{
    if (in[4] != type)
        panic("reply of type %u, not %u", in[4], type);
}
