/*
 * The bytes of files that have no name any more, as they were at T0.
 *
 * DESIGN. What matters is that a file agrees with the memory that speaks of
 * it. While every thread stands still nobody of the target writes: a copy
 * made then is right. To keep the pause short, a file is copied beforehand
 * where it can be shown at T0 that it has not changed since: by its ctime,
 * which every write sets, on a file system that also does so for writes
 * through mappings (not tmpfs and hugetlbfs, on which memfds lie), as long as
 * the target has no writable shared mapping of it. Time stamps are coarse, so
 * a ctime proves something only when it was older than the beginning of the
 * copy by more than their granularity. A copy that turns out to be old is
 * dropped from the page index, and made again under other addresses.
 *
 * So that the pause stays short however many there are, the limit that holds
 * for each file also holds for the sum of what is copied in the freeze.
 *
 * What others write to a file meanwhile, nobody can hold back.
 *
 * Parts that the target maps shared and that lie on tmpfs or hugetlbfs are
 * copied as memory, under the addresses of the mapping; the content of the
 * file leaves them out.
 */
#include <errno.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/io.h"
#include "common/util.h"
#include "image/format.h"

/* Coarse clocks move on at every tick: at 100 Hz every 10 ms. */
#define SETTLED_NS UINT64_C(50000000)
/* Larger ones are sparse to the point of being no file; addresses must not run out. */
#define SIZE_MAX_BYTES (UINT64_C(1) << 46)
/* Pieces of a sparse file. */
#define EXTENTS_MAX 100000

/* What the copy beforehand was made of. Parallel to the records of unlinked files. */
struct ghost_early {
	bool made;
	uint64_t address, size, started_ns; /* CLOCK_REALTIME */
	struct stat st;
};

static uint64_t ctime_ns(const struct stat *st)
{
	return (uint64_t)st->st_ctim.tv_sec * 1000000000u + (uint64_t)st->st_ctim.tv_nsec;
}

static bool same_state(const struct stat *a, const struct stat *b)
{
	return a->st_size == b->st_size && ctime_ns(a) == ctime_ns(b) &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static uint64_t take_addresses(struct capture *c, uint64_t size)
{
	uint64_t at = c->ghosts.next_address;

	if (size > FORMAT_CONTENT_END - FORMAT_CONTENT_START ||
	    at > FORMAT_CONTENT_END - size - PAGE_BYTES)
		return 0;
	/* Two contents never touch: a run of pages belongs to one. */
	c->ghosts.next_address = at + size + PAGE_BYTES;
	return at;
}

/* ---- which parts ---------------------------------------------------------------------------------- */

/* The part of the file at or behind at that mappings show as memory: false when there is none. */
static bool next_mapped(const struct capture *c, const struct unlinked_file *f, uint64_t at,
			uint64_t *ret_start, uint64_t *ret_end)
{
	bool any = false;

	for (size_t i = 0; f->map_inode && i < c->maps.n; i++) {
		const struct vma *v = &c->maps.v[i];
		uint64_t end = v->offset + (v->end - v->start);

		if (!v->shared || v->inode != f->map_inode || unlinked_map_dev(v) != f->map_dev ||
		    region_how(c, v) != HOW_FROZEN || end <= at)
			continue;
		if (!any || v->offset < *ret_start) {
			*ret_start = v->offset;
			*ret_end = end;
		}
		any = true;
	}
	return any;
}

typedef int extent_fn(struct capture *c, const struct unlinked_file *f, uint64_t start,
		      uint64_t end, void *arg);

/* Calls fn for the data of a file that is not in the image as memory, page-aligned. */
static int each_extent(struct capture *c, const struct unlinked_file *f, uint64_t size,
		       extent_fn *fn, void *arg)
{
	uint64_t at = 0, skip_start = 0, skip_end = 0;
	unsigned nr = 0;

	while (at < size) {
		off_t data = lseek(f->fd, (off_t)at, SEEK_DATA);

		if (data < 0)
			return errno == ENXIO ? 0 : -errno;
		off_t hole = lseek(f->fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		uint64_t from = ALIGN_DOWN((uint64_t)data, PAGE_BYTES);
		uint64_t end = MIN(ALIGN_UP((uint64_t)hole, PAGE_BYTES), size);

		at = end;
		if (++nr > EXTENTS_MAX)
			return -EFBIG;
		while (from < end) {
			bool mapped = next_mapped(c, f, from, &skip_start, &skip_end);
			uint64_t to = mapped ? MIN(MAX(skip_start, from), end) : end;
			int r = to > from ? fn(c, f, from, to, arg) : 0;

			if (r)
				return r;
			from = mapped && to < end ? MAX(skip_end, to) : end;
		}
	}
	return 0;
}

struct copying {
	uint64_t address, bytes, limit;
	bool frozen;
};

static int count_extent(struct capture *c, const struct unlinked_file *f, uint64_t start,
			uint64_t end, void *arg)
{
	struct copying *copying = arg;

	copying->bytes += end - start;
	return copying->bytes > copying->limit ? -EFBIG : 0;
}

static int copy_extent(struct capture *c, const struct unlinked_file *f, uint64_t start,
		       uint64_t end, void *arg)
{
	const struct copying *copying = arg;

	while (start < end) {
		struct block *b = pool_get(c->pool);

		if (!b)
			return pool_error(c->pool) ? pool_error(c->pool) : -ECANCELED;
		unsigned n = (unsigned)MIN((end - start) >> PAGE_SHIFT, (uint64_t)BLOCK_PAGES);
		unsigned char *to = block_add(b, copying->address + start, n);
		size_t want = n * PAGE_BYTES, got = 0;
		ssize_t k = 1;

		while (got < want &&
		       (k = pread(f->fd, to + got, want - got, (off_t)(start + got))) != 0) {
			if (k < 0 && errno != EINTR)
				break;
			got += k > 0 ? (size_t)k : 0;
		}
		if (k < 0) {
			int r = -errno;

			b->nr_pages = b->nr_runs = 0;
			pool_put(c->pool, b);
			return r;
		}
		/* Behind the end of the file there is nothing. */
		memset(to + got, 0, want - got);
		if (copying->frozen) {
			c->stats.frozen_pages += n;
			c->stats.held_bytes += n * PAGE_BYTES;
		}
		pool_put(c->pool, b);
		start += want;
	}
	return 0;
}

/* Copies a file; *ret_address: where to. Sets f->missing when that is not to be, and then
 * returns 0, as for what the target would lose by our failing. */
static int copy_file(struct capture *c, struct unlinked_file *f, bool frozen, uint64_t *ret_address,
		     uint64_t *ret_size)
{
	uint64_t size = ALIGN_UP((uint64_t)f->st.st_size, PAGE_BYTES);
	struct copying copying = {.frozen = frozen, .limit = c->options.ghost_limit};
	/* Held for the copy of everything, the target stands still for as long as it takes. */
	bool brief = frozen && !c->stats.held;

	f->missing = NULL;
	if (f->st.st_size < 0 || (uint64_t)f->st.st_size > SIZE_MAX_BYTES) {
		f->missing = "it is too large";
		return 0;
	}
	int r = each_extent(c, f, size, count_extent, &copying);
	if (r == -EFBIG) {
		f->missing = "it is larger than --ghost-limit allows (snapshot)";
		return 0;
	}
	if (r == 0 && brief && copying.bytes > c->ghosts.frozen_left) {
		f->missing = "with it more than --ghost-limit allows (snapshot) would be copied "
			     "while the process stands still";
		return 0;
	}
	if (brief)
		c->ghosts.frozen_left -= MIN(copying.bytes, c->ghosts.frozen_left);
	if (r == 0)
		copying.address = take_addresses(c, size);
	if (r == 0 && !copying.address)
		f->missing = "it is too large";
	else if (r == 0)
		r = each_extent(c, f, size, copy_extent, &copying);
	if (r < 0 && (pool_error(c->pool) || r == -ECANCELED || r == -ENOMEM))
		return r;
	if (r < 0) {
		f->missing = "it cannot be read";
		/* What was read of it belongs to nothing. */
		if (copying.address)
			return ranges_add(&c->ghosts.dropped, copying.address,
					  copying.address + size);
		return 0;
	}
	*ret_address = copying.address;
	*ret_size = size;
	return 0;
}

/* ---- before the freeze ---------------------------------------------------------------------------- */

static bool mapped_writable(const struct capture *c, const struct unlinked_file *f)
{
	for (size_t i = 0; f->map_inode && i < c->maps.n; i++) {
		const struct vma *v = &c->maps.v[i];

		if (v->shared && v->inode == f->map_inode && unlinked_map_dev(v) == f->map_dev &&
		    (!v->has_flags || v->flags >> VMF_MW & 1))
			return true;
	}
	return false;
}

/* Whether the ctime of this file tells of every write. */
static bool ctime_tells(const struct unlinked_file *f)
{
	struct statfs fs;

	if (f->seals >= 0 && f->seals & F_SEAL_WRITE)
		return true;
	return fstatfs(f->fd, &fs) == 0 && fs.f_type != TMPFS_MAGIC &&
	       fs.f_type != HUGETLBFS_MAGIC && fs.f_type != RAMFS_MAGIC;
}

static int copy_early(struct capture *c, struct unlinked_file *f, struct ghost_early *e)
{
	uint64_t start, end;

	/* What is mapped now may not be so at T0: memory then is another part of the file. */
	if (f->fd < 0 || f->missing || !ctime_tells(f) || mapped_writable(c, f) ||
	    next_mapped(c, f, 0, &start, &end) || fstat(f->fd, &f->st) < 0)
		return 0;
	e->st = f->st;
	e->started_ns = wall_ns();
	int r = copy_file(c, f, false, &e->address, &e->size);
	e->made = r == 0 && !f->missing;
	return r;
}

/* Files written a moment ago: after another moment their time stamps mean something. */
static void wait_until_settled(const struct capture *c)
{
	uint64_t now = wall_ns(), last = 0;

	for (size_t i = 0; i < c->ghosts.files.n; i++) {
		const struct unlinked_file *f = &c->ghosts.files.v[i];
		struct stat st;

		if (f->fd >= 0 && ctime_tells(f) && fstat(f->fd, &st) == 0)
			last = MAX(last, ctime_ns(&st));
	}
	if (last <= now && now - last < SETTLED_NS)
		usleep((unsigned)((SETTLED_NS - (now - last)) / 1000 + 1000));
}

int ghost_prepare(struct capture *c, struct usnap_err *err)
{
	struct ghosts *g = &c->ghosts;

	ghost_free(c);
	g->next_address = FORMAT_CONTENT_START;
	int r = unlinked_scan(&g->files, c->target, &c->maps);
	/* With the threads held for the copy there is nothing to be gained. */
	if (r == 0 && g->files.n && !c->stats.held) {
		g->early = calloc(g->files.n, sizeof(*g->early));
		r = g->early ? 0 : -ENOMEM;
		g->nr_early = g->early ? g->files.n : 0;
		wait_until_settled(c);
	}
	for (size_t i = 0; i < g->nr_early && r == 0; i++)
		r = copy_early(c, &g->files.v[i], &g->early[i]);
	/* The writer has the words for its failure. */
	if (r < 0 && pool_error(c->pool))
		return image_writer_flush(c->writer, err);
	if (r < 0 && r != -ECANCELED)
		usnap_fail_errno(err, r, "cannot read the unlinked files of process %d",
				 c->target->pid);
	return r;
}

/* ---- in the freeze -------------------------------------------------------------------------------- */

static bool early_holds(const struct capture *c, const struct unlinked_file *f,
			const struct ghost_early *e)
{
	return e->made && same_state(&e->st, &f->st) && !mapped_writable(c, f) &&
	       ctime_ns(&f->st) + SETTLED_NS <= e->started_ns;
}

/* Served by a process that may be waiting for the target, which stands still. */
static bool may_wait(const struct unlinked_file *f)
{
	struct statfs fs;

	return fstatfs(f->fd, &fs) < 0 || fs.f_type == FUSE_SUPER_MAGIC;
}

static int freeze_file(struct capture *c, size_t i)
{
	struct unlinked_file *f = &c->ghosts.files.v[i];
	struct ghost_early *e = i < c->ghosts.nr_early ? &c->ghosts.early[i] : NULL;
	int r = 0;

	f->has_content = false;
	if (f->fd < 0)
		return 0;
	if (fstat(f->fd, &f->st) < 0)
		return -errno;
	if (e && early_holds(c, f, e)) {
		f->address = e->address;
		f->size = e->size;
	} else if (may_wait(f)) {
		f->missing = "its file system may not answer while the process stands still";
	} else {
		r = copy_file(c, f, true, &f->address, &f->size);
	}
	if (r == 0 && e && e->made && (f->missing || f->address != e->address))
		r = ranges_add(&c->ghosts.dropped, e->address, e->address + e->size);
	f->has_content = r == 0 && !f->missing;
	return r;
}

static int use_descriptor(void *arg, int nr, const struct stat *st)
{
	struct capture *c = arg;
	struct unlinked_file *f = unlinked_find(&c->ghosts.files, st);

	if (!f || (f->fd < 0 && !f->missing)) {
		int r = unlinked_add_fd(&c->ghosts.files, c->target, nr, &f);
		if (r <= 0)
			return r;
	}
	f->used = true;
	return 0;
}

int ghost_freeze(struct capture *c)
{
	struct ghosts *g = &c->ghosts;
	int r = pstate_each_unlinked(c->pstate, use_descriptor, c);

	g->frozen_left = c->options.ghost_limit;

	for (size_t i = 0; i < c->maps.n && r == 0; i++) {
		const struct vma *v = &c->maps.v[i];
		struct unlinked_file *f;

		if (!unlinked_maybe(v))
			continue;
		f = unlinked_find_mapped(&g->files, v);
		if (!f && (r = unlinked_add_mapped(&g->files, c->target, v, &f)) <= 0)
			continue;
		r = 0;
		f->used = true;
	}
	for (size_t i = 0; i < g->files.n && r == 0; i++) {
		if (g->files.v[i].used)
			r = freeze_file(c, i);
		else if (i < g->nr_early && g->early[i].made)
			r = ranges_add(&g->dropped, g->early[i].address,
				       g->early[i].address + g->early[i].size);
	}
	return r;
}

/* ---- afterwards ----------------------------------------------------------------------------------- */

void ghost_drop(struct capture *c)
{
	for (size_t i = 0; i < c->ghosts.dropped.n; i++)
		image_writer_drop(c->writer, c->ghosts.dropped.r[i].start,
				  c->ghosts.dropped.r[i].end - c->ghosts.dropped.r[i].start);
}

void ghost_free(struct capture *c)
{
	unlinked_free(&c->ghosts.files);
	ranges_free(&c->ghosts.dropped);
	free(c->ghosts.early);
	c->ghosts = (struct ghosts){0};
}
