/*
 * --sync-fd: whoever asked for the snapshot is kept in step, line by line, over a socket.
 *
 *	we write	and read
 *	attach		go		before anything is done to the process
 *	freeze		go		before the threads are stopped, in each attempt
 *	frozen				T0 is past
 *	done				the image is complete
 */
#ifndef USNAP_CLI_SNAPSHOT_SYNC_H
#define USNAP_CLI_SNAPSHOT_SYNC_H

#include <signal.h>

#include "common/err.h"

struct snapshot_sync {
	int fd; /* -1: none */
	const volatile sig_atomic_t *cancel;
};

/* The descriptor is to be a socket, and is not inherited. */
int snapshot_sync_open(int fd, struct usnap_err *err);

/* Nothing without a descriptor. */
int snapshot_sync_attach(struct snapshot_sync *s, struct usnap_err *err);
void snapshot_sync_done(struct snapshot_sync *s);

/* As before_freeze and after_freeze of struct capture_options; arg: struct snapshot_sync. */
int snapshot_sync_before(void *arg, struct usnap_err *err);
void snapshot_sync_after(void *arg);

#endif
