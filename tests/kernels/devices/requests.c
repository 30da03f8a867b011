/* The commands of devices.c that are requests to the 9P server. */

#include "devices.h"
#include "runtime.h"
#include "script.h"

#include <string.h>

enum { TVERSION = 100, TATTACH = 104, TWALK = 110, TOPEN = 112, TCREATE = 114, TREAD = 116 };
enum { TWRITE = 118, TCLUNK = 120, TREMOVE = 122, TSTAT = 124, NOFID = -1 };

static char text[1024];

/* Sends it; the reply's type is looked at if it was waited for and is none of an error. */
static int ask_for(unsigned type)
{
    int is_left = how.is_left, result = ask(ring());

    if (!result && !is_left)
        expect(type + 1);
    return result;
}

static void begin(const char **at, unsigned type)
{
    message(type);
    add(4, number(at));
}

static int say_version(void)
{
    unsigned n;
    int result, is_left = how.is_left;

    message(TVERSION);
    add(4, MAX_MESSAGE);
    add_text("9P2000.u", 8);
    result = ask_for(TVERSION);
    if (!result && !is_left) {
        say("msize %u, ", (unsigned)take(4));
        n = (unsigned)take(2);
        memcpy(text, take_bytes(n), n);
        text[n] = 0;
        say("%s\n", text);
    }
    return result;
}

static int attach(const char **at)
{
    begin(at, TATTACH);
    add(4, (uint32_t)NOFID);
    add_text("me", 2);
    add_text("", 0);
    add(4, 0);
    return ask_for(TATTACH);
}

static int walk(const char **at)
{
    const char *name;
    unsigned n;

    begin(at, TWALK);
    add(4, number(at));
    name = word(at, &n);
    add(2, n != 0);
    if (n)
        add_text(name, n);
    return ask_for(TWALK);
}

static int create(const char **at)
{
    unsigned fid = number(at), mode = number(at), permissions = number(at), n;
    const char *name = word(at, &n);

    message(TCREATE);
    add(4, fid);
    add_text(name, n);
    add(4, permissions);
    add(1, mode);
    add_text("", 0);
    return ask_for(TCREATE);
}

static int ask_read(unsigned fid, uint64_t offset, unsigned count)
{
    message(TREAD);
    add(4, fid);
    add(8, offset);
    add(4, count);
    return ask_for(TREAD);
}

static int get(const char **at)
{
    unsigned fid = number(at), offset = number(at), count = number(at), n;
    int result = ask_read(fid, offset, count);

    if (result || !n_left())
        return result;
    n = (unsigned)take(4);
    if (n >= sizeof(text))
        return (int)n;
    memcpy(text, take_bytes(n), n);
    text[n] = 0;
    say("%s\n", text);
    return (int)n;
}

static void say_stat(void)
{
    unsigned mode, time, n, size = (unsigned)take(2);
    unsigned left = n_left();
    uint64_t length, number_of;

    take_bytes(6);
    take(1);
    take(4);
    number_of = take(8);
    mode = (unsigned)take(4);
    take(4);
    time = (unsigned)take(4);
    length = take(8);
    n = (unsigned)take(2);
    memcpy(text, take_bytes(n), n);
    text[n] = 0;
    say("%s: file %llx, mode %x, %llx bytes, time %u\n", text, (unsigned long long)number_of, mode,
        (unsigned long long)length, time);
    take_bytes(size - (left - n_left()));
}

static int list(unsigned fid)
{
    uint64_t offset = 0;
    int n_entries = 0;

    for (;;) {
        int result = ask_read(fid, offset, 512);
        unsigned n;

        if (result)
            return result;
        n = (unsigned)take(4);
        if (!n)
            return n_entries;
        for (offset += n; n_left(); n_entries++)
            say_stat();
    }
}

static int put(const char **at)
{
    unsigned fid = number(at), offset = number(at), n;
    const char *from = word(at, &n);

    message(TWRITE);
    add(4, fid);
    add(8, offset);
    add(4, n);
    add_data(from, n);
    return ask_for(TWRITE);
}

static int pour(const char **at)
{
    unsigned fid = number(at), offset = number(at), n = number(at);

    message(TWRITE);
    add(4, fid);
    add(8, offset);
    add(4, n);
    for (unsigned i = 0; i < n; i++)
        add(1, 'a' + (offset + i) % 26);
    return ask_for(TWRITE);
}

static int stat(const char **at)
{
    int result;

    begin(at, TSTAT);
    result = ask_for(TSTAT);
    if (!result) {
        take(2);
        say_stat();
    }
    return result;
}

static int open(const char **at)
{
    begin(at, TOPEN);
    add(1, number(at));
    return ask_for(TOPEN);
}

static int with_fid(const char **at, unsigned type)
{
    begin(at, type);
    return ask_for(type);
}

int run_file(const char **at, int *result)
{
    if (is_word(at, "version"))
        *result = say_version();
    else if (is_word(at, "attach"))
        *result = attach(at);
    else if (is_word(at, "walk"))
        *result = walk(at);
    else if (is_word(at, "open"))
        *result = open(at);
    else if (is_word(at, "create"))
        *result = create(at);
    else if (is_word(at, "get"))
        *result = get(at);
    else if (is_word(at, "list"))
        *result = list(number(at));
    else if (is_word(at, "put"))
        *result = put(at);
    else if (is_word(at, "pour"))
        *result = pour(at);
    else if (is_word(at, "stat"))
        *result = stat(at);
    else if (is_word(at, "clunk"))
        *result = with_fid(at, TCLUNK);
    else if (is_word(at, "remove"))
        *result = with_fid(at, TREMOVE);
    else
        return 0;
    return 1;
}
