/*
 * See store.h. From docs/misc/xenstore-ring.txt and public/io/xs_wire.h.
 *
 * Nothing is interrupted here: a port is polled, its bit in the shared info page cleared by hand.
 */

#include "store.h"
#include "runtime.h"

#include <errno.h>
#include <string.h>

enum { HC_sched_op = 29, HC_event_channel_op = 32, HC_hvm_op = 34 };
enum { SCHED_poll = 3, EVTCHN_send = 4, HVM_get_param = 1 };
enum { PARAM_store_pfn = 1, PARAM_store_evtchn = 2 };
enum { XS_DIRECTORY = 1, XS_READ = 2, XS_WATCH = 4, XS_WRITE = 11, XS_RM = 13, XS_SET_PERMS = 14 };
enum { XS_WATCH_EVENT = 15, XS_ERROR = 16, RING = 1024, DOMID_SELF = 0x7ff0 };
enum { MAX_EVENTS = 8, MAX_PATH = 128 };

#define SHARED 0xfeff7000ul /* where xen.c has the shared info page */

struct ring {
    char req[RING], rsp[RING];
    uint32_t req_cons, req_prod, rsp_cons, rsp_prod;
};

static volatile struct ring *ring;
static uint32_t port;
static unsigned n_events, n_taken_events;
static char event_paths[MAX_EVENTS][MAX_PATH];

static uint64_t param(uint32_t index)
{
    struct {
        uint16_t domid, pad;
        uint32_t index;
        uint64_t value;
    } arg = {DOMID_SELF, 0, index, 0};

    if (hypercall(HC_hvm_op, HVM_get_param, (long)&arg, 0, 0, 0))
        panic("no parameter %u", index);
    return arg.value;
}

void store_start(void)
{
    ring = (void *)(uintptr_t)(param(PARAM_store_pfn) * PAGE);
    port = (uint32_t)param(PARAM_store_evtchn);
}

/* ---- waiting ---- */

static void poll(uint32_t *ports, unsigned n, uint64_t until_ns)
{
    struct {
        uint32_t *ports;
        unsigned n;
        uint64_t until_ns;
    } arg = {ports, n, until_ns};

    /* What was announced is known: a word that is set already would wake nobody. */
    *(volatile uint8_t *)SHARED = 0;
    *(volatile unsigned long *)(SHARED + sizeof(long)) = 0;
    hypercall(HC_sched_op, SCHED_poll, (long)&arg, 0, 0, 0);
}

void await_event(uint32_t which)
{
    volatile uint32_t *pending = (volatile uint32_t *)(SHARED + 2048) + which / 32;
    uint32_t bit = 1u << which % 32;

    while (!(*pending & bit))
        poll(&which, 1, 0);
    __atomic_and_fetch(pending, ~bit, __ATOMIC_SEQ_CST);
}

void nap(unsigned us)
{
    poll(NULL, 0, now_ns() + us * 1000ull);
}

static void kick(void)
{
    hypercall(HC_event_channel_op, EVTCHN_send, (long)&port, 0, 0, 0);
}

/* ---- bytes ---- */

static void send(const void *bytes, unsigned n)
{
    const char *from = bytes;

    while (n--) {
        while (ring->req_prod - ring->req_cons >= RING) {
            kick();
            await_event(port);
        }
        ring->req[ring->req_prod % RING] = *from++;
        __asm__ volatile("" : : : "memory");
        ring->req_prod++;
    }
}

/* The next n bytes; what does not fit is lost. */
static void receive(void *bytes, unsigned n, unsigned size)
{
    char *to = bytes;

    for (unsigned i = 0; i < n; i++) {
        while (ring->rsp_prod == ring->rsp_cons) {
            kick();
            await_event(port);
        }
        if (i < size)
            to[i] = ring->rsp[ring->rsp_cons % RING];
        __asm__ volatile("" : : : "memory");
        ring->rsp_cons++;
    }
}

/* Counted, and the path kept; of more than MAX_EVENTS the oldest are forgotten. */
static void keep_event(const char *path, unsigned size)
{
    char *to = event_paths[(n_taken_events + n_events++) % MAX_EVENTS];

    size = size < MAX_PATH ? size : MAX_PATH - 1;
    memcpy(to, path, size);
    to[size] = 0;
}

/* The next message; its kind. Events are kept. */
static uint32_t receive_message(char *payload, unsigned size, unsigned *length)
{
    uint32_t head[4];

    receive(head, sizeof(head), sizeof(head));
    receive(payload, head[3], size);
    *length = head[3];
    if (head[0] == XS_WATCH_EVENT)
        keep_event(payload, head[3] < size ? head[3] : size);
    return head[0];
}

/* ---- requests ---- */

static int request(uint32_t kind, const char *payload, unsigned n, char *answer, unsigned size)
{
    uint32_t head[4] = {kind, 0, 0, n}, found;
    unsigned length;

    send(head, sizeof(head));
    send(payload, n);
    do
        found = receive_message(answer, size, &length);
    while (found == XS_WATCH_EVENT);
    return found == XS_ERROR ? -ENOENT : (int)(length < size ? length : size);
}

/* Two strings, one after the other; the second one's NUL counts if it is to. */
static int request_two(uint32_t kind, const char *one, const char *other, int with_nul)
{
    char payload[256], answer[16];
    size_t first = strlen(one) + 1, second = strlen(other) + (size_t)with_nul;

    if (first + second > sizeof(payload))
        return -EINVAL;
    memcpy(payload, one, first);
    memcpy(payload + first, other, second);
    return request(kind, payload, (unsigned)(first + second), answer, sizeof(answer)) < 0 ? -EINVAL
                                                                                           : 0;
}

int store_read(const char *path, char *value, unsigned size)
{
    int n = request(XS_READ, path, (unsigned)strlen(path) + 1, value, size - 1);

    value[n < 0 ? 0 : n] = 0;
    return n;
}

int store_list(const char *path, char *names, unsigned size)
{
    return request(XS_DIRECTORY, path, (unsigned)strlen(path) + 1, names, size);
}

int store_remove(const char *path)
{
    char answer[16];
    int n = request(XS_RM, path, (unsigned)strlen(path) + 1, answer, sizeof(answer));

    return n < 0 ? -EINVAL : 0;
}

int store_write(const char *path, const char *value)
{
    return request_two(XS_WRITE, path, value, 0);
}

int store_watch(const char *path)
{
    return request_two(XS_WATCH, path, "token", 1);
}

static char *put_entry(char *to, char letter, unsigned domid)
{
    char digits[10];
    unsigned n = 0;

    *to++ = letter;
    do
        digits[n++] = (char)('0' + domid % 10);
    while (domid /= 10);
    while (n)
        *to++ = digits[--n];
    *to++ = 0;
    return to;
}

int store_let_read(const char *path, unsigned owner, unsigned reader)
{
    char payload[256], answer[16], *end;
    size_t n = strlen(path) + 1;

    if (n > sizeof(payload) - 32)
        return -EINVAL;
    memcpy(payload, path, n);
    end = put_entry(put_entry(payload + n, 'n', owner), 'r', reader);
    return request(XS_SET_PERMS, payload, (unsigned)(end - payload), answer, sizeof(answer)) < 0
               ? -EINVAL
               : 0;
}

void store_event(void)
{
    char payload[256];
    unsigned length;

    while (!n_events)
        receive_message(payload, sizeof(payload), &length);
    n_events--;
    n_taken_events++;
}

const char *store_event_path(void)
{
    return event_paths[(n_taken_events - 1) % MAX_EVENTS];
}
