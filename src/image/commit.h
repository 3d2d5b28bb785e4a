/*
 * The end of an image: the page index, and commit.json, which makes it one.
 * Errors: negative errno with text in err. One thread.
 */
#ifndef USNAP_IMAGE_COMMIT_H
#define USNAP_IMAGE_COMMIT_H

#include <stdint.h>

#include "image/pageindex.h"
#include "image/tarball.h"

/* Writes index.zst from an index that pageindex_finish() has finished.
 * segment_base: file offset of the content of each segment. */
int commit_write_index(struct tarball *t, const struct pageindex *pi,
		       const unsigned char id[FORMAT_ID_BYTES], const uint64_t *segment_base,
		       struct usnap_err *err);

/* Writes commit.json and the end of the archive. id in hex. */
int commit_write(struct tarball *t, const struct pageindex *pi, const char *id,
		 struct usnap_err *err);

#endif
