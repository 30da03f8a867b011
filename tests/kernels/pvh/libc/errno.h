/* See string.h; the numbers are Linux', which Xen's are too. */
#ifndef KERNEL_ERRNO_H
#define KERNEL_ERRNO_H

#define ENOENT 2
#define ENOEXEC 8
#define ENOMEM 12
#define EBUSY 16
#define EINVAL 22
#define ENOSPC 28

#endif
