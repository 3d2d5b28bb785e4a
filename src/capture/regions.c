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
bool region_pristine(const struct vma *v)
{
	return never_writable(v) && !v->own_pages;
}

static const struct vma *same_now(const struct maps *now, const struct vma *v)
{
	const struct vma *n = maps_find(now, v->start);

	return n && n->start == v->start && n->end == v->end && n->inode == v->inode &&
			       n->offset == v->offset
		       ? n
		       : NULL;
}

/* Positive: there is one, but for those that the gate has made after T0. */
static int own_found(void *arg, uint64_t start, uint64_t end, uint64_t categories)
{
	const struct capture *c = arg;

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

/*
 * Not by the flags: what was written at T0 is so still unless the mapping or its pages have been
 * given up since, and to read flags takes long (maps.h).
 */
int regions_check_pristine(struct capture *c)
{
	struct maps now = {0};
	int r = maps_read(c->target->procfd, &now);

	for (size_t i = 0; i < c->maps.n && r == 0; i++) {
		const struct vma *v = &c->maps.v[i];

		if (!region_pristine(v))
			continue;
		r = same_now(&now, v) ? region_has_own(c, v->start, v->end) : 1;
		if (r > 0)
			capture_tear(c, "the mapping of '%s' at %#llx was written to or unmapped",
				     v->path, (unsigned long long)v->start);
	}
	maps_free(&now);
	return MIN(r, 0);
}

enum how region_how(const struct capture *c, const struct vma *v)
{
	switch (v->kind) {
	case VMA_ANON:
		/* KSM may replace a page and lose its protection. */
		if (c->ksm && v->has_flags && v->flags & (1ull << VMF_MG))
			return HOW_FROZEN;
		return HOW_PROTECT;
	case VMA_HUGETLB:
		return v->shared ? HOW_FROZEN : HOW_PROTECT;
	case VMA_SHMEM:
		return HOW_FROZEN;
	case VMA_FILE:
		return region_pristine(v) ? HOW_NONE : HOW_FROZEN;
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
	/* Without smaps (it has just appeared) the smallest huge page is a safe guess only
	 * for alignment; the flags are read before a huge page mapping is armed. */
	return v->kind == VMA_HUGETLB ? MAX(v->page_size, (uint64_t)MIB(2)) : PAGE_BYTES;
}
