/*
 * The page index of an image while it is made: which page lies where, in as
 * little memory as can be (24 bytes per page stored, 16 per run of pages, 24
 * per frame; nothing per page that is referred to but its run), grown without
 * copying and sorted in place.
 *
 * No locking: the writer's lock guards it. Returns 0 or negative errno.
 */
#ifndef USNAP_IMAGE_PAGEINDEX_H
#define USNAP_IMAGE_PAGEINDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "image/format.h"
#include "image/pagetable.h"
#include "image/references.h"

/* Pages that follow each other in memory and in their frame. */
struct page_run {
	uint64_t addr; /* of the first page */
	uint32_t frame; /* or one of the two below */
	uint16_t slot; /* of the first page in the frame */
	uint16_t nr_pages;
};

#define PAGE_NEW_FRAME (UINT32_MAX - 1) /* in the frame that is being added */
#define PAGE_IN_PARENT UINT32_MAX /* where the parent has it; slot: 0 */

struct page_frame {
	uint64_t first_hash; /* number of its first page in hashes */
	uint32_t segment;
	uint32_t offset; /* into the segment */
	uint32_t compressed_bytes;
	uint32_t nr_pages;
};

/* Memory that grows by moving page tables, never by copying: a realloc that
 * copies would hold both copies for a while. */
struct growing {
	void *p;
	size_t used, room; /* bytes */
};

int growing_reserve(struct growing *g, size_t extra);
void growing_free(struct growing *g);

struct pageindex {
	uint32_t page_size;
	uint64_t seed;
	struct growing runs, frames, hashes;
	struct pagetable stored; /* numbers of hashes */
	struct references refs;
	uint64_t nr_pages, nr_referred; /* in runs */
};

void pageindex_init(struct pageindex *pi, uint32_t page_size);
/* Forgets all but page size, seed and parent. */
void pageindex_clear(struct pageindex *pi);

/* Adds a frame (NULL: none) and runs, all or nothing. hashes: one per page of
 * the frame. find: pageindex_find() is to know these pages. -EOVERFLOW when
 * frames cannot be numbered any more. */
int pageindex_add(struct pageindex *pi, const struct page_frame *frame, const struct page_run *runs,
		  size_t nr_runs, const struct page_hash *hashes, bool find);

/* Where a page of this hash is stored already; false: nowhere. */
bool pageindex_find(const struct pageindex *pi, const struct page_hash *h, uint32_t *ret_frame,
		    uint16_t *ret_slot);

/* Forgets the runs that begin in [addr, addr + len); their bytes stay where they are. */
void pageindex_drop(struct pageindex *pi, uint64_t addr, uint64_t len);

/* Sorts, and finds out which frames of the parent are referred to. -EINVAL
 * when an address would be in the index twice. */
int pageindex_finish(struct pageindex *pi, struct usnap_err *err);

/* Bytes that pageindex_emit() will produce. */
uint64_t pageindex_bytes(const struct pageindex *pi);

/* Hands the index, as it is before compression, to out() piece by piece.
 * segment_base: file offset of each segment's content. Stops at the first
 * negative return of out() and returns it. */
int pageindex_emit(const struct pageindex *pi, const unsigned char *id,
		   const uint64_t *segment_base, int (*out)(void *ctx, const void *buf, size_t len),
		   void *ctx);

static inline uint64_t pageindex_nr_frames(const struct pageindex *pi)
{
	return pi->frames.used / sizeof(struct page_frame);
}

/* With those of others, after pageindex_finish(). */
static inline uint64_t pageindex_all_frames(const struct pageindex *pi)
{
	return pageindex_nr_frames(pi) + pi->refs.nr_frames;
}

#endif
