/*
 * Commands for a kernel that is a client of Xenstore, beside script.c's.
 *
 *   node PATH | write PATH VALUE     reads one node and says it | writes one
 *   watch PATH | event               a watch, and the next event: its path is said
 *   chat PATH STOP                   writes numbers to PATH and reads each back, until there is a
 *                                    node STOP; how many
 *   wild INDEX                       an index of requests that can't be, and an event for the
 *                                    store: what the ring's error field says then
 */

#include "../pair/store.h"
#include "runtime.h"
#include "script.h"

#include <errno.h>
#include <string.h>

enum { HC_event_channel_op = 32, EVTCHN_send = 4 };

/* Where the toolstack puts the ring, and which port it gives it. */
#define REQ_PROD ((volatile uint32_t *)0xfeffc804ul)
#define ERROR ((volatile uint32_t *)0xfeffc818ul)
static uint32_t store_port = 1;

static int store_runs;
static char text[1024], path[128], other[128];

static void need_store(void)
{
    if (!store_runs)
        store_start();
    store_runs = 1;
}

static void copy_word(const char **at, char *to, unsigned size)
{
    unsigned n = 0;

    while (**at && **at != ' ' && **at != ';') {
        if (n + 1 >= size)
            panic("too long a word");
        to[n++] = *(*at)++;
    }
    to[n] = 0;
    while (**at == ' ')
        ++*at;
}

static void put_number(char *to, unsigned value)
{
    char digits[10];
    unsigned n = 0;

    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        *to++ = digits[--n];
    *to = 0;
}

static int say_node(const char *node)
{
    int n = store_read(node, text, sizeof(text));

    if (n >= 0)
        say("%s = %s\n", node, text);
    return n;
}

static int chat(const char *node, const char *stop)
{
    char value[16];
    unsigned i = 0;

    for (;; i++) {
        put_number(value, i);
        if (store_write(node, value))
            panic("number %u was not written", i);
        if (store_read(node, text, sizeof(text)) != (int)strlen(value) || memcmp(text, value, strlen(value)))
            panic("wrote %s, read %s", value, text);
        if (i % 16 == 0 && store_read(stop, text, sizeof(text)) >= 0)
            return (int)i;
    }
}

static int wild(unsigned index)
{
    *REQ_PROD = index;
    hypercall(HC_event_channel_op, EVTCHN_send, (long)&store_port, 0, 0, 0);
    while (!*ERROR)
        nap(1000);
    return (int)*ERROR;
}

int run_more(const char **at, int *result)
{
    *result = 0;
    need_store();
    if (is_word(at, "node")) {
        copy_word(at, path, sizeof(path));
        *result = say_node(path);
    } else if (is_word(at, "write")) {
        copy_word(at, path, sizeof(path));
        copy_word(at, other, sizeof(other));
        *result = store_write(path, other);
    } else if (is_word(at, "watch")) {
        copy_word(at, path, sizeof(path));
        *result = store_watch(path);
    } else if (is_word(at, "event")) {
        store_event();
        say("event %s\n", store_event_path());
    } else if (is_word(at, "chat")) {
        copy_word(at, path, sizeof(path));
        copy_word(at, other, sizeof(other));
        *result = chat(path, other);
    } else if (is_word(at, "wild")) {
        *result = wild(number(at));
    } else {
        return 0;
    }
    return 1;
}
