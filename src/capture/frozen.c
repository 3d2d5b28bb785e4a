/*
 * Mappings that cannot be protected: what was written to them is copied while
 * every thread stands still. regions.c says which these are.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/util.h"

/* Mappings of files that lie no further apart are scanned in one go. */
#define SPAN_BYTES ((uint64_t)256 << 10)

struct written {
	struct capture *c;
	struct copier *cp;
	size_t vma; /* the first that may hold what is found next */
};

static int copy_written(void *arg, uint64_t start, uint64_t end, uint64_t categories)
{
	const struct written *w = arg;
	struct range part;
	bool excluded;
	int r = 0;

	if (categories & (PAGE_IS_PFNZERO | PAGE_IS_GUARD))
		return 0;
	for (; r == 0 && exclude_next(w->c, start, end, &part, &excluded); start = part.end) {
		uint64_t nr = (part.end - part.start) >> PAGE_SHIFT;

		/* Where the image has nothing, the file would show through. */
		if (excluded && w->cp->keep_zero) {
			r = copier_add_zero(w->c, w->cp, part.start, nr);
		} else if (!excluded) {
			w->c->frozen_extra_bytes += part.end - part.start;
			r = copier_add(w->c, w->cp, part.start, part.start, nr);
		}
	}
	return r;
}

static bool is_file_private(const struct capture *c, const struct vma *v)
{
	return (v->kind == VMA_FILE || v->kind == VMA_SHMEM_PRIVATE) &&
	       region_how(c, v) == HOW_FROZEN;
}

/* What a scan over several mappings has found: only private mappings of files count. */
static int copy_written_of_files(void *arg, uint64_t start, uint64_t end, uint64_t categories)
{
	struct written *w = arg;
	const struct maps *m = &w->c->maps;
	int r = 0;

	while (w->vma < m->n && m->v[w->vma].end <= start)
		w->vma++;
	for (size_t i = w->vma; i < m->n && m->v[i].start < end && r == 0; i++)
		if (is_file_private(w->c, &m->v[i]))
			r = copy_written(arg, MAX(start, m->v[i].start), MIN(end, m->v[i].end),
					 categories);
	return r;
}

/* One scan for mappings of libraries that lie side by side: a call costs more than walking over
 * what lies between. */
static int copy_file_regions(struct capture *c, struct copier *cp)
{
	struct written w = {c, cp, 0};
	const struct vma *v = c->maps.v;

	for (size_t i = 0, last; i < c->maps.n; i = last + 1) {
		last = i;
		if (!is_file_private(c, &v[i]))
			continue;
		for (size_t k = i + 1; k < c->maps.n && v[k].start - v[last].end <= SPAN_BYTES; k++)
			if (is_file_private(c, &v[k]))
				last = k;
		int r = scan_pages(c, v[i].start, v[last].end, PAGE_IS_FILE, PAGE_IS_FILE,
				   PAGE_IS_PRESENT | PAGE_IS_SWAPPED, copy_written_of_files, &w);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Memory that is copied from the object behind it. */
struct behind {
	struct capture *c;
	struct copier *cp;
	int fd;
	uint64_t bias; /* addresses less offsets in the object */
};

static int copy_behind(void *arg, uint64_t start, uint64_t end, uint64_t categories)
{
	const struct behind *b = arg;
	struct range part;
	bool excluded;
	int r = 0;

	for (; r == 0 && exclude_next(b->c, start, end, &part, &excluded); start = part.end)
		if (!excluded)
			r = copier_add_file(b->c, b->cp, b->fd, part.start - b->bias, part.start,
					    (part.end - part.start) >> PAGE_SHIFT);
	return r;
}

/* Shared huge pages. Through the mapping, reading a hole would allocate it. */
static int copy_hugetlb(struct capture *c, struct copier *cp, const struct vma *v)
{
	cleanup_fd int fd = scan_open_object(c, v);
	struct behind b = {c, cp, fd, v->start - v->offset};

	return fd < 0 ? -errno : copy_behind(&b, v->start, v->end, 0);
}

/* Shared memory under guard markers cannot be read through the mapping, and is there. */
static int copy_guarded(struct capture *c, struct copier *cp, const struct vma *v)
{
	cleanup_fd int fd = scan_open_object(c, v);
	struct behind b = {c, cp, fd, v->start - v->offset};

	return fd < 0 ? -errno : scan_shared(c, v, copy_behind, &b);
}

static bool has_guards(const struct capture *c, const struct vma *v)
{
	for (size_t i = 0; i < c->maps.nr_guards; i++)
		if (c->maps.guards[i].start < v->end && v->start < c->maps.guards[i].end)
			return true;
	return false;
}

int frozen_copy(struct capture *c, struct copier *cp)
{
	struct written w = {c, cp, 0};
	int r = copier_flush(c, cp);

	/* Zeros written over what the file has there are no holes. */
	cp->keep_zero = true;
	if (r == 0)
		r = copy_file_regions(c, cp);
	if (r == 0)
		r = copier_flush(c, cp);
	cp->keep_zero = false;
	for (size_t i = 0; i < c->maps.n && r == 0; i++) {
		const struct vma *v = &c->maps.v[i];

		if (region_how(c, v) != HOW_FROZEN || is_file_private(c, v))
			continue;
		if (v->kind == VMA_SPECIAL) {
			r = copier_add(c, cp, v->start, v->start,
				       (v->end - v->start) >> PAGE_SHIFT);
		} else if (v->kind == VMA_ANON) {
			r = scan_pages(c, v->start, v->end, 0, 0, PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
				       copy_written, &w);
		} else {
			r = v->kind == VMA_HUGETLB ? copy_hugetlb(c, cp, v)
			    : has_guards(c, v)	   ? copy_guarded(c, cp, v)
						   : scan_shared(c, v, copy_written, &w);
			c->stats.held_bytes += v->end - v->start;
		}
	}
	return r;
}
