/*
 * Which processes are ready for snapshots, by name, and which are being taken:
 * what the run directory (rundir.h) tells of processes that live.
 *
 * A snapshot does without it, but for one thing: it begins only if nobody else
 * is seen in there taking the process. What it says is checked against /proc.
 * What other users write counts for their own processes only; root reads the
 * directories of all users, everybody else his own.
 */
#ifndef USNAP_STORE_REGISTRY_H
#define USNAP_STORE_REGISTRY_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/rundir.h"

struct registry_entry {
	pid_t pid;
	uint64_t start_ticks;
	uint64_t beacon; /* address in the process; 0: not known */
	char name[RUNDIR_NAME_MAX + 1]; /* "": none */
	struct {
		pid_t pid;
		uint64_t start_ticks;
	} follows[RUNDIR_FOLLOWS_MAX]; /* pid 0: none */
	bool counts; /* false: what it follows still lives */
};

struct registry {
	struct registry_entry *entry;
	size_t nr;
};

/* Those that live. Removes files of those that do not. -ENOMEM. */
int registry_load(struct registry *ret);
void registry_free(struct registry *r);

/* That of a process, if it counts; or NULL. */
const struct registry_entry *registry_of(const struct registry *r, pid_t pid);
/* There is one, though it may not count. */
bool registry_knows(const struct registry *r, pid_t pid);
/* That of the process that goes on as a daemon when this one has ended. */
const struct registry_entry *registry_heir(const struct registry *r, pid_t pid, uint64_t start);

/* For a process that could not do so itself. */
int registry_add(const struct registry_entry *e, struct usnap_err *err);

/* ---- snapshots ---- */

struct registry_taken {
	pid_t by; /* who is at it now, or 0 */
	uint64_t t0_ms; /* of the last one that was completed; 0: not known */
	char file[PATH_MAX]; /* of that */
};

/* False: nothing is known. */
bool registry_taken(pid_t pid, uint64_t start_ticks, struct registry_taken *ret);

/* Says that the caller takes the process, until registry_end() or its death. A descriptor; -EBUSY:
 * somebody else does; -ENOENT: that cannot be told. */
int registry_begin(pid_t pid, uint64_t start_ticks);
/* One "run --pid" is enough. A descriptor to keep; -EBUSY: there is one; -ENOENT: cannot be told. */
int registry_serve(pid_t pid, uint64_t start_ticks);
/* One "run" of a name in a store at a time. As registry_serve(). */
int registry_begin_run(const char *store, const char *name);
/* file: NULL when there is no image. */
void registry_end(int fd, uint64_t t0_ms, const char *file);

#endif
