/* See string.h. */
#ifndef KERNEL_STDLIB_H
#define KERNEL_STDLIB_H

_Noreturn void abort(void);

#endif
