#include "capture/pageset.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "common/util.h"

enum {
	NODE_BITS = 9,
	NODE_SIZE = 1 << NODE_BITS,
	TOP_BITS = 57 - CHUNK_SHIFT - 2 * NODE_BITS
};

struct leaf {
	_Atomic(struct chunk *) chunk[NODE_SIZE];
};

struct mid {
	_Atomic(struct leaf *) leaf[NODE_SIZE];
};

struct pageset {
	/* 2 MiB of address space of which a page or two are ever touched */
	_Atomic(struct mid *) top[(size_t)1 << TOP_BITS];
};

struct pageset *pageset_new(void)
{
	void *p = mmap(NULL, sizeof(struct pageset), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* The node in slot, made if need be; of two makers one wins. */
static void *node_get(_Atomic(void *) *slot, size_t size, bool create)
{
	void *node = atomic_load_explicit(slot, memory_order_acquire);

	if (node || !create)
		return node;
	void *fresh = calloc(1, size);
	if (!fresh)
		return NULL;
	if (atomic_compare_exchange_strong(slot, &node, fresh))
		return fresh;
	free(fresh);
	return node;
}

struct chunk *pageset_chunk(struct pageset *ps, uint64_t key, bool create)
{
	uint64_t n = key >> CHUNK_SHIFT;

	if (n >> (TOP_BITS + 2 * NODE_BITS))
		return NULL;
	struct mid *m =
		node_get((_Atomic(void *) *)&ps->top[n >> (2 * NODE_BITS)], sizeof(*m), create);
	if (!m)
		return NULL;
	struct leaf *l = node_get((_Atomic(void *) *)&m->leaf[n >> NODE_BITS & (NODE_SIZE - 1)],
				  sizeof(*l), create);
	if (!l)
		return NULL;
	return node_get((_Atomic(void *) *)&l->chunk[n & (NODE_SIZE - 1)], sizeof(struct chunk),
			create);
}

struct chunk *pageset_next(struct pageset *ps, uint64_t key, uint64_t *ret_key)
{
	const uint64_t end = (uint64_t)1 << (TOP_BITS + 2 * NODE_BITS);
	uint64_t n = key >> CHUNK_SHIFT;

	while (n < end) {
		struct mid *m =
			atomic_load_explicit(&ps->top[n >> (2 * NODE_BITS)], memory_order_acquire);
		if (!m) {
			n = (n | (((uint64_t)1 << (2 * NODE_BITS)) - 1)) + 1;
			continue;
		}
		struct leaf *l = atomic_load_explicit(&m->leaf[n >> NODE_BITS & (NODE_SIZE - 1)],
						      memory_order_acquire);
		if (!l) {
			n = (n | (NODE_SIZE - 1)) + 1;
			continue;
		}
		struct chunk *c =
			atomic_load_explicit(&l->chunk[n & (NODE_SIZE - 1)], memory_order_acquire);
		if (c) {
			*ret_key = n << CHUNK_SHIFT;
			return c;
		}
		n++;
	}
	return NULL;
}

static void clear(_Atomic uint64_t *bits)
{
	for (int i = 0; i < CHUNK_WORDS; i++)
		atomic_store_explicit(&bits[i], 0, memory_order_relaxed);
}

void pageset_reset_claims(struct pageset *ps)
{
	uint64_t key = 0;

	for (struct chunk *c; (c = pageset_next(ps, key, &key)); key += CHUNK_BYTES) {
		clear(c->claimed);
		clear(c->saved);
	}
}

void pageset_reset(struct pageset *ps)
{
	uint64_t key = 0;

	pageset_reset_claims(ps);
	for (struct chunk *c; (c = pageset_next(ps, key, &key)); key += CHUNK_BYTES) {
		clear(c->populated);
		atomic_store(&c->huge, false);
	}
}

/* Bits first ... first+nr-1 of word w, all in this word. */
static uint64_t mask_of(unsigned first, unsigned nr)
{
	return (nr == 64 ? ~(uint64_t)0 : ((uint64_t)1 << nr) - 1) << first;
}

int pageset_populate(struct pageset *ps, uint64_t key, uint64_t nr_pages)
{
	while (nr_pages) {
		struct chunk *c = pageset_chunk(ps, key, true);
		if (!c)
			return -ENOMEM;
		unsigned page = chunk_page(key), nr = 64 - page % 64;
		nr = (unsigned)MIN((uint64_t)nr, nr_pages);
		atomic_fetch_or(&c->populated[page / 64], mask_of(page % 64, nr));
		key += nr * PAGE_BYTES;
		nr_pages -= nr;
	}
	return 0;
}

static void depopulate(struct pageset *ps, uint64_t key, uint64_t nr_pages, bool split)
{
	uint64_t end = key + nr_pages * PAGE_BYTES, at;

	for (struct chunk *c; key < end && (c = pageset_next(ps, key, &at)) && at < end;) {
		key = MAX(key, at);
		uint64_t stop = MIN(end, at + CHUNK_BYTES);
		while (key < stop) {
			unsigned page = chunk_page(key), nr = 64 - page % 64;
			nr = (unsigned)MIN((uint64_t)nr, (stop - key) / PAGE_BYTES);
			atomic_fetch_and(&c->populated[page / 64], ~mask_of(page % 64, nr));
			key += nr * PAGE_BYTES;
		}
		if (split)
			atomic_store(&c->huge, false);
	}
}

void pageset_depopulate(struct pageset *ps, uint64_t key, uint64_t nr_pages)
{
	depopulate(ps, key, nr_pages, true);
}

void pageset_exclude(struct pageset *ps, uint64_t key, uint64_t nr_pages)
{
	depopulate(ps, key, nr_pages, false);
}

uint64_t pageset_count_populated(struct pageset *ps)
{
	uint64_t key = 0, nr = 0;

	for (struct chunk *c; (c = pageset_next(ps, key, &key)); key += CHUNK_BYTES)
		for (int i = 0; i < CHUNK_WORDS; i++)
			nr += (uint64_t)__builtin_popcountll(atomic_load(&c->populated[i]));
	return nr;
}

uint64_t pageset_count_unsaved(struct pageset *ps, uint64_t *ret_first)
{
	uint64_t key = 0, nr = 0;

	for (struct chunk *c; (c = pageset_next(ps, key, &key)); key += CHUNK_BYTES)
		for (unsigned i = 0; i < CHUNK_WORDS; i++) {
			uint64_t left = atomic_load(&c->populated[i]) & ~atomic_load(&c->saved[i]);

			if (left && !nr)
				*ret_first = key + (i * 64 + (unsigned)__builtin_ctzll(left)) *
							   PAGE_BYTES;
			nr += (uint64_t)__builtin_popcountll(left);
		}
	return nr;
}

void pageset_free(struct pageset *ps)
{
	if (!ps)
		return;
	for (size_t t = 0; t < ARRAY_SIZE(ps->top); t++) {
		struct mid *m = ps->top[t];
		if (!m)
			continue;
		for (int i = 0; i < NODE_SIZE; i++) {
			struct leaf *l = m->leaf[i];
			if (!l)
				continue;
			for (int k = 0; k < NODE_SIZE; k++)
				free(l->chunk[k]);
			free(l);
		}
		free(m);
	}
	munmap(ps, sizeof(*ps));
}
