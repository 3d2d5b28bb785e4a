#include "image/pageindex.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "common/le.h"
#include "common/util.h"
#include "image/image.h"

int growing_reserve(struct growing *g, size_t extra)
{
	size_t room = g->room ? g->room : MIB(1);
	void *p;

	if (extra <= g->room - g->used)
		return 0;
	if (extra > SIZE_MAX / 4 - g->used)
		return -ENOMEM;
	while (room - g->used < extra)
		room *= 2;
	if (g->p)
		p = mremap(g->p, g->room, room, MREMAP_MAYMOVE);
	else
		p = mmap(NULL, room, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	g->p = p;
	g->room = room;
	return 0;
}

void growing_free(struct growing *g)
{
	if (g->p)
		munmap(g->p, g->room);
	memset(g, 0, sizeof(*g));
}

void pageindex_init(struct pageindex *pi, uint32_t page_size)
{
	memset(pi, 0, sizeof(*pi));
	pi->page_size = page_size;
}

void pageindex_clear(struct pageindex *pi)
{
	growing_free(&pi->runs);
	growing_free(&pi->frames);
	growing_free(&pi->hashes);
	pagetable_clear(&pi->stored);
	references_clear(&pi->refs);
	pi->nr_pages = pi->nr_referred = 0;
}

int pageindex_add(struct pageindex *pi, const struct page_frame *frame, const struct page_run *runs,
		  size_t nr_runs, const struct page_hash *hashes, bool find)
{
	uint64_t nr = pageindex_nr_frames(pi), first = pi->hashes.used / sizeof(*hashes);
	uint32_t nr_hashes = frame ? frame->nr_pages : 0;
	struct page_run *to;
	int r;

	if (frame && nr >= PAGE_NEW_FRAME)
		return -EOVERFLOW;
	if ((r = growing_reserve(&pi->runs, nr_runs * sizeof(*runs))) < 0 ||
	    (r = growing_reserve(&pi->frames, sizeof(*frame))) < 0 ||
	    (r = growing_reserve(&pi->hashes, nr_hashes * sizeof(*hashes))) < 0)
		return r;
	if (frame) {
		struct page_frame *f =
			(struct page_frame *)((char *)pi->frames.p + pi->frames.used);

		*f = *frame;
		f->first_hash = first;
		pi->frames.used += sizeof(*f);
		memcpy((char *)pi->hashes.p + pi->hashes.used, hashes, nr_hashes * sizeof(*hashes));
		pi->hashes.used += nr_hashes * sizeof(*hashes);
	}
	for (uint32_t i = 0; i < nr_hashes && find; i++)
		pagetable_add(&pi->stored, pi->hashes.p, first + i);
	to = (struct page_run *)((char *)pi->runs.p + pi->runs.used);
	for (size_t i = 0; i < nr_runs; i++) {
		to[i] = runs[i];
		if (runs[i].frame == PAGE_NEW_FRAME)
			to[i].frame = (uint32_t)nr;
		else if (runs[i].frame == PAGE_IN_PARENT)
			pi->nr_referred += runs[i].nr_pages;
		pi->nr_pages += runs[i].nr_pages;
	}
	pi->runs.used += nr_runs * sizeof(*runs);
	return 0;
}

bool pageindex_find(const struct pageindex *pi, const struct page_hash *h, uint32_t *ret_frame,
		    uint16_t *ret_slot)
{
	const struct page_frame *frames = pi->frames.p;
	uint64_t nr = pagetable_find(&pi->stored, pi->hashes.p, h), a = 0;

	if (nr == PAGETABLE_NONE)
		return false;
	/* The last frame whose first hash is not beyond it. */
	for (uint64_t b = pageindex_nr_frames(pi); b - a > 1;) {
		uint64_t m = a + (b - a) / 2;

		if (frames[m].first_hash <= nr)
			a = m;
		else
			b = m;
	}
	*ret_frame = (uint32_t)a;
	*ret_slot = (uint16_t)(nr - frames[a].first_hash);
	return true;
}

/* Radix sort from the highest byte down, within the array: linear whatever
 * the order the faults came in, and without the copy that qsort(3) makes. */
static void sort_runs(struct page_run *r, size_t n, unsigned shift)
{
	size_t next[256], end[256], start = 0;

	if (n <= 24) {
		for (size_t i = 1; i < n; i++) {
			struct page_run t = r[i];
			size_t j = i;

			for (; j && r[j - 1].addr > t.addr; j--)
				r[j] = r[j - 1];
			r[j] = t;
		}
		return;
	}
	memset(end, 0, sizeof(end));
	for (size_t i = 0; i < n; i++)
		end[(r[i].addr >> shift) & 255]++;
	for (size_t b = 0; b < 256; b++) {
		next[b] = start;
		start += end[b];
		end[b] = start;
	}
	for (size_t b = 0; b < 256; b++) {
		while (next[b] < end[b]) {
			struct page_run t = r[next[b]];
			size_t to;

			while ((to = (t.addr >> shift) & 255) != b) {
				struct page_run other = r[next[to]];

				r[next[to]++] = t;
				t = other;
			}
			r[next[b]++] = t;
		}
	}
	if (!shift)
		return;
	start = 0;
	for (size_t b = 0; b < 256; b++) {
		sort_runs(r + start, end[b] - start, shift - 8);
		start = end[b];
	}
}

static bool runs_sorted(const struct page_run *r, size_t n)
{
	for (size_t i = 1; i < n; i++)
		if (r[i - 1].addr > r[i].addr)
			return false;
	return true;
}

static int check_runs(const struct pageindex *pi, struct usnap_err *err)
{
	const struct page_run *r = pi->runs.p;
	size_t n = pi->runs.used / sizeof(*r);

	for (size_t i = 1; i < n; i++)
		if (r[i].addr - r[i - 1].addr < (uint64_t)r[i - 1].nr_pages * pi->page_size)
			return usnap_fail(err, -EINVAL,
					  "cannot write the page index: page 0x%" PRIx64
					  " was captured twice",
					  r[i].addr);
	return 0;
}

void pageindex_drop(struct pageindex *pi, uint64_t addr, uint64_t len)
{
	struct page_run *r = pi->runs.p;
	size_t n = pi->runs.used / sizeof(*r), kept = 0;

	for (size_t i = 0; i < n; i++) {
		if (r[i].addr - addr >= len) {
			r[kept++] = r[i];
			continue;
		}
		pi->nr_pages -= r[i].nr_pages;
		if (r[i].frame == PAGE_IN_PARENT)
			pi->nr_referred -= r[i].nr_pages;
	}
	pi->runs.used = kept * sizeof(*r);
}

static int find_references(struct pageindex *pi, struct usnap_err *err)
{
	const struct page_run *runs = pi->runs.p;
	size_t n = pi->runs.used / sizeof(*runs);
	uint64_t hint = 0;
	int r = references_begin(&pi->refs);

	for (size_t i = 0; i < n && r == 0; i++)
		for (uint32_t k = 0;
		     runs[i].frame == PAGE_IN_PARENT && k < runs[i].nr_pages && r == 0; k++)
			r = references_need(&pi->refs, runs[i].addr + (uint64_t)k * pi->page_size,
					    &hint);
	return r < 0 ? usnap_fail_errno(err, r, "cannot write the page index")
		     : references_number(&pi->refs, pageindex_nr_frames(pi), err);
}

int pageindex_finish(struct pageindex *pi, struct usnap_err *err)
{
	struct page_run *runs = pi->runs.p;
	size_t n = pi->runs.used / sizeof(*runs);
	int r;

	if (!runs_sorted(runs, n))
		sort_runs(runs, n, 56);
	r = check_runs(pi, err);
	return r < 0 ? r : find_references(pi, err);
}

uint64_t pageindex_bytes(const struct pageindex *pi)
{
	return FORMAT_INDEX_HEADER +
	       FORMAT_INDEX_RECORD *
		       (1 + pi->refs.nr_images + pageindex_all_frames(pi) + pi->nr_pages);
}

/* A piece of the index on its way out. */
struct piece {
	int (*out)(void *ctx, const void *buf, size_t len);
	void *ctx;
	size_t used;
	unsigned char buf[KIB(16)];
};

static unsigned char *piece_record(struct piece *p, int *r)
{
	if (p->used == sizeof(p->buf)) {
		if (*r == 0)
			*r = p->out(p->ctx, p->buf, p->used);
		p->used = 0;
	}
	p->used += FORMAT_INDEX_RECORD;
	return memset(p->buf + p->used - FORMAT_INDEX_RECORD, 0, FORMAT_INDEX_RECORD);
}

/* Room that was not used. */
static void piece_take_back(struct piece *p)
{
	p->used -= FORMAT_INDEX_RECORD;
}

static int emit_run(const struct pageindex *pi, const struct page_run *run, uint64_t *hint,
		    struct piece *p)
{
	const struct page_frame *frames = pi->frames.p;
	const struct page_hash *hashes = pi->hashes.p;
	int r = 0;

	for (uint32_t i = 0; i < run->nr_pages && r == 0; i++) {
		unsigned char *rec = piece_record(p, &r);
		uint64_t addr = run->addr + (uint64_t)i * pi->page_size;
		uint32_t slot = run->slot + i;

		if (run->frame == PAGE_IN_PARENT) {
			references_page_record(&pi->refs, addr, hint, rec);
			continue;
		}
		le_put64(rec, addr);
		le_put32(rec + 8, run->frame);
		le_put16(rec + 12, (uint16_t)slot);
		memcpy(rec + 16, &hashes[frames[run->frame].first_hash + slot], FORMAT_HASH_BYTES);
	}
	return r;
}

static int emit_images(const struct pageindex *pi, const unsigned char *id, struct piece *p)
{
	int r = 0;

	memcpy(piece_record(p, &r), id, FORMAT_ID_BYTES);
	for (uint64_t i = 0; pi->refs.nr_images && i < pi->refs.parent->nr_images && r == 0; i++)
		if (!references_image_record(&pi->refs, i, piece_record(p, &r)))
			piece_take_back(p);
	return r;
}

static int emit_frames(const struct pageindex *pi, const uint64_t *segment_base, struct piece *p)
{
	const struct page_frame *frames = pi->frames.p;
	uint64_t nr = pageindex_nr_frames(pi);
	int r = 0;

	for (uint64_t i = 0; i < nr && r == 0; i++) {
		unsigned char *rec = piece_record(p, &r);

		le_put32(rec + 4, frames[i].nr_pages * pi->page_size);
		le_put32(rec + 8, frames[i].compressed_bytes);
		le_put64(rec + 16, segment_base[frames[i].segment] + frames[i].offset);
	}
	for (uint64_t i = 0; pi->refs.nr_frames && i < pi->refs.parent->nr_frames && r == 0; i++)
		if (!references_frame_record(&pi->refs, i, piece_record(p, &r)))
			piece_take_back(p);
	return r;
}

int pageindex_emit(const struct pageindex *pi, const unsigned char *id,
		   const uint64_t *segment_base, int (*out)(void *ctx, const void *buf, size_t len),
		   void *ctx)
{
	const struct page_run *runs = pi->runs.p;
	size_t nr_runs = pi->runs.used / sizeof(*runs);
	struct piece p = {.out = out, .ctx = ctx};
	unsigned char *h = p.buf;
	uint64_t hint = 0;
	int r;

	memcpy(h, FORMAT_INDEX_MAGIC, 8);
	le_put32(h + 8, FORMAT_INDEX_VERSION);
	le_put32(h + 12, pi->page_size);
	le_put64(h + 16, 1 + pi->refs.nr_images);
	le_put64(h + 24, pageindex_all_frames(pi));
	le_put64(h + 32, pi->nr_pages);
	le_put64(h + 40, pi->seed);
	p.used = FORMAT_INDEX_HEADER;
	if ((r = emit_images(pi, id, &p)) == 0)
		r = emit_frames(pi, segment_base, &p);
	for (size_t i = 0; i < nr_runs && r == 0; i++)
		r = emit_run(pi, &runs[i], &hint, &p);
	return r ? r : out(ctx, p.buf, p.used);
}
