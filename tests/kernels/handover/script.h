/* For kernels that have more commands than script.c. */
#ifndef SCRIPT_H
#define SCRIPT_H

#include "posted.h"
#include "startinfo.h"

/* What was handed over, and the kexec module, if there is one. */
extern struct start start;
extern struct posted module;

/* Whether the text at *at goes on with word; it is skipped then, with the blanks after it. */
int is_word(const char **at, const char *word);

/* The decimal number at *at, 0 if there is none; skipped as well. */
unsigned number(const char **at);

/*
 * Does the command at *at if it knows it: 1, with what it came to in *result. 0 for others.
 * A kernel without one of these has the commands of script.c alone.
 */
int run_more(const char **at, int *result);

#endif
