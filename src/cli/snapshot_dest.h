/*
 * Where an image goes: a file or a stream (-o), or the store.
 *
 * In the store .lock of the name is held from open to close, so that what it
 * refers to stays, and its name is found at the end: it tells T0 and id.
 */
#ifndef USNAP_CLI_SNAPSHOT_DEST_H
#define USNAP_CLI_SNAPSHOT_DEST_H

#include <signal.h>

#include "cli/snapshot_args.h"
#include "image/output.h"
#include "store/storelock.h"

struct snapshot_dest {
	struct output *output;
	char *path; /* of the image; in the store only after commit */
	char name[STORE_NAME_MAX + 1]; /* "" outside of a store */
	struct store *store;
	struct store_lock *lock;
	bool busy; /* another run has the name, and we do not wait */
	uint64_t seed; /* of page hashes; 0 outside of a store */
	char *parent; /* path of the image to continue, or NULL */
};

/* Before the process is looked at: another run that has the name most likely has the process as
 * well. In the store only. With skip_if_busy -EBUSY, and d->busy. */
int snapshot_dest_lock(struct snapshot_dest *d, const struct snapshot_args *a, pid_t pid,
		       const volatile sig_atomic_t *cancel, struct usnap_err *err);

int snapshot_dest_open(struct snapshot_dest *d, const struct snapshot_args *a,
		       struct usnap_err *err);

/* Names the image and makes it durable. */
int snapshot_dest_commit(struct snapshot_dest *d, struct usnap_err *err);

/* Removes what was not committed. */
void snapshot_dest_close(struct snapshot_dest *d);

#endif
