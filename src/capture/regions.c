/*
 * Which mappings are captured, and how.
 *
 * Shared memory can be written by others, through mappings that the target's
 * page tables know nothing of: another process (a child of the target, too,
 * that inherits the mapping after we have looked), a descriptor, a second
 * mapping made later. Write protection says nothing about those, so shared
 * memory is copied while every thread of the target stands still.
 */
#include <string.h>
#include <sys/mman.h>

#include "capture/session.h"
#include "common/util.h"

/* Of mappings of files that are known to be clean, what the freeze looks at nevertheless. */
#define LOOK_EACH_BYTES ((uint64_t)8 << 20)
#define LOOK_BYTES ((uint64_t)32 << 20)

/*
 * A private mapping of a file that never was writable holds nothing but the
 * file. Making it writable, for however short a time, accounts for it (flag
 * "ac", which stays; mm/mprotect.c), unless it was mapped without reserve.
 */
static bool never_writable(const struct vma *v)
{
	const uint64_t ever_written = 1ull << VMF_AC | 1ull << VMF_NR | 1ull << VMF_WR;

	return v->kind == VMA_FILE && v->has_flags && !(v->prot & PROT_WRITE) &&
	       !(v->flags & ever_written);
}

/* A debugger, or whoever else writes to it from outside, leaves pages without a flag. */
static bool is_clean(const struct vma *v)
{
	return never_writable(v) && !v->own_pages;
}

/*
 * Clean as they were known to be, such mappings are looked at in the freeze all the same: one can
 * have been made writable for a moment since, written to, and given up right after T0. That takes
 * some 50 ns for each page that is there: what is large is looked at right before and right after.
 */
int regions_choose(struct capture *c)
{
	uint64_t left = LOOK_BYTES;
	int r = 0;

	c->unseen.n = 0;
	for (size_t i = 0; i < c->maps.n && r == 0; i++) {
		const struct vma *v = &c->maps.v[i];

		if (!is_clean(v))
			continue;
		if (v->end - v->start <= MIN(left, LOOK_EACH_BYTES))
			left -= v->end - v->start;
		else
			r = ranges_add(&c->unseen, v->start, v->end);
	}
	return r;
}

bool region_unseen(const struct capture *c, uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < c->unseen.n; i++)
		if (c->unseen.r[i].start < end && start < c->unseen.r[i].end)
			return true;
	return false;
}

/* Positive: there is one, but for those that the gate has made after T0. */
static int own_found(void *arg, uint64_t start, uint64_t end, uint64_t categories)
{
	const struct capture *c = arg;

	if (categories & (PAGE_IS_PFNZERO | PAGE_IS_GUARD))
		return 0;
	for (; start < end; start += PAGE_BYTES)
		if (!inject_has_written(c, start))
			return 1;
	return 0;
}

int region_has_own(struct capture *c, uint64_t start, uint64_t end)
{
	return scan_pages_running(c, start, end, PAGE_IS_FILE, PAGE_IS_FILE,
				  PAGE_IS_PRESENT | PAGE_IS_SWAPPED, own_found, c);
}

int regions_note_own(struct capture *c)
{
	int r = regions_choose(c);

	for (size_t i = 0; i < c->maps.n && r == 0; i++) {
		struct vma *v = &c->maps.v[i];

		if (!is_clean(v) || !region_unseen(c, v->start, v->end))
			continue;
		r = region_has_own(c, v->start, v->end);
		v->own_pages = r > 0;
		r = MIN(r, 0);
	}
	return r;
}

static bool is_same_now(const struct maps *now, const struct vma *v)
{
	const struct vma *n = maps_find(now, v->start);

	return n && n->start == v->start && n->end == v->end && n->inode == v->inode &&
	       n->offset == v->offset;
}

/*
 * Not by the flags: to read them takes long (maps.h), and what was written at T0 is so still unless
 * the mapping or its pages have been given up in the moment since.
 */
int regions_check_unseen(struct capture *c)
{
	struct maps now = {0};
	int r = 0;

	if (!c->unseen.n)
		return 0;
	for (size_t i = 0; i < c->maps.n && r >= 0; i++) {
		const struct vma *v = &c->maps.v[i];

		if (region_unseen(c, v->start, v->end) &&
		    (r = region_has_own(c, v->start, v->end)) > 0)
			capture_tear(c, "the mapping of '%s' at %#llx was written to", v->path,
				     (unsigned long long)v->start);
	}
	/* Afterwards: in what is not there any more nothing is found. */
	if (r >= 0)
		r = maps_read(c->target->procfd, &now);
	for (size_t i = 0; i < c->maps.n && r == 0; i++) {
		const struct vma *v = &c->maps.v[i];

		if (region_unseen(c, v->start, v->end) && !is_same_now(&now, v))
			capture_tear(c, "the mapping of '%s' at %#llx was unmapped", v->path,
				     (unsigned long long)v->start);
	}
	maps_free(&now);
	return r;
}

enum how region_how(const struct capture *c, const struct vma *v)
{
	switch (v->kind) {
	case VMA_ANON:
		/* MAP_DROPPABLE: the kernel may take its pages away at any time, and userfaultfd has
		 * nothing to do with it. Whoever uses it counts on zeros. */
		if (v->has_flags && v->flags & (1ull << VMF_DP))
			return HOW_NONE;
		if (v->unprotectable)
			return HOW_FROZEN;
		/* KSM may replace a page and lose its protection. */
		if (c->ksm && v->has_flags && v->flags & (1ull << VMF_MG))
			return HOW_FROZEN;
		return HOW_PROTECT;
	case VMA_HUGETLB:
		return v->shared ? HOW_FROZEN : HOW_PROTECT;
	case VMA_SHMEM:
		return HOW_FROZEN;
	case VMA_FILE:
		return region_unseen(c, v->start, v->end) ? HOW_NONE : HOW_FROZEN;
	case VMA_SHMEM_PRIVATE:
		return HOW_FROZEN;
	case VMA_SPECIAL:
		return strcmp(v->path, "[vdso]") == 0 ? HOW_FROZEN : HOW_NONE;
	case VMA_FILE_SHARED:
	case VMA_DEVICE:
		break;
	}
	return HOW_NONE;
}

uint64_t region_mode(const struct vma *v)
{
	/* hugetlb: the protection covers what is not there yet (a marker each). */
	return v->kind == VMA_HUGETLB ? UFFDIO_REGISTER_MODE_WP
				      : UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING;
}

uint64_t region_unit(const struct vma *v)
{
	/* Without smaps, in the freeze, it has just appeared and is too small for larger pages. */
	return v->kind == VMA_HUGETLB ? MAX(v->page_size, (uint64_t)MIB(2)) : PAGE_BYTES;
}
