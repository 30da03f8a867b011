/* Between devices.c and requests.c. */
#ifndef DEVICES_H
#define DEVICES_H

#include "ninepfront.h"

/* The ring that requests go to. */
struct ring *ring(void);

/* The next word, ended by a blank or a semicolon, and its length; skipped. */
const char *word(const char **at, unsigned *n);

/* As run_more of script.h, for the requests. */
int run_file(const char **at, int *result);

#endif
