/*
 * What is known of each page of the snapshot, three bits a page:
 *
 *   populated  it held something at T0 (or may have): it must be in the image
 *   claimed    somebody is copying it, or has: once (promise 2 of uffd-snap(7))
 *   saved      its bytes are safe and its protection is lifted
 *
 * Pages are named by key: their address at T0. Kept in chunks of 512
 * pages under a radix tree, so that memory follows what is populated and not
 * the address space.
 *
 * Threads: any; bits are atomic, nodes are added without locks and freed only
 * at the end.
 */
#ifndef USNAP_CAPTURE_PAGESET_H
#define USNAP_CAPTURE_PAGESET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	PAGE_SHIFT = 12,
	CHUNK_SHIFT = 21,
	CHUNK_PAGES = 1 << (CHUNK_SHIFT - PAGE_SHIFT),
	CHUNK_WORDS = CHUNK_PAGES / 64,
};

#define PAGE_BYTES ((uint64_t)1 << PAGE_SHIFT)
#define CHUNK_BYTES ((uint64_t)1 << CHUNK_SHIFT)

struct chunk {
	_Atomic uint64_t populated[CHUNK_WORDS];
	_Atomic uint64_t claimed[CHUNK_WORDS];
	_Atomic uint64_t saved[CHUNK_WORDS];
	/* One huge page maps all of it: unprotecting a part would split it. */
	_Atomic bool huge;
};

struct pageset;

struct pageset *pageset_new(void);
void pageset_free(struct pageset *ps);

/* Forgets everything, keeps the nodes. No other thread may be in it. */
void pageset_reset(struct pageset *ps);

/* Forgets claims and saves: the same pages are to be captured anew. */
void pageset_reset_claims(struct pageset *ps);

/* NULL when there is none (or, with create, no memory). */
struct chunk *pageset_chunk(struct pageset *ps, uint64_t key, bool create);

/* The first chunk at or after key, and its own key; NULL: none. */
struct chunk *pageset_next(struct pageset *ps, uint64_t key, uint64_t *ret_key);

int pageset_populate(struct pageset *ps, uint64_t key, uint64_t nr_pages);
void pageset_depopulate(struct pageset *ps, uint64_t key, uint64_t nr_pages);
/* The same where the pages are still there: huge ones remain so. */
void pageset_exclude(struct pageset *ps, uint64_t key, uint64_t nr_pages);

uint64_t pageset_count_populated(struct pageset *ps);

/* Pages that are populated and not saved, and the first of them. */
uint64_t pageset_count_unsaved(struct pageset *ps, uint64_t *ret_first);

static inline unsigned chunk_page(uint64_t key)
{
	return (unsigned)(key >> PAGE_SHIFT) & (CHUNK_PAGES - 1);
}

static inline bool chunk_test(const _Atomic uint64_t *bits, unsigned page)
{
	return atomic_load_explicit(&bits[page / 64], memory_order_seq_cst) >> (page % 64) & 1;
}

static inline void chunk_set(_Atomic uint64_t *bits, unsigned page)
{
	atomic_fetch_or_explicit(&bits[page / 64], (uint64_t)1 << (page % 64),
				 memory_order_seq_cst);
}

/* True for the one caller that gets the page: it is populated and was not claimed. */
static inline bool chunk_claim(struct chunk *c, unsigned page)
{
	uint64_t bit = (uint64_t)1 << (page % 64);

	if (!(atomic_load_explicit(&c->populated[page / 64], memory_order_acquire) & bit))
		return false;
	return !(atomic_fetch_or_explicit(&c->claimed[page / 64], bit, memory_order_seq_cst) & bit);
}

#endif
