/*
 * An image that comes through a pipe, put where it can be read here and there.
 */
#ifndef USNAP_RESTORE_SPOOL_H
#define USNAP_RESTORE_SPOOL_H

#include <signal.h>

#include "common/err.h"

/* Copies all of fd into a file without a name, in TMPDIR or else /var/tmp, or else into memory:
 * nothing is left of it when it is closed. *ret_fd is the caller's. name is for messages. Stops
 * with -ECANCELED once *cancel is not 0; cancel may be NULL. */
int spool_stream(int fd, const char *name, const volatile sig_atomic_t *cancel, int *ret_fd,
		 struct usnap_err *err);

#endif
