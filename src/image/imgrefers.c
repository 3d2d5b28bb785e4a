#include "image/imgrefers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/le.h"
#include "common/util.h"
#include "image/image.h"

enum {
	INPUT_BYTES = 1 << 16
};

/* A decompressor of the member's beginning. */
struct prefix {
	struct usnap_image *img;
	const struct img_member *m;
	uint64_t done;
	unsigned char *buf;
	ZSTD_DCtx *dctx;
	ZSTD_inBuffer in;
};

static int read_more(struct prefix *p, void *out, size_t len)
{
	ZSTD_outBuffer o = {.dst = out, .size = len};

	while (o.pos < o.size) {
		size_t before = o.pos, left;

		if (p->in.pos == p->in.size && p->done < p->m->size) {
			size_t n = (size_t)MIN(p->m->size - p->done, (uint64_t)INPUT_BYTES);
			int r = img_pread(p->img, p->buf, n, p->m->offset + p->done);

			if (r < 0)
				return r;
			p->done += n;
			p->in = (ZSTD_inBuffer){.src = p->buf, .size = n};
		}
		left = ZSTD_decompressStream(p->dctx, &o, &p->in);
		if (ZSTD_isError(left))
			return img_damaged(p->img, p->m->offset, "page index: %s",
					   ZSTD_getErrorName(left));
		if (o.pos == before && p->in.pos == p->in.size && p->done == p->m->size)
			return img_damaged(p->img, p->m->offset, "page index: it ends too early");
	}
	return 0;
}

static int read_images(struct prefix *p, unsigned char **ret, size_t *ret_nr)
{
	unsigned char header[FORMAT_INDEX_HEADER], record[FORMAT_INDEX_RECORD];
	unsigned char *ids = NULL;
	uint64_t nr;
	int r = read_more(p, header, sizeof(header));

	if (r < 0)
		return r;
	if (memcmp(header, FORMAT_INDEX_MAGIC, 8) != 0)
		return img_damaged(p->img, p->m->offset, "page index: it does not begin as one");
	if (le_get32(header + 8) > FORMAT_INDEX_VERSION)
		return img_newer(p->img, "the page index", le_get32(header + 8));
	nr = le_get64(header + 16);
	if (!nr || nr > FORMAT_MAX_IMAGES)
		return img_damaged(p->img, p->m->offset,
				   "page index: its counts are not those of the image");
	if (nr > 1 && !(ids = malloc((nr - 1) * FORMAT_ID_BYTES)))
		return img_failed(p->img, -ENOMEM, FORMAT_INDEX);
	for (uint64_t i = 0; i < nr; i++) {
		if ((r = read_more(p, record, sizeof(record))) < 0) {
			free(ids);
			return r;
		}
		if (i)
			memcpy(ids + (i - 1) * FORMAT_ID_BYTES, record, FORMAT_ID_BYTES);
	}
	*ret = ids;
	*ret_nr = (size_t)nr - 1;
	return 0;
}

/* Follows read_images(). bytes: by image, its own first; zero. */
static int read_frames(struct prefix *p, uint64_t *bytes, size_t nr)
{
	unsigned char record[FORMAT_INDEX_RECORD];
	uint64_t raw = 0, own_raw = 0, used = p->img->nr_pages * p->img->info.page_size;

	/* As of a whole index: what expands further is made to keep a reader busy. */
	if (p->img->nr_frames / FORMAT_MAX_INDEX_RATIO > p->m->size / FORMAT_INDEX_RECORD)
		return img_damaged(p->img, p->m->offset, "page index: an impossible size");
	for (uint64_t i = 0; i < p->img->nr_frames; i++) {
		uint32_t image, raw_bytes;
		int r = read_more(p, record, sizeof(record));

		if (r < 0)
			return r;
		image = le_get32(record);
		raw_bytes = le_get32(record + 4);
		if (image >= nr)
			return img_damaged(p->img, p->m->offset, "page index: frame of no image");
		bytes[image] += le_get32(record + 8);
		raw += raw_bytes;
		own_raw += image ? 0 : raw_bytes;
	}
	raw -= own_raw;
	used -= MIN(used, own_raw);
	for (size_t i = 1; i < nr && used < raw; i++)
		bytes[i] = (uint64_t)((double)bytes[i] * (double)used / (double)raw);
	return 0;
}

static int read_sizes(struct prefix *p, size_t nr, uint64_t **ret)
{
	uint64_t *bytes = calloc(nr + 1, sizeof(*bytes));
	int r = bytes ? read_frames(p, bytes, nr + 1) : img_failed(p->img, -ENOMEM, FORMAT_INDEX);

	if (r < 0) {
		free(bytes);
		return r;
	}
	memmove(bytes, bytes + 1, nr * sizeof(*bytes));
	*ret = bytes;
	return 0;
}

int img_read_refers(struct usnap_image *img, unsigned char **ret, size_t *ret_nr)
{
	return img_read_refers_sized(img, ret, ret_nr, NULL);
}

int img_read_refers_sized(struct usnap_image *img, unsigned char **ret, size_t *ret_nr,
			  uint64_t **ret_bytes)
{
	struct prefix p = {.img = img};
	int r = img_require_open(img);

	if (r < 0)
		return r;
	p.m = img_find_member(img, FORMAT_INDEX);
	if (!p.m)
		return img_damaged(img, img->commit_content, "there is no '%s'", FORMAT_INDEX);
	if ((r = img_check_header(img, p.m)) < 0)
		return r;
	p.buf = malloc(INPUT_BYTES);
	p.dctx = ZSTD_createDCtx();
	if (p.buf && p.dctx) {
		ZSTD_DCtx_setParameter(p.dctx, ZSTD_d_windowLogMax, 23);
		r = read_images(&p, ret, ret_nr);
		if (r == 0 && ret_bytes && (r = read_sizes(&p, *ret_nr, ret_bytes)) < 0) {
			free(*ret);
			*ret = NULL;
		}
	} else {
		r = img_failed(img, -ENOMEM, FORMAT_INDEX);
	}
	ZSTD_freeDCtx(p.dctx);
	free(p.buf);
	return r;
}
