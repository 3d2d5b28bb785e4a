#include "image/writer.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "image/append.h"
#include "image/hash.h"

struct image_encoder {
	struct image_writer *w;
	ZSTD_CCtx *cctx;
	unsigned char *raw; /* pages without the zero pages among them */
	unsigned char *out;
	size_t out_room;
	struct page_hash *hashes;
	struct image_run *runs; /* without the zero pages */
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
	e->hashes = calloc(o->frame_pages, sizeof(*e->hashes));
	e->runs = calloc(o->frame_pages, sizeof(*e->runs));
	e->cctx = ZSTD_createCCtx();
	if (!e->raw || !e->out || !e->hashes || !e->runs || !e->cctx ||
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

/* Hashes what is not zero and describes it in e->runs. Moves the pages
 * together in e->raw only when there are zero pages among them. *ret_data:
 * where the pages to be stored lie. */
static uint32_t sift(struct image_encoder *e, const struct image_run *runs, size_t nr_runs,
		     const unsigned char *data, size_t *ret_runs, const unsigned char **ret_data,
		     uint32_t *ret_zero)
{
	size_t ps = writer_options(e->w)->page_size, nr = 0;
	uint32_t pages = 0, zero = 0;
	const unsigned char *p = data;

	for (size_t i = 0; i < nr_runs; i++) {
		bool open = false;

		for (uint32_t k = 0; k < runs[i].nr_pages; k++, p += ps) {
			if (!runs[i].keep_zero && page_is_zero(p, ps)) {
				if (!zero++)
					memcpy(e->raw, data, (size_t)(p - data));
				open = false;
				continue;
			}
			if (!open)
				e->runs[nr++] =
					(struct image_run){.addr = runs[i].addr + (uint64_t)k * ps};
			open = true;
			e->runs[nr - 1].nr_pages++;
			if (zero)
				memcpy(e->raw + (size_t)pages * ps, p, ps);
			hash_canonical(&e->hashes[pages++], XXH3_128bits(p, ps));
		}
	}
	*ret_runs = nr;
	*ret_zero = zero;
	*ret_data = zero ? e->raw : data;
	return pages;
}

int image_encode(struct image_encoder *e, const struct image_run *runs, size_t nr_runs,
		 const void *data)
{
	const struct image_writer_options *o = writer_options(e->w);
	struct encoded out = {.data = e->out, .runs = e->runs, .hashes = e->hashes};
	const unsigned char *stored;
	int r = writer_ready(e->w);

	if (r < 0 || (r = check_runs(o, runs, nr_runs)) < 0)
		return r;
	out.nr_pages = sift(e, runs, nr_runs, data, &out.nr_runs, &stored, &out.nr_zero);
	if (out.nr_pages) {
		out.len = ZSTD_compress2(e->cctx, e->out, e->out_room, stored,
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
