/*
 * What snapshots and restores need of the kernel, of our permissions and of a target,
 * found out by trying it. A probe changes nothing that outlives it.
 */
#ifndef USNAP_CLI_CHECK_H
#define USNAP_CLI_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "process/target.h"

enum check_state {
	CHECK_OK,
	CHECK_MISSING,
	CHECK_UNKNOWN, /* cannot be found out from here */
};

#define CHECK_SUSPENDING "suspending seccomp"

struct check {
	const char *name;
	enum check_state state;
	bool required; /* no snapshot without it */
	char detail[200]; /* what was found */
	const char *without; /* what fails without it */
	char grant[512]; /* how to get it, or empty */
};

struct checks {
	struct check c[40];
	size_t n;
	char other_features[200]; /* of userfaultfd: there, and not needed */
};

/* Adds one; never fails. It is CHECK_UNKNOWN until it is settled. */
struct check *check_add(struct checks *cs, const char *name, bool required, const char *without);
void check_settle(struct check *c, enum check_state state, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void check_grant(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Is there a required one missing? */
bool checks_failed(const struct checks *cs);

/* The effective capabilities of a process, from /proc; 0 when unreadable. */
unsigned long long check_capabilities(int procfd);

void check_userfaultfd(struct checks *cs, bool any_target); /* check_uffd.c */
void check_kernel(struct checks *cs); /* check_kernel.c */
void check_permissions(struct checks *cs, bool any_target); /* check_kernel.c */
void check_restore(struct checks *cs); /* check_restore.c */
void check_filters(struct checks *cs); /* check_filter.c */
void check_target_filter(struct checks *cs, const struct target *t); /* check_filter.c */
void check_target(struct checks *cs, pid_t pid); /* check_target.c */

#endif
