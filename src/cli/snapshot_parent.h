/*
 * The image that a snapshot is to continue: opened before anything of the
 * process is disturbed, lent to the writer, closed after it.
 */
#ifndef USNAP_CLI_SNAPSHOT_PARENT_H
#define USNAP_CLI_SNAPSHOT_PARENT_H

#include <uffd-snap.h>

#include "capture/capture.h"
#include "cli/snapshot_dest.h"

struct snapshot_parent {
	struct usnap_image *img; /* NULL: none */
	const char *id; /* of what the writer continues; NULL: it writes a full image */
	char *path;
	uint64_t depth; /* of its chain: 0 for a full image */
	char why[512]; /* a full image, although a parent was given; or "" */
};

/* The one that was asked for (-o) has to be there; the store's is taken as it is. */
int snapshot_parent_open(struct snapshot_parent *p, const struct snapshot_args *a,
			 const struct snapshot_dest *d, struct usnap_err *err);
int snapshot_parent_adopt(struct snapshot_parent *p, struct image_writer *w, const struct target *t,
			  struct usnap_err *err);
/* How many images this one continues, one after the other. That they are in the store no more changes
 * nothing of it. */
uint64_t snapshot_depth(struct usnap_image *img);

void snapshot_parent_close(struct snapshot_parent *p);

#endif
