/* Between xen.c and its neighbours. */
#ifndef KERNEL_XEN_H
#define KERNEL_XEN_H

#include <stdint.h>

/* Puts bytes on a console; waits for room there. */
void xen_write(const char *text, unsigned n);

/* From traps.S. */
void on_exception(unsigned long vector, unsigned long error, unsigned long at,
                  unsigned long address);
void on_event(void);

#endif
