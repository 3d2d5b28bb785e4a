/*
 * Does what prune has planned: removes, and merges one image after the other.
 * The name is locked (STORE_REMOVE) by the caller. Killed at any point it
 * leaves images that are whole, some of them twice; the next run goes on.
 */
#ifndef USNAP_CLI_PRUNE_CARRY_H
#define USNAP_CLI_PRUNE_CARRY_H

#include <signal.h>

#include "cli/prune_plan.h"
#include "store/storelock.h"

struct prune_carry {
	struct store *store;
	const char *name;
	struct store_lock *lock;
	const volatile sig_atomic_t *interrupted; /* may be NULL */
	size_t merged; /* result: so many images were written anew */
	bool is_through; /* result: but for what is damaged, all is done */
};

/* plan: the one to begin with, and in the end that of what is there. After a failure, and when
 * interrupted, all images that a rule keeps are as they were or merged. What is damaged stays, and
 * what it needs, and the others are merged: -EBADMSG or -ESTALE comes in the end. */
int prune_carry_out(struct prune_carry *c, struct prune_plan *plan, const struct prune_rules *rules,
		    struct usnap_err *err);

#endif
