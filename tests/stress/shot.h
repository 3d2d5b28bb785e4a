/*
 * A snapshot whose pages are made up: what it holds, and its fault and sweep thread, which agree
 * through the claims of the page set and hand copies to the pool as fault.c and sweep.c do.
 */
#ifndef TESTS_STRESS_SHOT_H
#define TESTS_STRESS_SHOT_H

#include <poll.h>
#include <sched.h>

#include "../unit/imagefixture.h"
#include "capture/pageset.h"
#include "capture/pool.h"
#include "outputs.h"

enum {
	NR_PAGES = 8192, /* more than the writer's segments hold */
	NR_FROZEN = 150, /* copied before the sweep begins */
	NR_DROPPED = 3, /* of a file that turns out not to count; they lie apart */
	FIRST_DROPPED = NR_PAGES + 5,
	NR_GIVEN = NR_PAGES + NR_DROPPED,
	CLUSTER = 16,
	FAULT_EVERY = 32 /* one page of so many is written before the sweep comes to it */
};

#define START HEAP
#define KEY(page) (START + (uint64_t)(page)*PAGE_BYTES)

enum phase {
	ARM,
	PRESERVE,
	RELEASE
};

struct shot {
	struct output output;
	struct image_writer *writer;
	struct pool *pool;
	struct pageset *pages;
	pthread_mutex_t fault_lock;
	struct block *open_block;
	_Atomic int phase;
	_Atomic bool torn, failed, quit;
	uint64_t attempt;
	unsigned next_fault;
	int wake_fd, error;
	uint64_t tear_at, cancel_at; /* pages handed over; 0: not */
	uint64_t chances[2]; /* of fault thread and sweep */
	struct usnap_err err;
};

/* Three pages of four have what they had in other attempts, and in the parent. */
static inline void page_at(uint64_t page, uint64_t attempt, unsigned char *p)
{
	stress_page(page << 32 | (page % 4 ? 0 : attempt), p);
}

static inline void copy_page(struct shot *s, struct block *b, unsigned page)
{
	page_at(page, s->attempt, block_add(b, KEY(page), 1));
	chunk_set(pageset_chunk(s->pages, KEY(page), false)->saved, chunk_page(KEY(page)));
}

static inline bool claim(struct shot *s, unsigned page)
{
	return chunk_claim(pageset_chunk(s->pages, KEY(page), false), chunk_page(KEY(page)));
}

static inline void unclaim(struct shot *s, unsigned page)
{
	struct chunk *ch = pageset_chunk(s->pages, KEY(page), false);
	unsigned p = chunk_page(KEY(page));

	atomic_fetch_and(&ch->claimed[p / 64], ~((uint64_t)1 << (p % 64)));
}

static inline bool stopping(const struct shot *s)
{
	return s->torn || s->failed;
}

/* ---- fault thread ---- */

static inline void flush(struct shot *s)
{
	if (s->open_block)
		pool_put(s->pool, s->open_block);
	s->open_block = NULL;
}

/* False: there is no block. */
static inline bool fault(struct shot *s)
{
	bool any = s->next_fault >= NR_PAGES || random_below(&s->chances[0], 2);
	unsigned page = any ? (unsigned)random_below(&s->chances[0], NR_PAGES) : s->next_fault;
	unsigned n = 1 + (unsigned)random_below(&s->chances[0], CLUSTER);

	for (; n && page < NR_PAGES; n--, page++) {
		if (!claim(s, page))
			continue;
		if (!s->open_block && !(s->open_block = pool_try_get(s->pool))) {
			unclaim(s, page);
			return false;
		}
		copy_page(s, s->open_block, page);
		if (s->open_block->nr_pages == BLOCK_PAGES)
			flush(s);
	}
	if (!any)
		s->next_fault += FAULT_EVERY;
	return true;
}

static inline void *fault_thread(void *arg)
{
	struct shot *s = arg;
	struct pollfd fds[] = {{s->wake_fd, POLLIN, 0}, {pool_event_fd(s->pool), POLLIN, 0}};
	uint64_t junk;

	while (!s->quit) {
		bool served = true;

		pthread_mutex_lock(&s->fault_lock);
		if (s->phase == PRESERVE && !stopping(s)) {
			served = fault(s);
		} else if (s->phase == RELEASE && !s->open_block) {
			/* Nothing is left to save, but a block can be in hand. */
			s->open_block = pool_try_get(s->pool);
			flush(s);
		}
		pthread_mutex_unlock(&s->fault_lock);
		/* No time limit while there is no block: the pool must say so. */
		poll(fds, 2, !served ? -1 : s->phase == ARM ? 1 : 0);
		if (fds[1].revents)
			(void)!read(fds[1].fd, &junk, sizeof(junk));
	}
	return NULL;
}

/* ---- sweep ---- */

static inline void *sweep_thread(void *arg)
{
	struct shot *s = arg;
	unsigned page = 0;

	while (!stopping(s)) {
		struct block *b = pool_get(s->pool);
		bool drop = random_below(&s->chances[1], 16) == 0;
		uint64_t first;

		if (!b)
			break;
		for (unsigned n = 0; page < NR_PAGES && n < BLOCK_PAGES; page++) {
			if (page % FAULT_EVERY == 0 || !claim(s, page))
				continue;
			n++;
			if (drop)
				unclaim(s, page);
			else
				copy_page(s, b, page);
		}
		pool_put(s->pool, b);
		if (page < NR_PAGES)
			continue;
		if (!pageset_count_unsaved(s->pages, &first))
			break;
		sched_yield();
		page = 0;
	}
	return NULL;
}

#endif
