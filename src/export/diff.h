/*
 * What differs between the memories of two images: runs of pages, ascending.
 *
 * Compares hashes where both images have one seed, as those of a chain and of
 * a store do, and bytes otherwise. Contents of files without a name are no
 * memory and are left out. One thread; both images stay the caller's.
 */
#ifndef USNAP_EXPORT_DIFF_H
#define USNAP_EXPORT_DIFF_H

#include <stdbool.h>
#include <stdint.h>
#include <uffd-snap.h>

#include "common/err.h"

enum diff_kind {
	DIFF_CHANGED,
	DIFF_NEW, /* not mapped in the first image */
	DIFF_GONE, /* not mapped in the second */
};

struct diff_run {
	uint64_t start, len;
	enum diff_kind kind;
};

struct diff;

int diff_new(struct diff **ret, struct usnap_image *a, struct usnap_image *b,
	     struct usnap_err *err);
/* 1 and the next run, or 0 at the end. */
int diff_next(struct diff *d, struct diff_run *ret, struct usnap_err *err);
void diff_free(struct diff *d);

#endif
