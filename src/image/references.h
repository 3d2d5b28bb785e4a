/*
 * Pages of an image that lie in another: its parent's index says where. Of
 * the parent's frames those that are referred to follow the image's own in
 * the table of frames, in the same order; of the images likewise. A frame
 * that the parent has from an ancestor is referred to there, so that an
 * index is complete whatever the length of the chain.
 *
 * Matching: any thread, with a hint of its own. The rest: one thread.
 */
#ifndef USNAP_IMAGE_REFERENCES_H
#define USNAP_IMAGE_REFERENCES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "image/pagetable.h"

struct usnap_image;

struct references {
	const struct usnap_image *parent; /* borrowed, its index loaded; NULL: none */
	uint32_t *frames; /* by the parent's number: ours + 1; 0: not referred to */
	uint32_t *images;
	uint64_t nr_frames, nr_images; /* referred to */
};

/* Whether the parent has a page of this hash at addr. *hint: where the last search ended. */
bool references_match(const struct usnap_image *parent, uint64_t addr, const struct page_hash *h,
		      uint64_t *hint);

/* Frames and images begin to be counted. */
int references_begin(struct references *rf);
/* The parent has the page at addr: its frame is needed. -EINVAL when it has not. */
int references_need(struct references *rf, uint64_t addr, uint64_t *hint);
/* Numbers them: frames from first_frame on, images from 1. */
int references_number(struct references *rf, uint64_t first_frame, struct usnap_err *err);
void references_clear(struct references *rf);

/* Records of the index. ret: FORMAT_INDEX_RECORD zero bytes. Those of images and frames by the
 * parent's numbers; false when it is not referred to. */
bool references_image_record(const struct references *rf, uint64_t nr, unsigned char *ret);
bool references_frame_record(const struct references *rf, uint64_t nr, unsigned char *ret);
void references_page_record(const struct references *rf, uint64_t addr, uint64_t *hint,
			    unsigned char *ret);

#endif
