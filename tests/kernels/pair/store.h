/* A Xenstore client over the domain's own ring: one request at a time, and events that are counted. */
#ifndef STORE_H
#define STORE_H

#include <stdint.h>

/* Finds the ring; panics without one. */
void store_start(void);

/* Length of the value that is now in value, NUL after it; or the answer was an error: -ENOENT. */
int store_read(const char *path, char *value, unsigned size);

/* The same for the names of a node's children, a NUL after each. */
int store_list(const char *path, char *names, unsigned size);

/* 0, or -EINVAL for any error. */
int store_write(const char *path, const char *value);
int store_remove(const char *path);
int store_watch(const char *path);

/* The other domain may read the node, which is this one's own. */
int store_let_read(const char *path, unsigned owner, unsigned reader);

/* Waits for a watch's event that was not waited for yet. */
void store_event(void);

/* The path that the event waited for last was about. */
const char *store_event_path(void);

/* ---- waiting, for whoever has a port ---- */

/* Waits until an event comes for the port, interrupts off, and takes it. */
void await_event(uint32_t port);

/* Lets so many microseconds go by. */
void nap(unsigned us);

#endif
