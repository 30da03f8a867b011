/*
 * Commands for two kernels of a world that share pages and an event channel, beside script.c's.
 * Each page or frame has a slot, 0 to 7, by which the commands name it.
 *
 *   peer NAME              who the other domain is: waits for the node peer/NAME
 *   tell KEY N | hear KEY  the node data/KEY, for the other to read | the other's, waited for
 *   offer KEY | bind KEY   a port for the other, told as KEY | bound to what was told
 *   send | wait | close | state | port N       that port; state is EVTCHNSTAT_
 *   page SLOT | part SLOT N | hole SLOT | at SLOT N
 *                          a page of RAM | page N of the module | a frame given up | frame N
 *   put SLOT OFFSET BYTE | get SLOT OFFSET
 *   table                  the grant table is where it can be written; done by grant too
 *   grant REF SLOT FLAGS | ungrant REF         GTF_ flags of version 1; the other's entry
 *   map SLOT REF FLAGS | unmap SLOT | handle SLOT N        GNTMAP_ flags; the status
 *   take REF OFFSET SLOT N | give REF OFFSET SLOT N        grant copy of N bytes; the status
 *   watch PATH | event     Xenstore
 *   nap US
 */

#include "runtime.h"
#include "script.h"
#include "store.h"

#include <errno.h>
#include <string.h>

enum { HC_memory_op = 12, HC_grant_table_op = 20, HC_event_channel_op = 32 };
enum { MEM_decrease_reservation = 1, MEM_add_to_physmap = 7, SPACE_grant_table = 1 };
enum { GNT_map = 0, GNT_unmap = 1, GNT_copy = 5, COPY_source_ref = 1, COPY_dest_ref = 2 };
enum { EVTCHN_bind_interdomain = 0, EVTCHN_close = 3, EVTCHN_send = 4, EVTCHN_status = 5 };
enum { EVTCHN_alloc_unbound = 6, DOMID_SELF = 0x7ff0, TABLE_GFN = 0xfeff6, N_SLOTS = 8 };
enum { GTF_reading = 8, GTF_writing = 16 };

struct entry {
    uint16_t flags, domid;
    uint32_t frame;
};

static volatile struct entry *table;
static uint32_t slots[N_SLOTS], handles[N_SLOTS], port;
static unsigned peer, self;
static int store_runs;

static void need_store(void)
{
    char text[16];
    const char *at = text;

    if (store_runs)
        return;
    store_start();
    store_runs = 1;
    if (store_read("domid", text, sizeof(text)) < 0)
        panic("no domid");
    self = number(&at);
}

static long call(unsigned which, long op, void *arg, long n)
{
    return hypercall(which, op, (long)arg, n, 0, 0);
}

/* ---- text ---- */

static unsigned word(const char **at, char *to, unsigned size)
{
    unsigned n = 0;

    while (**at && **at != ' ' && **at != ';' && n + 1 < size)
        to[n++] = *(*at)++;
    to[n] = 0;
    while (**at == ' ')
        ++*at;
    return n;
}

static char *decimal(char *to, unsigned value)
{
    char digits[10];
    unsigned n = 0;

    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        *to++ = digits[--n];
    *to = 0;
    return to;
}

/* ---- names and numbers through Xenstore ---- */

static unsigned await_number(const char *path)
{
    char text[16];
    const char *at = text;

    need_store();
    while (store_read(path, text, sizeof(text)) <= 0)
        nap(1000);
    return number(&at);
}

static int find_peer(const char **at)
{
    char path[64] = "peer/";

    word(at, path + 5, sizeof(path) - 5);
    return (int)(peer = await_number(path));
}

static int tell(const char *key, unsigned value)
{
    char path[64] = "data/", text[16];
    int result;

    need_store();
    memcpy(path + 5, key, strlen(key) + 1);
    decimal(text, value);
    result = store_write(path, text);
    return result ? result : store_let_read(path, self, peer);
}

static unsigned hear(const char *key)
{
    char path[96] = "/local/domain/", *end = decimal(path + 14, peer);

    memcpy(end, "/data/", 6);
    memcpy(end + 6, key, strlen(key) + 1);
    return await_number(path);
}

/* ---- the port ---- */

static int offer(const char *key)
{
    struct {
        uint16_t domid, remote;
        uint32_t port;
    } arg = {DOMID_SELF, (uint16_t)peer, 0};
    long result = call(HC_event_channel_op, EVTCHN_alloc_unbound, &arg, 0);

    if (result)
        return (int)result;
    port = arg.port;
    return tell(key, port);
}

static int bind(const char *key)
{
    struct {
        uint16_t domid, pad;
        uint32_t remote, port;
    } arg = {(uint16_t)peer, 0, hear(key), 0};
    long result = call(HC_event_channel_op, EVTCHN_bind_interdomain, &arg, 0);

    port = arg.port;
    if (!result)
        await_event(port); /* pending from the start */
    return (int)result;
}

static int state(void)
{
    struct {
        uint16_t domid, pad;
        uint32_t port, status, vcpu, u[2];
    } arg = {DOMID_SELF, 0, port, 0, 0, {0}};
    long result = call(HC_event_channel_op, EVTCHN_status, &arg, 0);

    return result ? (int)result : (int)arg.status;
}

/* ---- pages and frames ---- */

static uint32_t *slot(const char **at)
{
    unsigned n = number(at);

    if (n >= N_SLOTS)
        panic("no slot %u", n);
    return &slots[n];
}

static int new_page(uint32_t *to)
{
    *to = take_pages(&start, 1, 0);
    if (!*to)
        return -ENOMEM;
    memset((void *)(uintptr_t)*to, 0, PAGE);
    return 0;
}

static int hole(uint32_t *to)
{
    unsigned long gfn;
    struct {
        unsigned long *extents, n;
        unsigned order, flags;
        uint16_t domid;
    } arg = {&gfn, 1, 0, 0, DOMID_SELF};
    int result = new_page(to);

    gfn = *to / PAGE;
    return result ? result : (int)call(HC_memory_op, MEM_decrease_reservation, &arg, 0) - 1;
}

static volatile uint8_t *byte(const char **at)
{
    uint32_t page = *slot(at);

    return (void *)(uintptr_t)(page + number(at) % PAGE);
}

/* ---- grants ---- */

static int need_table(void)
{
    struct {
        uint16_t domid, size;
        unsigned space;
        unsigned long index, gfn;
    } arg = {DOMID_SELF, 0, SPACE_grant_table, 0, TABLE_GFN};
    long result = 0;

    if (!table)
        result = call(HC_memory_op, MEM_add_to_physmap, &arg, 0);
    table = (void *)((uintptr_t)TABLE_GFN * PAGE);
    return (int)result;
}

static int grant(unsigned ref, uint32_t page, unsigned flags)
{
    if (need_table())
        return -ENOMEM;
    table[ref].frame = page / PAGE;
    table[ref].domid = (uint16_t)peer;
    __asm__ volatile("" : : : "memory");
    table[ref].flags = (uint16_t)flags;
    return 0;
}

/* What the entry's flags were; they are taken away only from one that is not in use. */
static int ungrant(unsigned ref)
{
    uint16_t flags = (need_table(), table[ref].flags);

    while (!(flags & (GTF_reading | GTF_writing)) &&
           !__atomic_compare_exchange_n(&table[ref].flags, &flags, 0, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
    }
    return flags;
}

static int map(unsigned n, unsigned ref, unsigned flags)
{
    struct {
        uint64_t address;
        uint32_t flags, ref;
        uint16_t domid;
        int16_t status;
        uint32_t handle;
        uint64_t bus;
    } arg = {slots[n], flags, ref, (uint16_t)peer, 0, 0, 0};
    long result = call(HC_grant_table_op, GNT_map, &arg, 1);

    handles[n] = arg.handle;
    return result ? (int)result : arg.status;
}

static int unmap(unsigned n)
{
    struct {
        uint64_t address, bus;
        uint32_t handle;
        int16_t status;
    } arg = {slots[n], 0, handles[n], 0};
    long result = call(HC_grant_table_op, GNT_unmap, &arg, 1);

    return result ? (int)result : arg.status;
}

struct copy_end {
    union {
        uint32_t ref;
        unsigned long gfn;
    } of;
    uint16_t domid, offset;
};

static int copy(unsigned ref, unsigned offset, uint32_t page, unsigned n, int is_giving)
{
    struct {
        struct copy_end from, to;
        uint16_t length, flags;
        int16_t status;
    } arg = {.length = (uint16_t)n, .flags = is_giving ? COPY_dest_ref : COPY_source_ref};
    struct copy_end *theirs = is_giving ? &arg.to : &arg.from;
    struct copy_end *ours = is_giving ? &arg.from : &arg.to;
    long result;

    theirs->of.ref = ref;
    theirs->domid = (uint16_t)peer;
    theirs->offset = (uint16_t)offset;
    ours->of.gfn = page / PAGE;
    ours->domid = DOMID_SELF;
    result = call(HC_grant_table_op, GNT_copy, &arg, 1);
    return result ? (int)result : arg.status;
}

/* ---- commands ---- */

static int with_key(const char **at, int *result)
{
    char key[32];

    if (is_word(at, "peer")) {
        *result = find_peer(at);
    } else if (is_word(at, "tell")) {
        word(at, key, sizeof(key));
        *result = tell(key, number(at));
    } else if (is_word(at, "hear")) {
        word(at, key, sizeof(key));
        *result = (int)hear(key);
    } else if (is_word(at, "offer")) {
        word(at, key, sizeof(key));
        *result = offer(key);
    } else if (is_word(at, "bind")) {
        word(at, key, sizeof(key));
        *result = bind(key);
    } else if (is_word(at, "watch")) {
        need_store();
        word(at, key, sizeof(key));
        *result = store_watch(key);
    } else if (is_word(at, "event")) {
        store_event();
        *result = 0;
    } else {
        return 0;
    }
    return 1;
}

static int with_port(const char **at, int *result)
{
    *result = 0;
    if (is_word(at, "send"))
        *result = (int)call(HC_event_channel_op, EVTCHN_send, &port, 0);
    else if (is_word(at, "wait"))
        await_event(port);
    else if (is_word(at, "close"))
        *result = (int)call(HC_event_channel_op, EVTCHN_close, &port, 0);
    else if (is_word(at, "state"))
        *result = state();
    else if (is_word(at, "port"))
        port = number(at);
    else if (is_word(at, "nap"))
        nap(number(at));
    else
        return 0;
    return 1;
}

static int with_slot(const char **at, int *result)
{
    uint32_t *to;
    volatile uint8_t *where;

    *result = 0;
    if (is_word(at, "page")) {
        *result = new_page(slot(at));
    } else if (is_word(at, "part")) {
        to = slot(at);
        *to = (uint32_t)(uintptr_t)module.start + number(at) * PAGE;
    } else if (is_word(at, "hole")) {
        *result = hole(slot(at));
    } else if (is_word(at, "at")) {
        to = slot(at);
        *to = number(at) * PAGE;
    } else if (is_word(at, "put")) {
        where = byte(at);
        *where = (uint8_t)number(at);
    } else if (is_word(at, "get")) {
        *result = *byte(at);
    } else {
        return 0;
    }
    return 1;
}

static int with_grant(const char **at, int *result)
{
    unsigned ref, a, b;
    uint32_t page;
    int is_giving;

    if (is_word(at, "table")) {
        *result = need_table();
    } else if (is_word(at, "grant")) {
        ref = number(at);
        page = *slot(at);
        *result = grant(ref, page, number(at));
    } else if (is_word(at, "ungrant")) {
        *result = ungrant(number(at));
    } else if (is_word(at, "map")) {
        a = (unsigned)(slot(at) - slots);
        ref = number(at);
        *result = map(a, ref, number(at));
    } else if (is_word(at, "unmap")) {
        *result = unmap((unsigned)(slot(at) - slots));
    } else if (is_word(at, "handle")) {
        a = (unsigned)(slot(at) - slots);
        *result = (int)(handles[a] = number(at));
    } else if ((is_giving = is_word(at, "give")) || is_word(at, "take")) {
        ref = number(at);
        a = number(at);
        page = *slot(at);
        b = number(at);
        *result = copy(ref, a, page, b, is_giving);
    } else {
        return 0;
    }
    return 1;
}

int run_more(const char **at, int *result)
{
    return with_key(at, result) || with_port(at, result) || with_slot(at, result) ||
           with_grant(at, result);
}
