/*
 * Where the pages of the snapshot lie now: which addresses are registered
 * and under which keys their pages go. Until T0 a segment is simply what has
 * been armed; afterwards mremap() moves segments and munmap() cuts them.
 *
 * Not locked: the session's lock guards it.
 */
#ifndef USNAP_CAPTURE_SEGMAP_H
#define USNAP_CAPTURE_SEGMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct segment {
	uint64_t start, end; /* addresses now */
	uint64_t key; /* of the page at start */
	uint64_t unit; /* bytes protected as one: the page size of the mapping */
};

struct segmap {
	struct segment *s; /* ascending, disjoint */
	size_t n, room;
};

/* The segment that holds addr, or NULL. Valid until the map changes. */
struct segment *segmap_find(const struct segmap *m, uint64_t addr);

/* The first segment that ends after addr, or NULL. */
struct segment *segmap_first(const struct segmap *m, uint64_t addr);

/* Where the page of a private key lies now; 0 when it lies nowhere. */
uint64_t segmap_address(const struct segmap *m, uint64_t key, uint64_t *ret_len);

/* Adds a segment; what lay there before is cut away. -ENOMEM. */
int segmap_add(struct segmap *m, struct segment s);

/* Forgets [start, end). -ENOMEM. */
int segmap_cut(struct segmap *m, uint64_t start, uint64_t end);

/* [from, from+len) lies at to now. -ENOMEM. */
int segmap_move(struct segmap *m, uint64_t from, uint64_t to, uint64_t len);

void segmap_clear(struct segmap *m);

#endif
