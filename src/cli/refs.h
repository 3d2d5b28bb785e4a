/*
 * Images as they are named on a command line: by path, or as NAME[@TIME] in
 * the store. One function for all commands.
 *
 * A file that exists is meant as such. What comes from a store is locked
 * against removal, with all of its name, until refs_close().
 */
#ifndef USNAP_CLI_REFS_H
#define USNAP_CLI_REFS_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "store/storelock.h"

struct refs {
	char **path; /* of the images, in the order given; within a name oldest first */
	size_t nr;
	struct store **store;
	struct store_lock **lock;
	size_t nr_stores, nr_locks;
};

enum refs_which {
	REFS_ONE, /* NAME is its newest image */
	REFS_EVERY, /* NAME is all of its images */
};

/* store: of --store, or NULL. On failure refs is as good as before. */
int refs_add(struct refs *refs, const char *arg, const char *store, enum refs_which which,
	     struct usnap_err *err);

/* Every image in the store. */
int refs_add_store(struct refs *refs, const char *store, struct usnap_err *err);

/* Lets go of what was locked; the paths stay. */
void refs_unlock(struct refs *refs);
void refs_close(struct refs *refs);

/* The store of --store (NULL: the usual one), which must be there. */
int refs_open_store(struct store **ret, const char *store, struct usnap_err *err);

/* Takes "NAME@WHEN" apart; *ret_when is NULL without "@". False when it cannot be a name. */
bool refs_split(const char *arg, char name[STORE_NAME_MAX + 1], const char **ret_when);

#endif
