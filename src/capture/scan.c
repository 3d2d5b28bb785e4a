/*
 * Looks into the target's page tables by PAGEMAP_SCAN (Linux 6.7).
 *
 * A page counts as populated when it is present or swapped out and is not
 * the zero page: what is absent or the zero page at T0 is zero at T0. Markers
 * look like swapped pages (fs/proc/task_mmu.c): those of guard regions are
 * told apart where the kernel can (6.15), those that write protection leaves
 * in the tables of huge pages by asking for present ones only. What a shared
 * object holds is asked of its file.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/util.h"

int scan_pages(const struct capture *c, uint64_t start, uint64_t end, uint64_t inverted,
	       uint64_t mask, uint64_t anyof, scan_fn *fn, void *arg)
{
	struct page_region found[128];

	while (start < end) {
		struct pm_scan_arg scan = {
			.size = sizeof(scan),
			.start = start,
			.end = end,
			.vec = (uintptr_t)found,
			.vec_len = ARRAY_SIZE(found),
			.category_inverted = inverted,
			.category_mask = mask,
			.category_anyof_mask = anyof,
			.return_mask = PAGE_IS_HUGE | PAGE_IS_PFNZERO |
				       (c->guards.shown ? PAGE_IS_GUARD : 0),
		};
		int n = ioctl(c->target->pagemap_fd, PAGEMAP_SCAN, &scan);

		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		for (int i = 0; i < n; i++) {
			int r = fn(arg, found[i].start, found[i].end, found[i].categories);
			if (r)
				return r;
		}
		if (scan.walk_end <= start)
			break;
		start = scan.walk_end;
	}
	return 0;
}

enum {
	STEP_BYTES = 64 << 20,
	STEP_MOST = 1 << 30,
};

struct step {
	scan_fn *fn;
	void *arg;
	bool found;
};

static int found_in_step(void *arg, uint64_t start, uint64_t end, uint64_t categories)
{
	struct step *s = arg;

	s->found = true;
	return s->fn(s->arg, start, end, categories);
}

int scan_pages_running(const struct capture *c, uint64_t start, uint64_t end, uint64_t inverted,
		       uint64_t mask, uint64_t anyof, scan_fn *fn, void *arg)
{
	struct step s = {fn, arg, false};
	uint64_t len = STEP_BYTES;

	for (uint64_t a = start, to; a < end; a = to) {
		/* No huge page is split. */
		to = MIN(end, ALIGN_DOWN(a + len, (uint64_t)STEP_BYTES));
		s.found = false;
		int r = scan_pages(c, a, to, inverted, mask, anyof, found_in_step, &s);
		if (r)
			return r;
		/* There may be terabytes with nothing in them. */
		len = s.found ? STEP_BYTES : MIN(len * 2, (uint64_t)STEP_MOST);
	}
	return 0;
}

struct populate {
	struct capture *c;
	const struct segment *s;
};

static int populate_private(void *arg, uint64_t start, uint64_t end, uint64_t categories)
{
	const struct populate *p = arg;

	if (categories & (PAGE_IS_PFNZERO | PAGE_IS_GUARD))
		return 0;
	int r = pageset_populate(p->c->pages, p->s->key + (start - p->s->start),
				 (end - start) >> PAGE_SHIFT);
	if (r < 0 || !(categories & PAGE_IS_HUGE) || p->s->unit != PAGE_BYTES)
		return r;
	/* Transparent huge pages: remember which chunks are one. */
	for (uint64_t a = ALIGN_UP(start, CHUNK_BYTES); a + CHUNK_BYTES <= end; a += CHUNK_BYTES) {
		uint64_t key = p->s->key + (a - p->s->start);
		struct chunk *k = key % CHUNK_BYTES ? NULL : pageset_chunk(p->c->pages, key, true);

		if (k)
			atomic_store(&k->huge, true);
	}
	return 0;
}

int scan_open_object(const struct capture *c, const struct vma *v)
{
	char path[80];

	snprintf(path, sizeof(path), "map_files/%llx-%llx", (unsigned long long)v->start,
		 (unsigned long long)v->end);
	return openat(c->target->procfd, path, O_RDONLY | O_CLOEXEC);
}

/* Shared memory taken whole where its object cannot be opened. */
#define UNSEEN_BYTES ((uint64_t)16 << 20)

int scan_shared(struct capture *c, const struct vma *v, scan_fn *fn, void *arg)
{
	/* A page may be in the object and not in these page tables. */
	uint64_t bias = v->start - v->offset, offset = v->offset;
	uint64_t end = v->offset + (v->end - v->start);
	cleanup_fd int fd = scan_open_object(c, v);

	/* Reading what is a hole would fill it: without the right to ask, only little of that. */
	if (fd < 0 && v->end - v->start > UNSEEN_BYTES)
		return -EACCES;
	if (fd < 0)
		return fn(arg, v->start, v->end, 0);
	while (offset < end) {
		off_t data = lseek(fd, (off_t)offset, SEEK_DATA);
		if (data < 0 || (uint64_t)data >= end)
			return data < 0 && errno != ENXIO ? -errno : 0;
		off_t hole = lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		uint64_t from = ALIGN_DOWN((uint64_t)data, PAGE_BYTES);
		uint64_t to = MIN(ALIGN_UP((uint64_t)hole, PAGE_BYTES), end);
		int r = fn(arg, from + bias, to + bias, 0);
		if (r)
			return r;
		offset = to;
	}
	return 0;
}

int scan_populated(struct capture *c, const struct segment *s, uint64_t start, uint64_t end,
		   bool frozen)
{
	struct populate p = {c, s};

	/* Only while nothing runs is what is absent now absent at T0 as well. */
	if (frozen)
		pageset_depopulate(c->pages, s->key + (start - s->start),
				   (end - start) >> PAGE_SHIFT);
	if (s->unit != PAGE_BYTES)
		return scan_pages(c, start, end, 0, 0, PAGE_IS_PRESENT, populate_private, &p);
	return (frozen ? scan_pages : scan_pages_running)(
		c, start, end, 0, 0, PAGE_IS_PRESENT | PAGE_IS_SWAPPED, populate_private, &p);
}

int scan_unprotected(struct capture *c, const struct segment *s, bool frozen)
{
	struct populate p = {c, s};

	if (frozen)
		pageset_depopulate(c->pages, s->key, (s->end - s->start) >> PAGE_SHIFT);
	return scan_pages(c, s->start, s->end, 0, 0, PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
			  populate_private, &p);
}

static int count_bytes(void *arg, uint64_t start, uint64_t end, uint64_t categories)
{
	*(uint64_t *)arg += end - start;
	return 0;
}

int64_t scan_protected_bytes(const struct capture *c, uint64_t start, uint64_t end)
{
	uint64_t bytes = 0;
	int r = scan_pages(c, start, end, PAGE_IS_WRITTEN, PAGE_IS_WRITTEN,
			   PAGE_IS_PRESENT | PAGE_IS_SWAPPED, count_bytes, &bytes);

	return r < 0 ? r : (int64_t)bytes;
}

int scan_protected(const struct capture *c, uint64_t start, uint64_t end)
{
	int64_t bytes = scan_protected_bytes(c, start, end);

	return bytes < 0 ? (int)bytes : (uint64_t)bytes == end - start;
}
