/*
 * Which images of a name need which others: an image can be read as long as
 * every image that its page index refers to is there.
 */
#ifndef USNAP_STORE_LINKS_H
#define USNAP_STORE_LINKS_H

#include <stdbool.h>
#include <uffd-snap.h>

#include "store/store.h"

enum {
	LINKS_NONE = -1, /* it continues no other */
	LINKS_MISSING = -2, /* what it continues is not here */
};

struct store_link {
	bool readable; /* what it needs is known */
	bool damaged; /* not readable, and never will be */
	bool replaced; /* there is a better version of it: merged more often, and lacking nothing */
	size_t first_version; /* its versions have this in common: where one of them is in images */
	uint64_t times_merged;
	char version_of[STORE_ID_LEN + 1]; /* the first one's id, its own if that is the one */
	char run[STORE_ID_LEN + 1]; /* of the process, or "" */
	unsigned char taken_of[16]; /* hash of the run and of what else is said of the process */
	char why[512]; /* it is not readable */
	long parent; /* the image that it continues: where it is in images, or LINKS_ */
	size_t *from; /* all that it was made of and that are still there */
	size_t nr_from;
	size_t *needs; /* where they are in images, ascending */
	uint64_t *need_bytes; /* about what it uses of each; NULL: unknown */
	size_t nr_needs, nr_missing; /* nr_missing: needed, and not in images */
	char missing[STORE_ID_LEN + 1]; /* the first of them */
};

/* Is the image in this file what the name of the file says? Else why not, into why: under another's name it
 * would be restored and counted as that one. */
bool store_links_is_named(const struct usnap_info *info, const struct store_image *i,
			  const char *path, char *why, size_t room);

/* One for each image, in the same order. -ENOMEM. */
int store_links_load(struct store *s, const char *name, const struct store_images *images,
		     struct store_link **ret, struct usnap_err *err);
/* Sets need_bytes where that can be read. -ENOMEM. */
int store_links_load_sizes(struct store *s, const char *name, const struct store_images *images,
			   struct store_link *links);
void store_links_free(struct store_link *links, size_t nr);

/* Nothing that it needs is missing or cannot be read. */
bool store_links_is_complete(const struct store_link *links, size_t i);

/* keep: one for each image. Sets those that kept ones need; of what is not
 * readable nobody knows what it needs, so that nothing older goes.
 * Returns how many it set. */
size_t store_links_close(const struct store_link *links, bool *keep, size_t nr);

/* Points "latest" at what stays and removes files, those that need others before these: killed at any point, it leaves
 * none that lacks what it needs. name_fd is locked (STORE_REMOVE). */
int store_links_remove(const struct store_link *links, const struct store_images *images,
		       const bool *remove, int name_fd, size_t *ret_removed);

#endif
