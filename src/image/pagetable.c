#include "image/pagetable.h"

#include <string.h>
#include <sys/mman.h>

#include "common/util.h"

static uint64_t first_slot(const struct pagetable *t, const struct page_hash *h)
{
	uint64_t key;

	memcpy(&key, h->b, sizeof(key));
	return key & (t->nr_slots - 1);
}

static void put(struct pagetable *t, const struct page_hash *hashes, uint32_t slot)
{
	uint64_t i = first_slot(t, &hashes[slot - 1]);

	while (t->slots[i])
		i = (i + 1) & (t->nr_slots - 1);
	t->slots[i] = slot;
	t->used++;
}

static bool grow(struct pagetable *t, const struct page_hash *hashes)
{
	struct pagetable bigger = {.nr_slots = t->nr_slots ? 2 * t->nr_slots : KIB(64)};

	/* Not calloc(3): an idle table should cost no memory, a freed one none either. */
	bigger.slots = mmap(NULL, bigger.nr_slots * sizeof(*bigger.slots), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (bigger.slots == MAP_FAILED)
		return false;
	for (uint64_t i = 0; i < t->nr_slots; i++)
		if (t->slots[i])
			put(&bigger, hashes, t->slots[i]);
	pagetable_clear(t);
	*t = bigger;
	return true;
}

uint64_t pagetable_find(const struct pagetable *t, const struct page_hash *hashes,
			const struct page_hash *h)
{
	if (!t->nr_slots)
		return PAGETABLE_NONE;
	for (uint64_t i = first_slot(t, h); t->slots[i]; i = (i + 1) & (t->nr_slots - 1))
		if (!memcmp(&hashes[t->slots[i] - 1], h, sizeof(*h)))
			return t->slots[i] - 1;
	return PAGETABLE_NONE;
}

void pagetable_add(struct pagetable *t, const struct page_hash *hashes, uint64_t nr)
{
	if (nr >= UINT32_MAX)
		return;
	if (4 * t->used >= 3 * t->nr_slots && !grow(t, hashes) && t->used + 1 >= t->nr_slots)
		return;
	put(t, hashes, (uint32_t)nr + 1);
}

void pagetable_clear(struct pagetable *t)
{
	if (t->slots)
		munmap(t->slots, t->nr_slots * sizeof(*t->slots));
	*t = (struct pagetable){0};
}
