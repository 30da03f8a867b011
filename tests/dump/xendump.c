/*
 * Xen's own dump-core writer (libxenguest), run on a RAM file instead of a domain.
 *
 *     xendump hvm|pv RAM CORE [PFN...]      the PFNs can't be mapped, as if ballooned out meanwhile
 *
 * What the writer asks the hypervisor for is answered here: this program's functions come before
 * those of libxenctrl. A PV guest's machine frames lie in reverse order, and its frames 0xa0 to
 * 0xbf have none.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xenctrl.h>
#include <xenguest.h>

#define PAGE 4096UL
#define SHARED_INFO_MFN 1UL
#define LIST_LIST_MFN 2UL
#define LIST_MFN 3UL
#define FIRST_TABLE_MFN 4UL
#define FIRST_RAM_MFN 0x100UL

static int ram_fd, pv, n_lost;
static char **lost;
static unsigned long n_pages;

static int has_pfn(unsigned long pfn)
{
    return !pv || pfn < 0xa0 || pfn >= 0xc0;
}

static unsigned long pfn_to_mfn(unsigned long pfn)
{
    return has_pfn(pfn) ? FIRST_RAM_MFN + n_pages - 1 - pfn : ~0UL;
}

/* The words of a page that the guest of a PV domain has for its tools. */
static void fill_pv_page(unsigned long mfn, unsigned long *words)
{
    unsigned long i;

    if (mfn == SHARED_INFO_MFN)
        ((shared_info_t *)words)->arch.pfn_to_mfn_frame_list_list = LIST_LIST_MFN;
    else if (mfn == LIST_LIST_MFN)
        words[0] = LIST_MFN;
    else if (mfn == LIST_MFN)
        for (i = 0; i < 512; i++)
            words[i] = FIRST_TABLE_MFN + i;
    else
        for (i = 0; i < 512; i++)
            words[i] = pfn_to_mfn((mfn - FIRST_TABLE_MFN) * 512 + i);
}

static int fill_page(unsigned long mfn, char *page)
{
    unsigned long pfn = pv ? n_pages - 1 - (mfn - FIRST_RAM_MFN) : mfn;
    int i;

    if (pv && mfn < FIRST_RAM_MFN) {
        fill_pv_page(mfn, (unsigned long *)page);
        return 0;
    }
    for (i = 0; i < n_lost; i++)
        if (strtoul(lost[i], NULL, 0) == pfn)
            return -1;
    return pread(ram_fd, page, PAGE, pfn * PAGE) == PAGE ? 0 : -1;
}

void *xc_map_foreign_pages(xc_interface *xch, uint32_t dom, int prot, const xen_pfn_t *mfns, int n)
{
    char *pages = mmap(NULL, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int i;

    for (i = 0; i < n; i++)
        if (fill_page(mfns[i], pages + i * PAGE)) {
            munmap(pages, n * PAGE);
            return NULL;
        }
    return pages;
}

void *xc_map_foreign_range(xc_interface *xch, uint32_t dom, int size, int prot, unsigned long mfn)
{
    xen_pfn_t frame = mfn;

    return size == PAGE ? xc_map_foreign_pages(xch, dom, prot, &frame, 1) : NULL;
}

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
    memset(info, 0, sizeof(*info));
    info->domid = first;
    info->hvm = !pv;
    info->nr_pages = n_pages - 0x20; /* without the hole */
    info->shared_info_frame = SHARED_INFO_MFN;
    return 1;
}

int xc_domain_nr_gpfns(xc_interface *xch, uint32_t domid, xen_pfn_t *gpfns)
{
    *gpfns = n_pages;
    return 0;
}

int xc_domain_get_guest_width(xc_interface *xch, uint32_t domid, unsigned int *width)
{
    *width = 8;
    return 0;
}

int xc_maximum_ram_page(xc_interface *xch, unsigned long *max_mfn)
{
    *max_mfn = FIRST_RAM_MFN + n_pages;
    return 0;
}

int xc_vcpu_getcontext(xc_interface *xch, uint32_t dom, uint32_t vcpu, vcpu_guest_context_any_t *context)
{
    memset(context, 0, sizeof(*context));
    return 0;
}

int xc_version(xc_interface *xch, int cmd, void *arg)
{
    return cmd == XENVER_pagesize ? PAGE : 4 << 16 | 17;
}

/* Not a report: what could not be said to a logger that isn't there. */
void xc_report_error(xc_interface *xch, int code, const char *format, ...)
{
    fprintf(stderr, "error %d: %s\n", code, format);
}

void xc_report(xc_interface *xch, void *logger, int level, int code, const char *format, ...)
{
}

const char *xc_strerror(xc_interface *xch, int code)
{
    return strerror(code);
}

int main(int argc, char **argv)
{
    struct stat status;

    if (argc < 4)
        return 2;
    pv = !strcmp(argv[1], "pv");
    ram_fd = open(argv[2], O_RDONLY);
    lost = argv + 4;
    n_lost = argc - 4;
    if (ram_fd < 0 || fstat(ram_fd, &status)) {
        perror(argv[2]);
        return 1;
    }
    n_pages = status.st_size / PAGE;
    return xc_domain_dumpcore(calloc(1, 1 << 16), 1, argv[3]) ? 1 : 0;
}
