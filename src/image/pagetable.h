/*
 * Which pages an image stores already, found by their hashes: some 8 bytes
 * per page. Holds numbers only; the hashes are the caller's, in one array.
 *
 * No locking. What does not fit into memory is forgotten: then a page is
 * stored twice, which is no harm.
 */
#ifndef USNAP_IMAGE_PAGETABLE_H
#define USNAP_IMAGE_PAGETABLE_H

#include <stddef.h>
#include <stdint.h>

#include "image/format.h"

struct page_hash {
	unsigned char b[FORMAT_HASH_BYTES];
};

struct pagetable {
	uint32_t *slots; /* number of a hash + 1; 0: empty */
	uint64_t nr_slots, used; /* nr_slots: a power of two, or 0 */
};

#define PAGETABLE_NONE UINT64_MAX

/* Number of a hash that equals h, or PAGETABLE_NONE. */
uint64_t pagetable_find(const struct pagetable *t, const struct page_hash *hashes,
			const struct page_hash *h);
void pagetable_add(struct pagetable *t, const struct page_hash *hashes, uint64_t nr);
void pagetable_clear(struct pagetable *t);

#endif
