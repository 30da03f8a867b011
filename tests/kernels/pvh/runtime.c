/* See runtime.h: memory and text, which know nothing of Xen but a way to put bytes somewhere. */

#include "runtime.h"
#include "xen.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

void *memcpy(void *to, const void *from, size_t n)
{
    void *start = to;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

void *memmove(void *to, const void *from, size_t n)
{
    unsigned char *t = to;
    const unsigned char *f = from;

    if ((uintptr_t)to - (uintptr_t)from >= n)
        return memcpy(to, from, n);
    while (n--)
        t[n] = f[n];
    return to;
}

void *memset(void *to, int byte, size_t n)
{
    void *start = to;

    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
    return start;
}

int memcmp(const void *one, const void *other, size_t n)
{
    const unsigned char *a = one, *b = other;

    for (; n; n--, a++, b++)
        if (*a != *b)
            return *a < *b ? -1 : 1;
    return 0;
}

size_t strlen(const char *text)
{
    size_t n = 0;

    while (text[n])
        n++;
    return n;
}

_Noreturn void abort(void)
{
    panic("abort");
}

/* ---- text ---- */

static char line[512];
static unsigned used;

static void flush(void)
{
    xen_write(line, used);
    used = 0;
}

static void put(char c)
{
    line[used++] = c;
    if (c == '\n' || used == sizeof(line))
        flush();
}

static void put_text(const char *text)
{
    while (*text)
        put(*text++);
}

static void put_decimal(uint32_t value)
{
    char digits[10];
    unsigned n = 0;

    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        put(digits[--n]);
}

static void put_hex(uint64_t value)
{
    int shift = 60;

    while (shift && !(value >> shift))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static void put_signed(int value)
{
    if (value < 0)
        put('-');
    put_decimal(value < 0 ? -(uint32_t)value : (uint32_t)value);
}

static void put_all(const char *format, va_list values)
{
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's': put_text(va_arg(values, const char *)); break;
        case 'd': put_signed(va_arg(values, int)); break;
        case 'u': put_decimal(va_arg(values, unsigned)); break;
        case 'x': put_hex(va_arg(values, unsigned)); break;
        case 'l':
            format += 2;
            put_hex(va_arg(values, unsigned long long));
            break;
        default: put(*format);
        }
    }
}

void say(const char *format, ...)
{
    va_list values;

    va_start(values, format);
    put_all(format, values);
    va_end(values);
}

_Noreturn void panic(const char *format, ...)
{
    va_list values;

    if (used)
        put('\n');
    put_text("panic: ");
    va_start(values, format);
    put_all(format, values);
    va_end(values);
    put('\n');
    shutdown(CRASH);
}
