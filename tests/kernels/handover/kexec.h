/*
 * kexec: the next kernel's ELF file lies in memory; this one puts it in place and enters it.
 *
 *    0                              limit                                        4 GiB
 *    | segments | bss | block |       | ...  [file] [block] [leave page] [module] |
 *        ^---------------- copied by the leave page's code, paging off ---^
 *
 * Everything that the last step reads lies at or above limit, everything that it writes below it.
 */
#ifndef KEXEC_H
#define KEXEC_H

#include "startinfo.h"

#include <stdint.h>

/*
 * Gets ready to enter the kernel whose ELF file modules[which] of start is. It will be handed
 * module_size bytes at module (nothing if 0) and, behind it, all further modules but its own file.
 *
 * 0 if kexec_enter may be called. ENOEXEC for a file that is no PVH kernel, EBUSY if it would lie
 * over what is handed over or outside of RAM, ENOMEM without room for copies, EINVAL for no file.
 */
int kexec_prepare(const struct start *start, unsigned which, uint32_t module,
                  uint32_t module_size);

/*
 * If not 0: pointers in the block name the buffer that it is put together in, as an earlier version
 * of Mini-OS' code had them. The next kernel lives as long as that memory is left alone.
 */
extern int kexec_names_buffer;

/* The point of no return. */
_Noreturn void kexec_enter(void);

#endif
