/*
 * A Xenstore client for a Linux guest, by the kernel's xenbus driver:
 *
 *     xs read PATH | xs write PATH VALUE | xs watch PATH N      (N changes, the first at once)
 *
 * Public: xen/include/public/io/xs_wire.h.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { XS_READ = 2, XS_WATCH = 4, XS_WRITE = 11, XS_WATCH_EVENT = 15, XS_ERROR = 16 };

struct header {
    uint32_t type, req_id, tx_id, len;
};

static int store;
static char body[4097];

static void send(uint32_t type, const char *data, uint32_t len)
{
    char message[sizeof(struct header) + 4096];
    struct header header = { type, 1, 0, len };

    memcpy(message, &header, sizeof(header));
    memcpy(message + sizeof(header), data, len);
    if (write(store, message, sizeof(header) + len) != (ssize_t)(sizeof(header) + len))
        perror("xs: write"), exit(1);
}

static void all(void *to, size_t len)
{
    for (char *at = to; len;) {
        ssize_t got = read(store, at, len);

        if (got <= 0)
            perror("xs: read"), exit(1);
        at += got;
        len -= got;
    }
}

/* The next message of that type; anything else but an error is passed over. */
static void receive(uint32_t type)
{
    struct header header;

    do {
        all(&header, sizeof(header));
        all(body, header.len);
        body[header.len] = 0;
        if (header.type == XS_ERROR)
            printf("xs: %s\n", body), exit(1);
    } while (header.type != type);
}

static void ask(uint32_t type, const char *data, uint32_t len)
{
    send(type, data, len);
    receive(type);
}

int main(int argc, char **argv)
{
    char request[4096];
    int length;

    store = open("/dev/xen/xenbus", O_RDWR);
    if (store < 0)
        return perror("/dev/xen/xenbus"), 1;
    if (argc == 3 && !strcmp(argv[1], "read")) {
        ask(XS_READ, argv[2], strlen(argv[2]) + 1);
        puts(body);
    } else if (argc == 4 && !strcmp(argv[1], "write")) {
        length = snprintf(request, sizeof(request), "%s%c%s", argv[2], 0, argv[3]);
        ask(XS_WRITE, request, length);
    } else if (argc == 4 && !strcmp(argv[1], "watch")) {
        length = snprintf(request, sizeof(request), "%s%ctoken%c", argv[2], 0, 0);
        send(XS_WATCH, request, length);
        for (int left = atoi(argv[3]); left > 0; left--) {
            receive(XS_WATCH_EVENT);
            printf("event %s\n", body);
            fflush(stdout);
        }
    } else {
        return fputs("xs: read PATH | write PATH VALUE | watch PATH N\n", stderr), 2;
    }
    return 0;
}
