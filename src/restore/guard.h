/*
 * A child that outlives the restorer, should it be killed, and undoes what
 * the builder has made in the file system.
 *
 * DESIGN. What is to be undone is known in memory that all share. When to do
 * it: when the restorer and the builder have both ended, for the builder may
 * be in the middle of making something. Both have a mapping of a file that is
 * locked with flock(2) through that same open file description; the lock goes
 * with the last mapping, however its owner ended, and the guard waits for the
 * lock. Then it looks whether the process had come to life: one that was being
 * let go ends with the restorer if it was still traced, a moment later.
 */
#ifndef USNAP_RESTORE_GUARD_H
#define USNAP_RESTORE_GUARD_H

#include "restore/restore_internal.h"

struct guard;

/* Before any namespace is made: with that, its processes end. Nothing where there is nothing that
 * could be left. */
int guard_begin(struct restore *r, struct usnap_err *err);
/* The process is let go now: if it ends with the restorer on the way, all is to be undone. */
void guard_goes(struct restore *r);
/* From here on nothing is to be undone; or all of it again. */
void guard_done(struct restore *r);
void guard_not_done(struct restore *r);
/* Lets go, and waits for its end, if there is one. */
void guard_end(struct restore *r);

#endif
