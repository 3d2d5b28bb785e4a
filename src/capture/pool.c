/*
 * DESIGN. Two lists under one lock: free blocks (last in, first out: their
 * memory is warm) and filled ones (first in, first out). The sweep may take
 * a block only while more than a quarter are free, so that under a slow
 * output the target's faults are served before pages nobody waits for.
 *
 * Where nearly all pages are in the parent already, compress threads are faster
 * than the sweep: woken for every block they would sleep and wake all the time,
 * which costs more than their work. So a few blocks are left to come together;
 * whoever waits, for a block or for all of them, does not wait for that.
 *
 * The fault thread never blocks here: it polls, and an eventfd tells it when
 * to try again. The flag "hungry" says that it wants to be told.
 */
#include "capture/pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/util.h"

#define CANCEL_NS 100000000
/* Filled blocks that a sleeping compress thread is woken for. */
#define WAKE_BLOCKS 8

struct pool {
	pthread_mutex_t lock;
	pthread_cond_t has_free, has_filled, is_idle;
	struct block *free_list, *filled_head, **filled_tail;
	size_t nr_blocks, nr_free, reserve, nr_filled;
	size_t nr_busy; /* filled or being compressed */
	bool hungry, failed, draining, stopping;
	_Atomic int error;
	_Atomic uint64_t nr_pages;
	int event_fd;

	struct image_writer *writer;
	const volatile sig_atomic_t *cancel; /* may be NULL */
	unsigned nr_threads;
	pthread_t *threads;
	struct block *blocks;
	unsigned char *memory;
	size_t memory_bytes;
};

static void give_back(struct pool *p, struct block *b)
{
	b->nr_pages = b->nr_runs = 0;
	b->next = p->free_list;
	p->free_list = b;
	p->nr_free++;
	if (p->nr_free > p->reserve)
		pthread_cond_signal(&p->has_free);
	if (p->hungry) {
		uint64_t one = 1;

		p->hungry = false;
		(void)!write(p->event_fd, &one, sizeof(one));
	}
}

static void *compress_thread(void *arg)
{
	struct pool *p = arg;
	struct image_encoder *encoder = NULL;
	int r = image_encoder_new(&encoder, p->writer);

	pthread_mutex_lock(&p->lock);
	for (;;) {
		while (!p->filled_head && !p->stopping)
			pthread_cond_wait(&p->has_filled, &p->lock);
		struct block *b = p->filled_head;
		if (!b)
			break;
		p->filled_head = b->next;
		p->nr_filled--;
		if (!p->filled_head)
			p->filled_tail = &p->filled_head;
		if (r == 0)
			r = p->error;
		if (r == 0) {
			pthread_mutex_unlock(&p->lock);
			r = image_encode(encoder, b->runs, b->nr_runs, b->data);
			pthread_mutex_lock(&p->lock);
		}
		if (r < 0 && !p->error)
			p->error = r;
		/* The writer forgets its error when an attempt begins anew; so do we. */
		r = encoder ? 0 : -ENOMEM;
		give_back(p, b);
		if (--p->nr_busy == 0)
			pthread_cond_broadcast(&p->is_idle);
	}
	pthread_mutex_unlock(&p->lock);
	image_encoder_free(encoder);
	return NULL;
}

int pool_new(struct pool **ret, struct image_writer *w, size_t bytes, unsigned nr_threads,
	     const volatile sig_atomic_t *cancel, struct usnap_err *err)
{
	struct pool *p = calloc(1, sizeof(*p));
	if (!p)
		return usnap_fail_errno(err, -ENOMEM, "cannot set up the page pool");
	p->writer = w;
	p->cancel = cancel;
	p->filled_tail = &p->filled_head;
	p->nr_blocks = MAX(bytes, MIB(1)) / BLOCK_BYTES;
	p->reserve = p->nr_blocks / 4;
	p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->has_free, NULL);
	pthread_cond_init(&p->has_filled, NULL);
	pthread_cond_init(&p->is_idle, NULL);

	p->blocks = calloc(p->nr_blocks, sizeof(*p->blocks));
	p->threads = calloc(nr_threads, sizeof(*p->threads));
	p->memory_bytes = p->nr_blocks * BLOCK_BYTES;
	p->memory = mmap(NULL, p->memory_bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	int r = -errno;
	if (p->memory == MAP_FAILED)
		p->memory = NULL;
	if (!p->memory || !p->blocks || !p->threads || p->event_fd < 0) {
		pool_free(p);
		return usnap_fail_errno(err, r < 0 ? r : -ENOMEM,
					"cannot set up a page pool of %zu bytes", bytes);
	}
	/* Fewer faults of our own; block by block, as they are used. */
	madvise(p->memory, p->memory_bytes, MADV_HUGEPAGE);
	/* The first ones are filled while the target stands still: not with fresh memory. */
	memset(p->memory, 0, MIN(p->memory_bytes, MIB(4)));
	for (size_t i = p->nr_blocks; i-- > 0;) {
		p->blocks[i].data = p->memory + i * BLOCK_BYTES;
		give_back(p, &p->blocks[i]);
	}
	for (; p->nr_threads < nr_threads; p->nr_threads++) {
		r = -pthread_create(&p->threads[p->nr_threads], NULL, compress_thread, p);
		if (r < 0) {
			pool_free(p);
			return usnap_fail_errno(err, r, "cannot start a compress thread");
		}
	}
	*ret = p;
	return 0;
}

static struct block *pop_free(struct pool *p)
{
	struct block *b = p->free_list;

	p->free_list = b->next;
	p->nr_free--;
	return b;
}

/* A signal handler sets it, on whichever thread the signal comes to. */
static bool is_cancelled(const struct pool *p)
{
	return p->cancel && __atomic_load_n(p->cancel, __ATOMIC_RELAXED);
}

struct block *pool_get(struct pool *p)
{
	struct block *b = NULL;

	pthread_mutex_lock(&p->lock);
	if (p->nr_free <= p->reserve)
		pthread_cond_broadcast(&p->has_filled);
	while (p->nr_free <= p->reserve && !p->failed && !is_cancelled(p)) {
		struct timespec until;

		/* A signal handler can set a flag, and no more. */
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += (until.tv_nsec + CANCEL_NS) / 1000000000;
		until.tv_nsec = (until.tv_nsec + CANCEL_NS) % 1000000000;
		pthread_cond_clockwait(&p->has_free, &p->lock, CLOCK_MONOTONIC, &until);
	}
	if (p->nr_free > p->reserve && !p->failed)
		b = pop_free(p);
	pthread_mutex_unlock(&p->lock);
	return b;
}

struct block *pool_try_get(struct pool *p)
{
	struct block *b = NULL;

	pthread_mutex_lock(&p->lock);
	if (p->nr_free) {
		b = pop_free(p);
	} else {
		p->hungry = true;
		pthread_cond_broadcast(&p->has_filled);
	}
	pthread_mutex_unlock(&p->lock);
	return b;
}

int pool_event_fd(const struct pool *p)
{
	return p->event_fd;
}

void pool_put(struct pool *p, struct block *b)
{
	pthread_mutex_lock(&p->lock);
	if (b->nr_pages && !p->failed) {
		atomic_fetch_add(&p->nr_pages, b->nr_pages);
		b->next = NULL;
		*p->filled_tail = b;
		p->filled_tail = &b->next;
		p->nr_busy++;
		if (++p->nr_filled >= WAKE_BLOCKS || p->nr_free <= p->reserve || p->draining)
			pthread_cond_signal(&p->has_filled);
	} else {
		give_back(p, b);
	}
	pthread_mutex_unlock(&p->lock);
}

int pool_drain(struct pool *p)
{
	pthread_mutex_lock(&p->lock);
	p->draining = true;
	pthread_cond_broadcast(&p->has_filled);
	while (p->nr_busy)
		pthread_cond_wait(&p->is_idle, &p->lock);
	p->draining = false;
	int r = p->error;
	pthread_mutex_unlock(&p->lock);
	return r;
}

void pool_fail(struct pool *p)
{
	pthread_mutex_lock(&p->lock);
	p->failed = true;
	pthread_cond_broadcast(&p->has_free);
	pthread_mutex_unlock(&p->lock);
}

void pool_reset(struct pool *p)
{
	pthread_mutex_lock(&p->lock);
	p->failed = false;
	p->error = 0;
	p->nr_pages = 0;
	pthread_mutex_unlock(&p->lock);
}

int pool_error(const struct pool *p)
{
	return p->error;
}

uint64_t pool_nr_pages(const struct pool *p)
{
	return p->nr_pages;
}

void pool_free(struct pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stopping = true;
	pthread_cond_broadcast(&p->has_filled);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->nr_threads; i++)
		pthread_join(p->threads[i], NULL);
	if (p->memory)
		munmap(p->memory, p->memory_bytes);
	if (p->event_fd >= 0)
		close(p->event_fd);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->has_free);
	pthread_cond_destroy(&p->has_filled);
	pthread_cond_destroy(&p->is_idle);
	free(p->blocks);
	free(p->threads);
	free(p);
}
