/*
 * Who may do what with the images of a name, between processes.
 *
 * .lock     held while images are added or removed (snapshot, prune, rm): one at a time.
 * .in-use   shared by those who read images and need their ancestors to stay;
 *           alone by whoever removes. Taking a snapshot removes nothing and
 *           does not wait for readers, however long they take.
 *
 * Both are flock(2) locks: they end with their holder, by SIGKILL too. A
 * remover waits for readers without keeping .lock, so that snapshots go on
 * meanwhile. What .lock holds is the PID of its last holder, for messages;
 * nothing depends on it.
 */
#ifndef USNAP_STORE_STORELOCK_H
#define USNAP_STORE_STORELOCK_H

#include <signal.h>
#include <stdbool.h>

#include "common/err.h"
#include "store/store.h"

enum store_lock_kind {
	STORE_READ, /* .in-use, shared */
	STORE_ADD, /* .lock; makes the directory of the name */
	STORE_REMOVE, /* .lock and .in-use */
	STORE_PUSH, /* .in-use, shared, and the directory: one at a time carries away */
};

struct store_lock_options {
	bool no_wait; /* -EBUSY instead; STORE_ADD waits for removers all the same */
	const volatile sig_atomic_t *cancel; /* set by a signal handler that does not restart calls:
						-ECANCELED */
};

struct store_lock;

/* STORE_READ of a store that cannot be written to takes nothing and succeeds: nobody
 * can remove there either. */
int store_lock(struct store_lock **ret, struct store *s, const char *name,
	       enum store_lock_kind kind, const struct store_lock_options *options,
	       struct usnap_err *err);

/* The directory of the name, while it is locked. */
int store_lock_fd(const struct store_lock *l);

/* NULL is fine. */
void store_unlock(struct store_lock *l);

/* Removes the directory of the name if it holds no more than the locks and .command, and unlocks (STORE_REMOVE). */
void store_unlock_empty(struct store_lock *l);

#endif
