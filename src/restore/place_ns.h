/*
 * Namespaces, and what this process may do about them and about PIDs.
 *
 * 0 or a negative errno, with text in err.
 */
#ifndef USNAP_RESTORE_PLACE_NS_H
#define USNAP_RESTORE_PLACE_NS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/timens.h"

/* What is to be made. */
struct place_spaces {
	bool pids; /* a PID namespace, and a mount namespace for its /proc */
	bool users; /* a user namespace, for the right to make the others */
	bool clocks;
	struct timens_offsets offsets;
};

/* Flags of clone3(2) for them; the time namespace is entered later. */
uint64_t place_clone_flags(const struct place_spaces *s);
/* In the clone that has entered them. uid, gid: before. */
int place_furnish(const struct place_spaces *s, uid_t uid, gid_t gid, struct usnap_err *err);
/* The calling process, alone in its address space, and its children get other clocks. */
int place_set_clocks(const struct timens_offsets *offsets, struct usnap_err *err);
/* Words and hint for a clone3(2) with these flags that failed with code. */
int place_no_clone(const struct place_spaces *s, int code, struct usnap_err *err);
/* Makes them in a child that ends at once: can it be done? */
int place_try(const struct place_spaces *s, struct usnap_err *err);
/* May this process choose PIDs (in its own namespace)? 0 or a negative errno. */
int place_may_choose_pids(void);
/* Has this process this capability in its user namespace? */
bool place_capable(int cap);

#endif
