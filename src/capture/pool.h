/*
 * Copies on their way from the target into the image: a fixed number of
 * blocks (promise 7 of uffd-snap(7)). Producers fill them (fault and sweep
 * thread), the pool's own compress threads hand them to the image writer and
 * take them back.
 *
 * Threads: get, try_get and put from any; drain and free from the one that
 * made it. Errors of the writer are remembered: from then on blocks are
 * thrown away unread, so that no producer ever waits for a dead output.
 */
#ifndef USNAP_CAPTURE_POOL_H
#define USNAP_CAPTURE_POOL_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "image/writer.h"

enum {
	BLOCK_PAGES = 64
};
#define BLOCK_BYTES ((size_t)BLOCK_PAGES << 12)

/* Pages copied together; they become one frame. */
struct block {
	struct block *next; /* the pool's */
	unsigned char *data; /* BLOCK_BYTES */
	unsigned nr_pages, nr_runs;
	struct image_run runs[BLOCK_PAGES]; /* addr: keys */
};

struct pool;

/* bytes: memory for copies, at least 1 MiB. A quarter of the blocks is kept
 * for try_get(). */
int pool_new(struct pool **ret, struct image_writer *w, size_t bytes, unsigned nr_threads,
	     const volatile sig_atomic_t *cancel, struct usnap_err *err);

/* An empty block; waits. NULL after pool_fail(), and once *cancel is set. */
struct block *pool_get(struct pool *p);

/* An empty block, or NULL when there is none now; then event_fd becomes
 * readable once there is one again. */
struct block *pool_try_get(struct pool *p);
int pool_event_fd(const struct pool *p);

/* Adds a page to a block that has room; data[(nr_pages - 1) pages] is its place. */
static inline unsigned char *block_add(struct block *b, uint64_t key, unsigned nr_pages)
{
	struct image_run *last = b->nr_runs ? &b->runs[b->nr_runs - 1] : NULL;
	unsigned char *at = b->data + ((size_t)b->nr_pages << 12);

	if (last && last->addr + ((uint64_t)last->nr_pages << 12) == key)
		last->nr_pages += nr_pages;
	else
		b->runs[b->nr_runs++] = (struct image_run){.addr = key, .nr_pages = nr_pages};
	b->nr_pages += nr_pages;
	return at;
}

/* Hands a filled block over (an empty one is just given back). */
void pool_put(struct pool *p, struct block *b);

/* Waits until every block put so far has reached the writer. Returns the
 * first error of the writer. */
int pool_drain(struct pool *p);

/* Wakes every waiter; pool_get() returns NULL from now on until pool_reset(). */
void pool_fail(struct pool *p);
void pool_reset(struct pool *p);

/* 0, or the first error of the writer. */
int pool_error(const struct pool *p);

/* Pages handed over so far in this attempt, and blocks in use. */
uint64_t pool_nr_pages(const struct pool *p);

void pool_free(struct pool *p);

#endif
