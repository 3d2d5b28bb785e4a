/*
 * Between encoders and their writer: what a finished frame is, and where it
 * goes. Any thread.
 */
#ifndef USNAP_IMAGE_APPEND_H
#define USNAP_IMAGE_APPEND_H

#include "image/pageindex.h"
#include "image/writer.h"

struct encoded {
	const void *data; /* one zstd frame */
	size_t len;
	uint32_t nr_pages, nr_zero; /* in the frame; given, but zero */
	const struct image_run *runs; /* of the pages in the frame */
	size_t nr_runs;
	const struct page_hash *hashes; /* one per page */
};

const struct image_writer_options *writer_options(const struct image_writer *w);

/* 0 when frames are taken; what is remembered after a failure; -EINVAL
 * before the first image_writer_begin(). Never blocks. */
int writer_ready(struct image_writer *w);

/* Takes a frame (or, with no pages, just counts); waits for room. */
int writer_append(struct image_writer *w, const struct encoded *e);

/* Remembers a failure unless there is one already. Returns what is kept. */
int writer_fail(struct image_writer *w, const struct usnap_err *err);

#endif
