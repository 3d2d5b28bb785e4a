/*
 * Writes an image: a POSIX pax tar of zstd frames, an index and JSON members
 * (uffd-snap-image(5)).
 *
 * Threads: any number of threads encode, each with an image_encoder of its
 * own; every other function belongs to one controlling thread. A thread of
 * the writer's own does the I/O; while the output is slow, image_encode()
 * blocks. Memory: bounded by four segments, one frame per encoder and some 50
 * bytes per page stored; with a parent, 32 more per page that its index lists.
 * Nothing else grows.
 *
 * Errors: negative errno with text in err. A failed write is remembered:
 * every later call returns it, image_encode() included, without blocking.
 */
#ifndef USNAP_IMAGE_WRITER_H
#define USNAP_IMAGE_WRITER_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct image_writer;
struct image_encoder;
struct usnap_image;

/* Pages that follow each other in memory. */
struct image_run {
	uint64_t addr; /* of the first page; a multiple of the page size */
	uint32_t nr_pages; /* at least 1 */
	bool keep_zero; /* what is absent is not zero there: zero pages are stored as well */
};

struct image_writer_options {
	int fd; /* borrowed; regular file, pipe or socket */
	uint32_t page_size; /* bytes */
	int level; /* zstd level */
	uint32_t frame_pages; /* most pages that image_encode() will be given */
	uint64_t rate_bytes_s; /* upper bound of the output rate; 0: none */
	const uint64_t *seed; /* of page hashes; NULL: the parent's, or a random one */
	/* Set by a signal handler: all fails with -ECANCELED then, also what waits for whoever reads the
	 * output. NULL: none. Borrowed until image_writer_close(). */
	const volatile sig_atomic_t *cancel;
};

struct image_writer_stats {
	uint64_t nr_pages_stored; /* in the index, their bytes in this image */
	uint64_t nr_pages_referred; /* in the index, their bytes in an ancestor */
	uint64_t nr_pages_equal; /* given, stored already: their bytes are in it once */
	uint64_t nr_pages_zero; /* given, found all zero, not stored */
	uint64_t raw_bytes, compressed_bytes; /* of the frames of this attempt */
	uint64_t file_bytes; /* all that was written to fd so far */
	uint64_t longest_write_ns; /* that the output took for a single one of them */
};

int image_writer_open(struct image_writer **ret, const struct image_writer_options *options,
		      struct usnap_err *err);

/* Pages that parent has at the same address with the same bytes become
 * references to where they lie. Before the first image_writer_begin(). parent
 * is borrowed until image_writer_close() and not to be used meanwhile; its
 * index is loaded. snapshot.json is to name it. -ESTALE: it cannot be
 * continued with these options; the writer can still write a full image. */
int image_writer_set_parent(struct image_writer *w, struct usnap_image *parent,
			    struct usnap_err *err);

/* Begins an attempt: forgets every page and member given so far. A file is
 * truncated and begun again; a stream goes on, and what lies in it is dead
 * weight which no index names. No encoder may be in image_encode(). Also
 * needed before the first page. */
int image_writer_begin(struct image_writer *w, struct usnap_err *err);

/* Appends a member ("process.json"). buf is copied to the output before the
 * call returns. When a name repeats in a stream, the last one counts. */
int image_writer_member(struct image_writer *w, const char *name, const void *buf, size_t len,
			struct usnap_err *err);

int image_encoder_new(struct image_encoder **ret, struct image_writer *w);
void image_encoder_free(struct image_encoder *e);

/* Hashes pages, drops zero pages (see struct image_run), refers to what the parent or this image
 * has already, compresses the rest into one frame and appends it. data holds the pages of all runs back to back, at most
 * frame_pages of them. Blocks while the output is behind. */
int image_encode(struct image_encoder *e, const struct image_run *runs, size_t nr_runs,
		 const void *data);

/* After the last image_encode(): flushes the last segment. After it the
 * figures of image_writer_get_stats() about pages are final. */
int image_writer_flush(struct image_writer *w, struct usnap_err *err);
void image_writer_get_stats(struct image_writer *w, struct image_writer_stats *ret);

/* After image_writer_flush(): the pages given at [addr, addr + len) are not to be in the index.
 * No run given reaches across either end: one is dropped or kept as a whole. */
void image_writer_drop(struct image_writer *w, uint64_t addr, uint64_t len);

/* Writes index.zst, once everything else but stats.json is there: nothing may be given or dropped
 * any more. Any one thread may call it instead of the controlling one, which then calls nothing
 * until it has returned. */
int image_writer_index(struct image_writer *w, struct usnap_err *err);

/* Writes index.zst unless image_writer_index() did, stats.json and commit.json and ends the
 * archive. Making the file durable and naming it is the caller's (image/output.h). */
int image_writer_commit(struct image_writer *w, const char *stats_json, size_t stats_len,
			struct usnap_err *err);

/* Gives up: what waits for a slow output returns -ECANCELED, now and ever
 * after. From any thread, and from signal handlers. */
void image_writer_abort(struct image_writer *w);

/* Gives up what is not committed and frees everything. No encoder may be in
 * image_encode(); encoders are freed before. What was not committed stays
 * without commit.json. */
void image_writer_close(struct image_writer *w);

#endif
