#include "image/pageindex.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "common/le.h"
#include "common/util.h"

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
	free(pi->spans);
	pageindex_init(pi, pi->page_size);
}

static void add_run(struct pageindex *pi, uint32_t frame, uint64_t key, uint32_t slot,
		    uint32_t nr_pages)
{
	struct page_run *r = (struct page_run *)((char *)pi->runs.p + pi->runs.used);

	*r = (struct page_run){
		.key = key, .frame = frame, .slot = (uint16_t)slot, .nr_pages = (uint16_t)nr_pages};
	pi->runs.used += sizeof(*r);
}

int pageindex_add(struct pageindex *pi, const struct page_frame *frame,
		  const struct image_run *runs, size_t nr_runs, const struct page_hash *hashes)
{
	uint64_t nr = pageindex_nr_frames(pi);
	uint32_t slot = 0;
	struct page_frame *f;
	int r;

	if (nr >= UINT32_MAX)
		return -EOVERFLOW;
	if ((r = growing_reserve(&pi->runs, nr_runs * sizeof(struct page_run))) < 0 ||
	    (r = growing_reserve(&pi->frames, sizeof(*frame))) < 0 ||
	    (r = growing_reserve(&pi->hashes, frame->nr_pages * sizeof(*hashes))) < 0)
		return r;
	f = (struct page_frame *)((char *)pi->frames.p + pi->frames.used);
	*f = *frame;
	f->first_hash = pi->hashes.used / sizeof(*hashes);
	pi->frames.used += sizeof(*f);
	memcpy((char *)pi->hashes.p + pi->hashes.used, hashes, frame->nr_pages * sizeof(*hashes));
	pi->hashes.used += frame->nr_pages * sizeof(*hashes);
	for (size_t i = 0; i < nr_runs; i++) {
		add_run(pi, (uint32_t)nr, runs[i].addr, slot, runs[i].nr_pages);
		slot += runs[i].nr_pages;
	}
	return 0;
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

			for (; j && r[j - 1].key > t.key; j--)
				r[j] = r[j - 1];
			r[j] = t;
		}
		return;
	}
	memset(end, 0, sizeof(end));
	for (size_t i = 0; i < n; i++)
		end[(r[i].key >> shift) & 255]++;
	for (size_t b = 0; b < 256; b++) {
		next[b] = start;
		start += end[b];
		end[b] = start;
	}
	for (size_t b = 0; b < 256; b++) {
		while (next[b] < end[b]) {
			struct page_run t = r[next[b]];
			size_t to;

			while ((to = (t.key >> shift) & 255) != b) {
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
		if (r[i - 1].key > r[i].key)
			return false;
	return true;
}

/* The part of a run that lies within [lo, lo + len): number of its first
 * page and count of pages. */
static uint32_t clip_run(const struct pageindex *pi, const struct page_run *r, uint64_t lo,
			 uint64_t len, uint32_t *ret_first)
{
	uint64_t run_last = r->key + ((uint64_t)r->nr_pages - 1) * pi->page_size;
	uint64_t last = lo + (len - pi->page_size);
	uint64_t from = MAX(lo, r->key), to = MIN(last, run_last);

	*ret_first = (uint32_t)((from - r->key) / pi->page_size);
	return from > to ? 0 : (uint32_t)((to - from) / pi->page_size + 1);
}

/* The first run that ends beyond lo. */
static size_t find_run(const struct pageindex *pi, uint64_t lo)
{
	const struct page_run *runs = pi->runs.p;
	size_t a = 0, b = pi->runs.used / sizeof(*runs);

	while (a < b) {
		size_t m = a + (b - a) / 2;

		if (runs[m].key + ((uint64_t)runs[m].nr_pages - 1) * pi->page_size < lo)
			a = m + 1;
		else
			b = m;
	}
	return a;
}

static uint64_t count_pages(const struct pageindex *pi, uint64_t lo, uint64_t len)
{
	const struct page_run *runs = pi->runs.p;
	size_t n = pi->runs.used / sizeof(*runs);
	uint64_t count = 0;
	uint32_t first;

	for (size_t i = find_run(pi, lo); i < n; i++) {
		uint32_t c = clip_run(pi, &runs[i], lo, len, &first);

		if (!c)
			break;
		count += c;
	}
	return count;
}

static int by_addr(const void *a, const void *b)
{
	const struct page_span *x = a, *y = b;

	return x->addr < y->addr ? -1 : x->addr > y->addr;
}

static int by_key(const void *a, const void *b)
{
	const struct page_span *x = a, *y = b;

	return x->key < y->key ? -1 : x->key > y->key;
}

/* Appends the gaps between the ranges of v, as spans in which key and
 * address are the same. v ascends; ranges may overlap. */
static void add_identity(struct pageindex *pi, const struct page_span *v, size_t n)
{
	uint64_t top = ALIGN_DOWN(UINT64_MAX, (uint64_t)pi->page_size), at = 0;

	for (size_t i = 0; i < n; i++) {
		if (v[i].addr > at)
			pi->spans[pi->nr_spans++] =
				(struct page_span){.addr = at, .key = at, .len = v[i].addr - at};
		at = MAX(at, v[i].addr + v[i].len);
	}
	if (at < top)
		pi->spans[pi->nr_spans++] =
			(struct page_span){.addr = at, .key = at, .len = top - at};
}

static int check_runs(const struct pageindex *pi, struct usnap_err *err)
{
	const struct page_run *r = pi->runs.p;
	size_t n = pi->runs.used / sizeof(*r);

	for (size_t i = 1; i < n; i++)
		if (r[i].key - r[i - 1].key < (uint64_t)r[i - 1].nr_pages * pi->page_size)
			return usnap_fail(err, -EINVAL,
					  "cannot write the page index: page 0x%" PRIx64
					  " was captured twice",
					  r[i].key);
	return 0;
}

static int check_alias(const struct pageindex *pi, const struct image_alias *a,
		       struct usnap_err *err)
{
	uint64_t mask = pi->page_size - 1;

	if (!a->len || ((a->len | a->addr | a->key) & mask) || a->addr + a->len < a->addr ||
	    a->key + a->len < a->key)
		return usnap_fail(err, -EINVAL,
				  "cannot write the page index: bad alias of 0x%" PRIx64
				  " at 0x%" PRIx64 ", %" PRIu64 " bytes",
				  a->key, a->addr, a->len);
	return 0;
}

int pageindex_finish(struct pageindex *pi, const struct image_alias *aliases, size_t nr_aliases,
		     struct usnap_err *err)
{
	struct page_run *runs = pi->runs.p;
	size_t n = pi->runs.used / sizeof(*runs);
	uint64_t total = pi->hashes.used / FORMAT_HASH_BYTES, seen = 0;
	cleanup_free struct page_span *taken = NULL;
	size_t nr_taken = 0;
	int r;

	if (!runs_sorted(runs, n))
		sort_runs(runs, n, 56);
	if ((r = check_runs(pi, err)) < 0)
		return r;

	/* Keys that an alias covers, and addresses that an alias fills, are
	 * no addresses of their own. */
	taken = calloc(2 * nr_aliases + 1, sizeof(*taken));
	pi->spans = calloc(3 * nr_aliases + 2, sizeof(*pi->spans));
	if (!taken || !pi->spans)
		return usnap_fail_errno(err, -ENOMEM, "cannot write the page index");
	for (size_t i = 0; i < nr_aliases; i++) {
		const struct image_alias *a = &aliases[i];

		if ((r = check_alias(pi, a, err)) < 0)
			return r;
		pi->spans[pi->nr_spans++] =
			(struct page_span){.addr = a->addr, .key = a->key, .len = a->len};
		taken[nr_taken++] = (struct page_span){.addr = a->addr, .len = a->len};
		taken[nr_taken++] = (struct page_span){.addr = a->key, .len = a->len};
	}
	qsort(taken, nr_taken, sizeof(*taken), by_addr);
	add_identity(pi, taken, nr_taken);

	/* Every page must now be under an alias or stand for itself. */
	qsort(pi->spans, pi->nr_spans, sizeof(*pi->spans), by_key);
	for (size_t i = 0, end = 0; i < pi->nr_spans; i++) {
		const struct page_span *s = &pi->spans[i];
		uint64_t from = MAX(s->key, end);

		if (from < s->key + s->len) {
			seen += count_pages(pi, from, s->key + s->len - from);
			end = s->key + s->len;
		}
	}
	if (seen != total)
		return usnap_fail(err, -EINVAL,
				  "cannot write the page index: %" PRIu64
				  " pages lie where shared memory is mapped",
				  total - seen);

	qsort(pi->spans, pi->nr_spans, sizeof(*pi->spans), by_addr);
	pi->nr_records = 0;
	for (size_t i = 0; i < pi->nr_spans; i++) {
		const struct page_span *s = &pi->spans[i];

		if (i + 1 < pi->nr_spans && pi->spans[i + 1].addr - s->addr < s->len)
			return usnap_fail(err, -EINVAL,
					  "cannot write the page index: two aliases at 0x%" PRIx64,
					  pi->spans[i + 1].addr);
		pi->nr_records += count_pages(pi, s->key, s->len);
	}
	return 0;
}

uint64_t pageindex_bytes(const struct pageindex *pi)
{
	return FORMAT_INDEX_HEADER +
	       FORMAT_INDEX_RECORD * (1 + pageindex_nr_frames(pi) + pi->nr_records);
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

static int emit_span(const struct pageindex *pi, const struct page_span *s, struct piece *p)
{
	const struct page_run *runs = pi->runs.p;
	const struct page_frame *frames = pi->frames.p;
	const struct page_hash *hashes = pi->hashes.p;
	size_t n = pi->runs.used / sizeof(*runs);
	int r = 0;

	for (size_t i = find_run(pi, s->key); i < n && r == 0; i++) {
		uint32_t first, count = clip_run(pi, &runs[i], s->key, s->len, &first);

		if (!count)
			break;
		for (uint32_t k = first; k < first + count; k++) {
			unsigned char *rec = piece_record(p, &r);
			uint64_t key = runs[i].key + (uint64_t)k * pi->page_size;
			uint32_t slot = runs[i].slot + k;

			le_put64(rec, key - s->key + s->addr);
			le_put32(rec + 8, runs[i].frame);
			le_put16(rec + 12, (uint16_t)slot);
			memcpy(rec + 16, &hashes[frames[runs[i].frame].first_hash + slot],
			       FORMAT_HASH_BYTES);
		}
	}
	return r;
}

int pageindex_emit(const struct pageindex *pi, const unsigned char *id,
		   const uint64_t *segment_base, int (*out)(void *ctx, const void *buf, size_t len),
		   void *ctx)
{
	const struct page_frame *frames = pi->frames.p;
	uint64_t nr_frames = pageindex_nr_frames(pi);
	struct piece p = {.out = out, .ctx = ctx};
	unsigned char *h = p.buf;
	int r = 0;

	memcpy(h, FORMAT_INDEX_MAGIC, 8);
	le_put32(h + 8, FORMAT_INDEX_VERSION);
	le_put32(h + 12, pi->page_size);
	le_put64(h + 16, 1);
	le_put64(h + 24, nr_frames);
	le_put64(h + 32, pi->nr_records);
	p.used = FORMAT_INDEX_HEADER;
	memcpy(piece_record(&p, &r), id, FORMAT_ID_BYTES);
	for (uint64_t i = 0; i < nr_frames && r == 0; i++) {
		unsigned char *rec = piece_record(&p, &r);

		le_put32(rec + 4, frames[i].nr_pages * pi->page_size);
		le_put32(rec + 8, frames[i].compressed_bytes);
		le_put64(rec + 16, segment_base[frames[i].segment] + frames[i].offset);
	}
	for (size_t i = 0; i < pi->nr_spans && r == 0; i++)
		r = emit_span(pi, &pi->spans[i], &p);
	return r ? r : out(ctx, p.buf, p.used);
}
