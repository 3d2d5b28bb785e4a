/*
 * Guard markers (MADV_GUARD_INSTALL, Linux 6.13): pages that must not be
 * touched, though no mapping says so. PAGEMAP_SCAN shows them (6.15).
 *
 * DESIGN. What counts is which of them there were at T0. Looking through all
 * page tables takes about a millisecond per GiB, too long while the target
 * stands still, and no event tells of markers that come and go. So all is
 * looked through right before the freeze; in the freeze only what was found
 * is looked at again, and mappings that have appeared since; and right after
 * it all once more. A marker that is there then, in memory that is still the
 * same, and was not found in the freeze, came before T0 or after it: nobody
 * knows. The attempt counts as torn, and the next one looks through all while
 * the target stands still. Programs install them as a rule into what they have
 * just mapped.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "capture/session.h"
#include "common/util.h"

/* The target's mappings cannot change while one call looks. */
#define GUARDS_STEP_BYTES ((uint64_t)256 << 20)
/* One more call costs about as much as walking this much of a page table. */
#define GUARDS_GAP_BYTES ((uint64_t)1 << 20)

bool guards_are_shown(const struct capture *c)
{
	struct pm_scan_arg scan = {.size = sizeof(scan), .return_mask = PAGE_IS_GUARD};

	return ioctl(c->target->pagemap_fd, PAGEMAP_SCAN, &scan) >= 0;
}

/* Mappings that can have some. */
static bool may_guard(const struct vma *v)
{
	return v->kind != VMA_HUGETLB && v->kind != VMA_SPECIAL && v->kind != VMA_DEVICE;
}

/* Adds those in [start, end). */
static int look(const struct capture *c, uint64_t start, uint64_t end, struct ranges *found)
{
	struct page_region r[128];

	while (start < end) {
		struct pm_scan_arg scan = {
			.size = sizeof(scan),
			.start = start,
			.end = MIN(end, start + GUARDS_STEP_BYTES),
			.vec = (uintptr_t)r,
			.vec_len = ARRAY_SIZE(r),
			.category_mask = PAGE_IS_GUARD,
			.return_mask = PAGE_IS_GUARD,
		};
		int n = ioctl(c->target->pagemap_fd, PAGEMAP_SCAN, &scan);

		if (n < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < n; i++)
			if (ranges_add(found, r[i].start, r[i].end) < 0)
				return -ENOMEM;
		if (n >= 0 && scan.walk_end <= start)
			return -EIO;
		if (n >= 0)
			start = scan.walk_end;
	}
	return 0;
}

static int look_everywhere(const struct capture *c, const struct maps *m, struct ranges *found)
{
	int r = 0;

	for (size_t i = 0; i < m->n && r == 0; i++)
		if (may_guard(&m->v[i]))
			r = look(c, m->v[i].start, m->v[i].end, found);
	return r;
}

/* What of v no mapping of an earlier reading covered. from: where to begin in seen, which is
 * sorted. */
static int look_at_new(const struct capture *c, const struct vma *v, const struct ranges *seen,
		       size_t *from, struct ranges *found)
{
	uint64_t at = v->start;
	int r = 0;

	while (*from < seen->n && seen->r[*from].end <= at)
		++*from;
	for (size_t i = *from; i < seen->n && seen->r[i].start < v->end && r == 0; i++) {
		if (seen->r[i].start > at)
			r = look(c, at, seen->r[i].start, found);
		at = MAX(at, seen->r[i].end);
	}
	return r == 0 && at < v->end ? look(c, at, v->end, found) : r;
}

int guards_prepare(struct capture *c)
{
	struct guards *g = &c->guards;
	struct maps now = {0};

	g->early.n = g->seen.n = 0;
	if (!g->shown || g->thorough || c->stats.held)
		return 0;
	int r = maps_read(c->target->procfd, &now);
	if (r == 0)
		r = look_everywhere(c, &now, &g->early);
	for (size_t i = 0; i < now.n && r == 0; i++)
		if (may_guard(&now.v[i]))
			r = ranges_add(&g->seen, now.v[i].start, now.v[i].end);
	maps_free(&now);
	/* Whole stretches of them, however many: few calls. */
	ranges_merge(&g->early, GUARDS_GAP_BYTES);
	return r;
}

int guards_freeze(struct capture *c)
{
	struct guards *g = &c->guards;
	size_t from = 0;
	int r = 0;

	g->found.n = 0;
	if (!g->shown)
		return 0;
	if (g->thorough || c->stats.held) {
		r = look_everywhere(c, &c->maps, &g->found);
	} else {
		for (size_t i = 0; i < g->early.n && r == 0; i++)
			r = look(c, g->early.r[i].start, g->early.r[i].end, &g->found);
		for (size_t i = 0; i < c->maps.n && r == 0; i++)
			if (may_guard(&c->maps.v[i]))
				r = look_at_new(c, &c->maps.v[i], &g->seen, &from, &g->found);
	}
	ranges_merge(&g->found, 0);
	if (r == 0)
		r = maps_set_guards(&c->maps, g->found.r, g->found.n);
	return r;
}

static bool covers(const struct ranges *rs, const struct range *of)
{
	size_t lo = 0, hi = rs->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (rs->r[mid].end <= of->start)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < rs->n && rs->r[lo].start <= of->start && of->end <= rs->r[lo].end;
}

/* Whether [start, end) still is, in part, memory of T0. What is unmapped raises an event, and leaves
 * the segments. */
static bool is_of_t0(struct capture *c, const struct range *at)
{
	const struct vma *v = maps_find(&c->maps, at->start);
	struct segment s;

	if (v && region_how(c, v) != HOW_PROTECT)
		return true;
	return arm_segment(c, at->start, at->end, &s) && s.key == s.start;
}

int guards_check(struct capture *c)
{
	struct guards *g = &c->guards;
	struct ranges now = {0};

	if (!g->shown || g->thorough || c->stats.held)
		return 0;
	int r = look_everywhere(c, &c->maps, &now);
	ranges_merge(&now, 0);
	for (size_t i = 0; i < now.n && r == 0; i++) {
		if (covers(&g->found, &now.r[i]) || !is_of_t0(c, &now.r[i]))
			continue;
		g->thorough = true;
		capture_tear(c, "guard pages were installed at %#llx, before or after",
			     (unsigned long long)now.r[i].start);
		break;
	}
	ranges_free(&now);
	return r;
}

void guards_free(struct guards *g)
{
	ranges_free(&g->early);
	ranges_free(&g->seen);
	ranges_free(&g->found);
}
