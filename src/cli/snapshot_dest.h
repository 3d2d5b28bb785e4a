/*
 * Where an image goes: a file or a stream (-o), or the store.
 *
 * In the store .lock of the name is held until the image is there, so that what
 * it refers to stays, and its name is found at the end: it tells T0 and id.
 */
#ifndef USNAP_CLI_SNAPSHOT_DEST_H
#define USNAP_CLI_SNAPSHOT_DEST_H

#include <signal.h>

#include "cli/snapshot_args.h"
#include "image/output.h"
#include "process/target.h"
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

/* The name in the store: the one that was asked for, or one that is made of the process. "" when the
 * process has ended. */
int snapshot_dest_name(const struct snapshot_args *a, pid_t pid, char ret[STORE_NAME_MAX + 1],
		       struct usnap_err *err);

/* Before the process is looked at: another run that has the name most likely has the process as
 * well. In the store only. With skip_if_busy -EBUSY, and d->busy. is_one_of_many: others of its name
 * are taken as well, and its PID tells it from them. */
int snapshot_dest_lock(struct snapshot_dest *d, const struct snapshot_args *a, pid_t pid,
		       bool is_one_of_many, const volatile sig_atomic_t *cancel,
		       struct usnap_err *err);

int snapshot_dest_open(struct snapshot_dest *d, const struct snapshot_args *a,
		       const struct target *t, struct usnap_err *err);

/* Names the image and makes it durable. */
int snapshot_dest_commit(struct snapshot_dest *d, struct usnap_err *err);

/* Removes what was not committed, and lets others have the name. */
void snapshot_dest_release(struct snapshot_dest *d);
void snapshot_dest_close(struct snapshot_dest *d);

#endif
