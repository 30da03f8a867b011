/*
 * An application for Mini-OS: mounts 9pfs device 0 at /mnt, reads /mnt/hello, writes /mnt/made, and
 *
 *   watch      says what is written to the node data/command, until that is "stop"
 *   kexec N    then enters the Mini-OS that lies at /mnt/kernel, which does the same, N times
 *
 * Linked to Mini-OS as its APP_OBJS, with CONFIG_PARAVIRT=n, CONFIG_9PFRONT, CONFIG_CONSFRONT,
 * CONFIG_XENBUS and CONFIG_KEXEC, libc=y and a newlib. Where gcc makes position independent code by
 * itself it needs -fno-pie: Mini-OS is linked in a way that such code does not survive.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <mini-os/os.h>
#include <mini-os/9pfront.h>
#include <mini-os/kexec.h>
#include <mini-os/lib.h>
#include <mini-os/xenbus.h>

enum { N_LINES = 1000, MAX_READ = 16384 };

static void die(const char *what)
{
    printf("app: %s: error %d\n", what, errno);
    exit(1);
}

static int open_file(const char *path, int flags)
{
    int fd = open(path, flags, 0644);

    if (fd < 0)
        die(path);
    return fd;
}

static void read_hello(void)
{
    char text[100];
    struct stat status;
    int fd = open_file("/mnt/hello", O_RDONLY);
    ssize_t n = read(fd, text, sizeof(text) - 1);

    if (n < 0 || fstat(fd, &status))
        die("read");
    text[n] = 0;
    printf("app: read %d of %d bytes: %s\n", (int)n, (int)status.st_size, text);
    close(fd);
}

static void write_made(void)
{
    char text[100];
    int fd = open_file("/mnt/made", O_CREAT | O_TRUNC | O_RDWR), n;

    for (int i = 0; i < N_LINES; i++) {
        n = snprintf(text, sizeof(text), "line %d that Mini-OS wrote\n", i);
        if (write(fd, text, (size_t)n) != n)
            die("write");
    }
    lseek(fd, 0, SEEK_SET);
    n = (int)read(fd, text, 26);
    if (n < 0)
        die("read back");
    text[n] = 0;
    printf("app: wrote and read back: %s", text);
    close(fd);
}

static void watch_commands(void)
{
    xenbus_event_queue events = NULL;
    char *value, *error;

    error = xenbus_watch_path_token(XBT_NIL, "data/command", "token", &events);
    while (!error) {
        free(xenbus_wait_for_watch_return(&events));
        error = xenbus_read(XBT_NIL, "data/command", &value);
        if (error) {
            printf("app: no command yet\n");
            free(error);
            error = NULL;
            continue;
        }
        printf("app: command %s\n", value);
        if (!strcmp(value, "stop"))
            return;
        free(value);
    }
    printf("app: watch: %s\n", error);
}

static void *read_kernel(int *size)
{
    struct stat status;
    int fd = open_file("/mnt/kernel", O_RDONLY);
    char *image;

    if (fstat(fd, &status))
        die("fstat");
    image = malloc((size_t)status.st_size);
    for (*size = 0; *size < status.st_size;) {
        int left = (int)status.st_size - *size;
        ssize_t n = read(fd, image + *size, (size_t)(left < MAX_READ ? left : MAX_READ));

        if (n <= 0)
            die("/mnt/kernel");
        *size += (int)n;
    }
    close(fd);
    return image;
}

static void enter_next(void *mount, int n_more)
{
    char cmdline[32];
    int size;
    void *image = read_kernel(&size);

    shutdown_9pfront(mount);
    snprintf(cmdline, sizeof(cmdline), n_more ? "kexec %d" : "last", n_more);
    printf("app: kexec of %d bytes\n", size);
    kexec(image, (unsigned long)size, cmdline);
    die("kexec came back");
}

int main(int argc, char **argv)
{
    void *mount;

    /* Mini-OS' front end never says that it begins, so a second kernel has to. */
    free(xenbus_printf(XBT_NIL, "device/9pfs/0", "state", "%u", XenbusStateInitialising));
    mount = init_9pfront(0, "/mnt");
    if (!mount)
        die("mount");
    read_hello();
    write_made();
    if (argc > 1 && !strcmp(argv[1], "watch"))
        watch_commands();
    if (argc > 2 && !strcmp(argv[1], "kexec") && atoi(argv[2]) > 0)
        enter_next(mount, atoi(argv[2]) - 1);
    shutdown_9pfront(mount);
    printf("app: done\n");
    return 0;
}
