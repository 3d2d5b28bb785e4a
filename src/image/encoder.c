#include "image/writer.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "image/append.h"
#include "image/hash.h"

enum {
	NR_LOCAL = 2 * FORMAT_MAX_FRAME_RAW / FORMAT_MIN_PAGE /* a power of two */
};

struct image_encoder {
	struct image_writer *w;
	ZSTD_CCtx *cctx;
	unsigned char *raw; /* pages of a frame, where they do not lie so already */
	unsigned char *out;
	size_t out_room;
	struct sifted *pages; /* what is not zero */
	struct page_hash *hashes; /* of the new ones */
	struct page_run *runs;
	uint64_t parent_hint;
	uint16_t local[NR_LOCAL]; /* new pages by hash: number in pages + 1 */
};

int image_encoder_new(struct image_encoder **ret, struct image_writer *w)
{
	const struct image_writer_options *o = writer_options(w);
	size_t frame_bytes = (size_t)o->frame_pages * o->page_size;
	struct image_encoder *e = calloc(1, sizeof(*e));

	if (!e)
		return -ENOMEM;
	e->w = w;
	e->out_room = ZSTD_compressBound(frame_bytes);
	e->raw = malloc(frame_bytes);
	e->out = malloc(e->out_room);
	e->pages = calloc(o->frame_pages, sizeof(*e->pages));
	e->hashes = calloc(o->frame_pages, sizeof(*e->hashes));
	e->runs = calloc(o->frame_pages, sizeof(*e->runs));
	e->cctx = ZSTD_createCCtx();
	if (!e->raw || !e->out || !e->pages || !e->hashes || !e->runs || !e->cctx ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(e->cctx, ZSTD_c_compressionLevel, o->level)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(e->cctx, ZSTD_c_checksumFlag, 1)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(e->cctx, ZSTD_c_contentSizeFlag, 1))) {
		image_encoder_free(e);
		return -ENOMEM;
	}
	*ret = e;
	return 0;
}

void image_encoder_free(struct image_encoder *e)
{
	if (!e)
		return;
	ZSTD_freeCCtx(e->cctx);
	free(e->raw);
	free(e->out);
	free(e->pages);
	free(e->hashes);
	free(e->runs);
	free(e);
}

static bool page_is_zero(const unsigned char *p, size_t len)
{
	uint64_t first;

	memcpy(&first, p, sizeof(first));
	return first == 0 && memcmp(p, p + sizeof(first), len - sizeof(first)) == 0;
}

static int check_runs(const struct image_writer_options *o, const struct image_run *runs,
		      size_t nr_runs)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < nr_runs; i++) {
		uint64_t n = runs[i].nr_pages;

		pages += n;
		if (!n || pages > o->frame_pages || runs[i].addr % o->page_size ||
		    runs[i].addr > UINT64_MAX - n * o->page_size)
			return -EINVAL;
	}
	return 0;
}

/* What is not zero, with its hash, into e->pages. */
static uint32_t sift(struct image_encoder *e, const struct image_run *runs, size_t nr_runs,
		     const unsigned char *data, uint32_t *ret_zero)
{
	const struct usnap_image *parent = writer_parent(e->w);
	size_t ps = writer_options(e->w)->page_size;
	uint64_t seed = writer_seed(e->w);
	uint32_t n = 0, zero = 0;

	for (size_t i = 0; i < nr_runs; i++) {
		for (uint32_t k = 0; k < runs[i].nr_pages; k++, data += ps) {
			struct sifted *p = &e->pages[n];

			if (!runs[i].keep_zero && page_is_zero(data, ps)) {
				zero++;
				continue;
			}
			*p = (struct sifted){.addr = runs[i].addr + (uint64_t)k * ps,
					     .data = data,
					     .frame = PAGE_NEW_FRAME};
			hash_page(&p->hash, seed, data, ps);
			if (parent && references_match(parent, p->addr, &p->hash, &e->parent_hint))
				p->frame = PAGE_IN_PARENT;
			n++;
		}
	}
	*ret_zero = zero;
	return n;
}

/* The page among the new ones that equals p, or the place for p. */
static uint16_t *find_local(struct image_encoder *e, const struct sifted *p)
{
	uint64_t i;

	memcpy(&i, p->hash.b, sizeof(i));
	for (i %= NR_LOCAL; e->local[i]; i = (i + 1) % NR_LOCAL)
		if (!memcmp(&e->pages[e->local[i] - 1].hash, &p->hash, sizeof(p->hash)))
			break;
	return &e->local[i];
}

/* Gives the new pages their slots, equal ones the same. Returns how many there are to be stored. */
static uint32_t assign_slots(struct image_encoder *e, uint32_t n, uint32_t *ret_equal)
{
	uint32_t nr_new = 0;

	*ret_equal = 0;
	memset(e->local, 0, sizeof(e->local));
	for (uint32_t i = 0; i < n; i++) {
		struct sifted *p = &e->pages[i];
		uint16_t *local;

		if (p->frame != PAGE_NEW_FRAME) {
			*ret_equal += p->frame != PAGE_IN_PARENT;
			continue;
		}
		local = find_local(e, p);
		if (*local) {
			p->slot = e->pages[*local - 1].slot;
			(*ret_equal)++;
			continue;
		}
		*local = (uint16_t)(i + 1);
		p->slot = (uint16_t)nr_new;
		e->hashes[nr_new++] = p->hash;
	}
	return nr_new;
}

/* The bytes of the new pages back to back; they are moved together only when others lie between. */
static const unsigned char *gather(struct image_encoder *e, uint32_t n, uint32_t nr_new)
{
	size_t ps = writer_options(e->w)->page_size;
	const unsigned char *start = NULL;
	uint32_t next = 0;
	bool together = true;

	for (uint32_t i = 0; i < n; i++) {
		const struct sifted *p = &e->pages[i];

		if (p->frame != PAGE_NEW_FRAME || p->slot != next)
			continue;
		if (!start)
			start = p->data;
		together &= p->data == start + next * ps;
		next++;
	}
	if (together)
		return start;
	next = 0;
	for (uint32_t i = 0; i < n && next < nr_new; i++)
		if (e->pages[i].frame == PAGE_NEW_FRAME && e->pages[i].slot == next)
			memcpy(e->raw + next++ * ps, e->pages[i].data, ps);
	return e->raw;
}

static size_t describe(struct image_encoder *e, uint32_t n)
{
	size_t ps = writer_options(e->w)->page_size, nr = 0;

	for (uint32_t i = 0; i < n; i++) {
		const struct sifted *p = &e->pages[i];
		struct page_run *r = nr ? &e->runs[nr - 1] : NULL;

		if (r && r->frame == p->frame && r->addr + r->nr_pages * ps == p->addr &&
		    (p->frame == PAGE_IN_PARENT || r->slot + r->nr_pages == p->slot))
			r->nr_pages++;
		else
			e->runs[nr++] = (struct page_run){
				.addr = p->addr, .frame = p->frame, .slot = p->slot, .nr_pages = 1};
	}
	return nr;
}

int image_encode(struct image_encoder *e, const struct image_run *runs, size_t nr_runs,
		 const void *data)
{
	const struct image_writer_options *o = writer_options(e->w);
	struct encoded out = {.data = e->out, .runs = e->runs, .hashes = e->hashes, .find = true};
	uint32_t n;
	int r = writer_ready(e->w);

	if (r < 0 || (r = check_runs(o, runs, nr_runs)) < 0)
		return r;
	n = sift(e, runs, nr_runs, data, &out.nr_zero);
	writer_find(e->w, e->pages, n);
	out.nr_pages = assign_slots(e, n, &out.nr_equal);
	out.nr_runs = describe(e, n);
	if (out.nr_pages) {
		out.len = ZSTD_compress2(e->cctx, e->out, e->out_room, gather(e, n, out.nr_pages),
					 (size_t)out.nr_pages * o->page_size);
		if (ZSTD_isError(out.len)) {
			struct usnap_err err = {0};

			usnap_fail(&err, -EIO, "cannot compress pages: %s",
				   ZSTD_getErrorName(out.len));
			return writer_fail(e->w, &err);
		}
	}
	return writer_append(e->w, &out);
}
