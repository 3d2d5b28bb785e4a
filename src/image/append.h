/*
 * Between encoders and their writer: what a finished frame is, and where it
 * goes. Any thread.
 */
#ifndef USNAP_IMAGE_APPEND_H
#define USNAP_IMAGE_APPEND_H

#include <stdbool.h>

#include "image/pageindex.h"
#include "image/writer.h"

struct encoded {
	const void *data; /* one zstd frame; len 0: none */
	size_t len;
	uint32_t nr_pages; /* in the frame */
	const struct page_hash *hashes; /* one per page in the frame */
	const struct page_run *runs; /* all that goes into the index */
	size_t nr_runs;
	uint32_t nr_zero, nr_equal; /* pages given, but zero; stored already */
	bool find; /* pages of this frame are to be found by writer_find() */
};

const struct image_writer_options *writer_options(const struct image_writer *w);

/* 0 when frames are taken; what is remembered after a failure; -EINVAL
 * before the first image_writer_begin(). Never blocks. */
int writer_ready(struct image_writer *w);

/* The image that pages are compared with, or NULL; the same until the end. */
const struct usnap_image *writer_parent(const struct image_writer *w);
uint64_t writer_seed(const struct image_writer *w);

/* A page on its way, and where its bytes are: as in struct page_run. */
struct sifted {
	uint64_t addr;
	const unsigned char *data;
	struct page_hash hash;
	uint32_t frame;
	uint16_t slot;
};

/* Finds out which pages in PAGE_NEW_FRAME this image stores already. */
void writer_find(struct image_writer *w, struct sifted *pages, size_t n);

/* Takes a frame and runs (or just counts); waits for room. */
int writer_append(struct image_writer *w, const struct encoded *e);

/* Remembers a failure unless there is one already. Returns what is kept. */
int writer_fail(struct image_writer *w, const struct usnap_err *err);

#endif
