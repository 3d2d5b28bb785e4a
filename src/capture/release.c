/*
 * Giving the memory back to the kernel's care.
 *
 * Unregistering walks and clears page tables under mmap_lock held for
 * writing: every fault of the target waits. So what is large goes in small
 * steps with a breath between; closing the descriptor would do all at once.
 *
 * A step splits the mapping until the next one, and mremap() of what lies on
 * both sides answers EFAULT meanwhile (mm/mremap.c: it takes one mapping at a
 * time). So what is small goes at once, and in a process that has been seen
 * to call mremap() everything does: it rather waits than fails.
 */
#include <errno.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/util.h"

enum {
	STEP_CHUNKS = 2, /* populated ones in a step: 4 MiB */
	BREATH_US = 20,
};
/* At 20 to 30 ms per GiB. */
#define WHOLE_BYTES ((uint64_t)64 << 20)
/* Where nothing is populated a step can be long. */
#define STEP_EMPTY ((uint64_t)16 << 30)

/* The end of a step that starts at addr. */
static uint64_t step_end(const struct capture *c, uint64_t addr, uint64_t end)
{
	uint64_t at = addr, key;

	for (int i = 0; i < STEP_CHUNKS; i++) {
		if (!pageset_next(c->pages, at, &key) || key >= end || key - addr >= STEP_EMPTY)
			return MIN(end, addr + STEP_EMPTY);
		at = key + CHUNK_BYTES;
	}
	return MIN(end, at);
}

/* Whether no mapping would be split; *end is made to fit. */
static bool is_whole(const struct capture *c, uint64_t start, uint64_t *end)
{
	struct range now;
	int r = maps_query(c->maps_fd, start, &now);

	if (r < 0)
		return r != -ENOENT;
	if (now.start < start || now.end > *end)
		return false;
	*end = now.end;
	return true;
}

void release(struct capture *c)
{
	struct maps maps = {0};

	/* What is mapped now, not what was at T0: a mapping may have moved or grown. */
	if (c->uffd < 0 || !c->registered || maps_read(c->target->procfd, &maps) < 0)
		return;
	maps_inherit_flags(&maps, &c->maps);
	for (size_t i = 0; i < maps.n; i++) {
		const struct vma *v = &maps.v[i];

		if (v->kind != VMA_ANON && (v->kind != VMA_HUGETLB || v->shared))
			continue;
		bool whole = v->end - v->start <= WHOLE_BYTES;
		for (uint64_t a = v->start, end; a < v->end; a = end) {
			whole = whole || c->remaps || asks_mover_waits(c);
			end = whole ? v->end : ALIGN_UP(step_end(c, a, v->end), region_unit(v));
			end = MIN(end, v->end);
			/* What has changed since is left to the end of the descriptor, which does
			 * all at once. */
			if (whole && !is_whole(c, a, &end))
				break;
			uffd_unregister(c->uffd, a, end - a);
			if (end < v->end)
				usleep(BREATH_US);
		}
	}
	maps_free(&maps);
}
