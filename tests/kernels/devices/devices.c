/*
 * Commands for a kernel with a 9pfs device and a Xenstore client, beside script.c's.
 *
 *   node PATH | nodes PATH | write PATH VALUE | gone PATH      one node: read, listed, ...
 *   watch PATH | event             a watch, and the next event: its path is said
 *   device ID | front NAME VALUE   which device; a node of its front end
 *   back STATE                     waits until its back end is in that state
 *   rings N ORDER                  rings in pages of RAM, or with a module in its pages, each with a
 *                                  record, their indices from the first free one on
 *   offer | connect                the front end's nodes; and both ends Connected
 *   save INDEX | retake INDEX      ring 0's private indices to its record | ring 0 from a record
 *   ring N                         which ring the requests go to
 *   first N | there N | quiet | left            how the next request is sent: ninepfront.h
 *   reply | kick                   waits for one that was left | notifies the other end
 *   version | attach FID | walk FID NEW [NAME] | open FID MODE | create FID MODE PERMISSIONS NAME
 *   get FID OFFSET COUNT | list FID | put FID OFFSET TEXT | pour FID OFFSET N | stat FID
 *   clunk FID | remove FID
 *   lie WORD VALUE | ref RING REF | port N | readonly REF | revoke REF
 *                                  what an honest front end never does: a word of ring 0's
 *                                  interface page, other references and ports, other grants
 */

#include "devices.h"
#include "../pair/store.h"
#include "runtime.h"
#include "script.h"

#include <errno.h>
#include <string.h>

enum { FIRST_REF = 8, REFS_EACH = 120, CONNECTED = 4, RECORD_9PFS = 1 };

static struct ring rings[MAX_RINGS];
static unsigned n_rings, device, which;
static int store_runs;
static char text[1024];

static void need_store(void)
{
    if (!store_runs)
        store_start();
    store_runs = 1;
}

/* ---- words ---- */

const char *word(const char **at, unsigned *n)
{
    const char *start = *at;

    while (**at && **at != ' ' && **at != ';')
        ++*at;
    *n = (unsigned)(*at - start);
    while (**at == ' ')
        ++*at;
    return start;
}

static void copy_word(const char **at, char *to, unsigned size)
{
    unsigned n;
    const char *from = word(at, &n);

    if (n >= size)
        panic("too long a word");
    memcpy(to, from, n);
    to[n] = 0;
}

static char *put_text(char *to, const char *from)
{
    size_t n = strlen(from);

    memcpy(to, from, n + 1);
    return to + n;
}

static char *put_number(char *to, unsigned value)
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

/* ---- nodes ---- */

static int say_node(const char *path)
{
    int n = store_read(path, text, sizeof(text));

    if (n < 0)
        return n;
    say("%s = %s\n", path, text);
    return n;
}

static int say_nodes(const char *path)
{
    int n = store_list(path, text, sizeof(text));

    for (int at = 0; at < n; at += (int)strlen(text + at) + 1)
        say("%s\n", text + at);
    return n;
}

static int write_front(const char *name, const char *value)
{
    char path[128], *end;

    need_store();
    end = put_text(path, "device/9pfs/");
    end = put_text(put_number(end, device), "/");
    put_text(end, name);
    return store_write(path, value);
}

static int write_front_number(const char *name, unsigned index, unsigned value)
{
    char full[32], digits[16];

    put_number(put_text(full, name), index);
    put_number(digits, value);
    return write_front(full, digits);
}

static unsigned back_state(const char *path)
{
    const char *at = text;

    return store_read(path, text, sizeof(text)) < 0 ? 0 : number(&at);
}

/* The state it is in when it is the one that is waited for, or one behind it. */
static int await_back(unsigned state)
{
    char path[128], back[160], *end = put_text(path, "device/9pfs/");
    unsigned found;

    need_store();
    put_text(put_number(end, device), "/backend");
    if (store_read(path, back, sizeof(back) - 8) < 0)
        return -ENOENT;
    put_text(back + strlen(back), "/state");
    store_watch(back);
    for (found = back_state(back); found < state; found = back_state(back))
        store_event();
    return (int)found;
}

/* ---- rings ---- */

static int module_pages(unsigned char **pages, unsigned n)
{
    struct kexec_9pfs record = {0, 0, 0, 0};
    int index = posted_add(&module, RECORD_9PFS, &record, sizeof(record)), first;

    if (index < 0)
        return index;
    first = posted_alloc(&module, (unsigned)index, n);
    for (unsigned i = 0; first >= 0 && i < n; i++)
        pages[i] = module.start + ((size_t)first + i) * PAGE;
    return first < 0 ? first : index;
}

static int ram_pages(unsigned char **pages, unsigned n)
{
    uint32_t at = take_pages(&start, n, 0);

    for (unsigned i = 0; at && i < n; i++)
        pages[i] = (unsigned char *)(uintptr_t)at + (size_t)i * PAGE;
    return at ? 0 : -ENOMEM;
}

static int save(unsigned index)
{
    struct kexec_9pfs record = {rings[0].ref, rings[0].port, rings[0].prod, rings[0].cons};

    return posted_update(&module, index, RECORD_9PFS, &record, sizeof(record));
}

static int retake(unsigned index)
{
    struct kexec_9pfs record;
    int result = posted_read(&module, index, &record, sizeof(record));

    n_rings = 1;
    if (!result)
        result = take_ring(&rings[0], record.ring_ref, record.evtchn, record.prod_pvt_out,
                           record.cons_pvt_in);
    return result;
}

static int new_rings(unsigned n, unsigned order)
{
    unsigned char *pages[1 + (1 << MAX_ORDER)];
    unsigned n_pages = 1 + (1u << order);

    if (n > MAX_RINGS || order > MAX_ORDER)
        return -EINVAL;
    for (n_rings = 0; n_rings < n; n_rings++) {
        int index = module.mod ? module_pages(pages, n_pages) : ram_pages(pages, n_pages);
        int result = index < 0 ? index
                               : make_ring(&rings[n_rings], pages, order,
                                           FIRST_REF + device * REFS_EACH + n_rings * n_pages);

        if (!result && module.mod && !n_rings)
            result = save((unsigned)index);
        if (result)
            return result;
    }
    return 0;
}

static int offer(void)
{
    char digits[16];
    int result = write_front("version", "1");

    put_number(digits, n_rings);
    result |= write_front("num-rings", digits);
    for (unsigned i = 0; i < n_rings; i++) {
        result |= write_front_number("ring-ref", i, rings[i].ref);
        result |= write_front_number("event-channel-", i, rings[i].port);
    }
    return result | write_front("state", "3");
}

static int connect(void)
{
    int result = offer();

    if (!result)
        result = await_back(CONNECTED);
    return result == CONNECTED ? write_front("state", "4") : -EBUSY;
}

struct ring *ring(void)
{
    if (which >= n_rings)
        panic("no ring %u", which);
    return &rings[which];
}

/* ---- commands ---- */

static int run_store(const char **at, int *result)
{
    char path[128], value[128];

    need_store();
    if (is_word(at, "node")) {
        copy_word(at, path, sizeof(path));
        *result = say_node(path);
    } else if (is_word(at, "nodes")) {
        copy_word(at, path, sizeof(path));
        *result = say_nodes(path);
    } else if (is_word(at, "write")) {
        copy_word(at, path, sizeof(path));
        copy_word(at, value, sizeof(value));
        *result = store_write(path, value);
    } else if (is_word(at, "gone")) {
        copy_word(at, path, sizeof(path));
        *result = store_remove(path);
    } else if (is_word(at, "watch")) {
        copy_word(at, path, sizeof(path));
        *result = store_watch(path);
    } else if (is_word(at, "event")) {
        store_event();
        say("event %s\n", store_event_path());
        *result = 0;
    } else if (is_word(at, "front")) {
        copy_word(at, path, sizeof(path));
        copy_word(at, value, sizeof(value));
        *result = write_front(path, value);
    } else {
        return 0;
    }
    return 1;
}

static int run_device(const char **at, int *result)
{
    unsigned a;

    if (is_word(at, "device"))
        *result = (int)(device = number(at));
    else if (is_word(at, "back"))
        *result = await_back(number(at));
    else if (is_word(at, "rings"))
        a = number(at), *result = new_rings(a, number(at));
    else if (is_word(at, "offer"))
        *result = offer();
    else if (is_word(at, "connect"))
        *result = connect();
    else if (is_word(at, "save"))
        *result = save(number(at));
    else if (is_word(at, "retake"))
        *result = retake(number(at));
    else if (is_word(at, "ring"))
        *result = (int)(which = number(at));
    else
        return 0;
    return 1;
}

static int run_how(const char **at, int *result)
{
    *result = 0;
    if (is_word(at, "first"))
        how.bytes_first = number(at);
    else if (is_word(at, "there"))
        how.bytes_there = number(at);
    else if (is_word(at, "quiet"))
        how.is_quiet = 1;
    else if (is_word(at, "left"))
        how.is_left = 1;
    else if (is_word(at, "reply"))
        *result = await_reply(ring());
    else if (is_word(at, "kick"))
        notify(ring());
    else
        return 0;
    return 1;
}

static int run_lie(const char **at, int *result)
{
    unsigned a;

    *result = 0;
    if (is_word(at, "lie"))
        a = number(at), rings[0].interface[a] = number(at);
    else if (is_word(at, "ref"))
        a = number(at), rings[a].ref = number(at);
    else if (is_word(at, "port"))
        rings[0].port = number(at);
    else if (is_word(at, "readonly"))
        a = number(at), grant_page(a, 0, granted_page(a, 0), 1);
    else if (is_word(at, "revoke"))
        end_grant(number(at));
    else
        return 0;
    return 1;
}

int run_more(const char **at, int *result)
{
    return run_store(at, result) || run_device(at, result) || run_how(at, result) ||
           run_lie(at, result) || run_file(at, result);
}
