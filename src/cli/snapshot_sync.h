/*
 * --sync-fd: whoever asked for the snapshot is told of the freeze, line by line, over a socket.
 *
 *	we write	and read
 *	freeze		go		before the threads are stopped, in each attempt
 *	frozen				T0 is past
 */
#ifndef USNAP_CLI_SNAPSHOT_SYNC_H
#define USNAP_CLI_SNAPSHOT_SYNC_H

#include <signal.h>

#include "common/err.h"

struct snapshot_sync {
	int fd;
	const volatile sig_atomic_t *cancel;
};

/* The descriptor is to be a socket, and is not inherited. */
int snapshot_sync_open(int fd, struct usnap_err *err);

/* As before_freeze and after_freeze of struct capture_options; arg: struct snapshot_sync. */
int snapshot_sync_before(void *arg, struct usnap_err *err);
void snapshot_sync_after(void *arg);

#endif
