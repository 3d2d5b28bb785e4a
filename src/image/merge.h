/*
 * An image and the ancestors it refers to, made one that refers to none; or
 * one that continues another than it did, so that what lay between can go.
 *
 * The calling thread reads, decodes and checks; nothing of the process is
 * needed. Memory: what the page index takes, 9 bytes more per page, the index
 * of the parent, and what a writer takes. Naming and fsync of the result are the caller's.
 */
#ifndef USNAP_IMAGE_MERGE_H
#define USNAP_IMAGE_MERGE_H

#include <signal.h>
#include <uffd-snap.h>

#include "common/err.h"
#include "image/format.h"
#include "image/writer.h"

struct merge_options {
	int fd; /* borrowed; as of struct image_writer_options */
	/* What it has at the same address with the same bytes is referred to, as a snapshot would.
	 * May be NULL. Borrowed, and not to be used meanwhile. */
	struct usnap_image *parent;
	int level; /* zstd level, for frames of which not all is used any more */
	const volatile sig_atomic_t *cancel; /* may be NULL */
	/* Bytes of memory, some ten times a second. May be NULL. */
	void (*progress)(void *arg, uint64_t done, uint64_t total);
	void *progress_arg;
};

/* Every page is compared with its hash before it is taken over. -ESTALE also: the parent cannot be
 * continued. The result has an id of its own.
 * -ECANCELED, -ESTALE (an ancestor is missing), -EBADMSG (something is damaged). */
int image_merge(struct usnap_image *img, const struct merge_options *o,
		struct image_writer_stats *ret, struct usnap_err *err);

/* Whose version an opened image is: the id that it had when it was taken, and how often it was
 * merged since. */
void merge_get_version(const struct usnap_image *img, char ret_id[FORMAT_HASH_HEX + 1],
		       uint64_t *ret_times);

#endif
