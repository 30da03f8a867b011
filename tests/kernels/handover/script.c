/*
 * A kernel that does what its command line says: commands with blanks between their words,
 * semicolons between commands. Those on the kexec module are the ones of tests/kexec/posted, and
 * so is the code behind them: the same witness, with nothing around it but a machine.
 *
 *   make PAGES             the module: the one that was handed over, else a new one of so many pages
 *   defects BITS           posted.h
 *   add TYPE HEX | find INDEX TYPE | read INDEX SIZE | update INDEX TYPE HEX
 *   alloc INDEX N | free FIRST N | attach
 *   fill FIRST N BYTE      pages of the module
 *   crc FIRST N            CRC-32 of pages of the module, as the result
 *   poke ADDRESS BYTE | peek ADDRESS       memory anywhere
 *   ticks N                waits for so many events of the timer
 *   kexec INDEX            enters the kernel that module INDEX of the start info is
 *   lucky                  from here on kexec hands over by luck: kexec_names_buffer
 *   shutdown REASON | fault
 *
 * Each says `> RESULT CRC`, CRC being the administration page's after it (0 without a module);
 * `read` adds the data in hex. At the end of the line the kernel powers off.
 */

#include "kexec.h"
#include "posted.h"
#include "runtime.h"
#include "script.h"
#include "startinfo.h"

#include <errno.h>
#include <string.h>

struct start start;
struct posted module;
static unsigned char data[4096];
static unsigned n_data;

static uint32_t crc32_of(const void *bytes, size_t n)
{
    static uint32_t table[256];
    const uint8_t *byte = bytes;
    uint32_t crc = ~0u;

    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            table[i] = i;
            for (int bit = 0; bit < 8; bit++)
                table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
        }
    while (n--)
        crc = crc >> 8 ^ table[(crc ^ *byte++) & 255];
    return ~crc;
}

static uint32_t module_size(void)
{
    return module.mod ? (module.mod->n_pages + 1u) * PAGE : 0;
}

static int make(unsigned n_pages)
{
    uint32_t at;

    if (start.n_modules && !posted_attach(&module, (void *)(uintptr_t)start.modules[0].address,
                                          start.modules[0].size)) {
        say("module %x %x handed\n", start.modules[0].address, start.modules[0].size);
        return 0;
    }
    if (n_pages == 0 || n_pages > POSTED_MAX_PAGES)
        return -EINVAL;
    at = take_pages(&start, n_pages, 0);
    if (!at)
        return -ENOMEM;
    say("module %x %x made\n", at, n_pages * PAGE);
    return posted_create(&module, (void *)(uintptr_t)at, n_pages);
}

static int pages_are_there(unsigned first, unsigned n)
{
    return module.mod && first <= module.mod->n_pages && n <= module.mod->n_pages - first;
}

static int fill(unsigned first, unsigned n, unsigned byte)
{
    if (!pages_are_there(first, n))
        return -EINVAL;
    memset(module.start + (size_t)first * PAGE, (int)byte, (size_t)n * PAGE);
    return 0;
}

static int next(unsigned which)
{
    uint32_t at = (uint32_t)(uintptr_t)module.start;
    int result = kexec_prepare(&start, which, module_size() ? at : 0, module_size());

    if (result)
        return result;
    say("kexec\n");
    xen_leave();
    kexec_enter();
}

/* ---- commands ---- */

static const char *blanks(const char *at)
{
    while (*at == ' ')
        at++;
    return at;
}

int is_word(const char **at, const char *word)
{
    size_t n = strlen(word);

    for (size_t i = 0; i < n; i++)
        if ((*at)[i] != word[i])
            return 0;
    if ((*at)[n] != ' ' && (*at)[n] != ';' && (*at)[n])
        return 0;
    *at = blanks(*at + n);
    return 1;
}

unsigned number(const char **at)
{
    unsigned value = 0;

    for (; **at >= '0' && **at <= '9'; ++*at)
        value = value * 10 + (unsigned)(**at - '0');
    *at = blanks(*at);
    return value;
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static void hex(const char **at)
{
    for (n_data = 0; n_data < sizeof(data) && digit((*at)[0]) >= 0 && digit((*at)[1]) >= 0; *at += 2)
        data[n_data++] = (unsigned char)(digit((*at)[0]) << 4 | digit((*at)[1]));
}

static void answer(int result)
{
    say("> %d %u", result, module.mod ? crc32_of(module.mod, PAGE) : 0);
}

static void read_record(unsigned index, unsigned size)
{
    answer(size <= sizeof(data) ? posted_read(&module, index, data, size) : -EINVAL);
    say(" ");
    for (unsigned i = 0; i < size; i++)
        say("%x%x", data[i] >> 4, data[i] & 15);
}

static int run_module(const char **at)
{
    unsigned a, b;

    if (is_word(at, "add")) {
        a = number(at);
        hex(at);
        return posted_add(&module, a, data, n_data);
    }
    if (is_word(at, "find"))
        return a = number(at), posted_find(&module, a, number(at));
    if (is_word(at, "update")) {
        a = number(at);
        b = number(at);
        hex(at);
        return posted_update(&module, a, b, data, n_data);
    }
    if (is_word(at, "alloc"))
        return a = number(at), posted_alloc(&module, a, number(at));
    if (is_word(at, "free"))
        return a = number(at), posted_free(&module, a, number(at));
    if (is_word(at, "attach"))
        return posted_attach(&module, module.start, module_size());
    if (is_word(at, "fill")) {
        a = number(at);
        b = number(at);
        return fill(a, b, number(at));
    }
    if (is_word(at, "crc")) {
        a = number(at);
        b = number(at);
        if (!pages_are_there(a, b))
            return -EINVAL;
        return (int)crc32_of(module.start + (size_t)a * PAGE, (size_t)b * PAGE);
    }
    panic("no such command, or no module: %s", *at);
}

__attribute__((weak)) int run_more(const char **at, int *result)
{
    (void)at;
    (void)result;
    return 0;
}

static int run(const char **at)
{
    int result;

    if (run_more(at, &result))
        return result;
    if (is_word(at, "make"))
        return make(number(at));
    if (is_word(at, "defects"))
        return (int)(module.defects = number(at));
    if (is_word(at, "ticks")) {
        uint64_t before = now_ns();

        wait_ticks(number(at));
        say("ticks %llx\n", (unsigned long long)(now_ns() - before));
        return 0;
    }
    if (is_word(at, "poke")) {
        volatile uint8_t *byte = (void *)(uintptr_t)number(at);

        *byte = (uint8_t)number(at);
        return 0;
    }
    if (is_word(at, "peek"))
        return *(volatile uint8_t *)(uintptr_t)number(at);
    if (is_word(at, "kexec"))
        return next(number(at));
    if (is_word(at, "lucky"))
        return kexec_names_buffer = 1;
    if (is_word(at, "shutdown"))
        shutdown(number(at));
    if (is_word(at, "fault"))
        __asm__ volatile("ud2");
    if (!module.mod)
        panic("no such command, or no module: %s", *at);
    return run_module(at);
}

void kernel_main(uint32_t start_info)
{
    const char *at;

    xen_start();
    read_start_info(start_info, &start);
    say("kernel %u bit at %llx, start info %x, modules %u\n", (unsigned)(8 * sizeof(long)),
        (unsigned long long)(uintptr_t)image_start, start_info, start.n_modules);
    for (at = blanks(start.cmdline); *at; at = blanks(at)) {
        if (is_word(&at, "read") && module.mod) {
            unsigned index = number(&at);

            read_record(index, number(&at));
        } else {
            answer(run(&at));
        }
        say("\n");
        while (*at && *at != ';')
            at++;
        at += *at == ';';
    }
    say("done\n");
    shutdown(POWEROFF);
}
