#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "common/le.h"
#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"

void img_get_frame(const struct usnap_image *img, uint64_t nr, struct img_frame *ret)
{
	const unsigned char *rec = img->frames + nr * FORMAT_INDEX_RECORD;

	ret->image = le_get32(rec);
	ret->raw_bytes = le_get32(rec + 4);
	ret->compressed_bytes = le_get32(rec + 8);
	ret->offset = le_get64(rec + 16);
}

uint64_t img_page_addr(const struct usnap_image *img, uint64_t nr)
{
	return le_get64(img->pages + nr * FORMAT_INDEX_RECORD);
}

uint32_t img_page_frame(const struct usnap_image *img, uint64_t nr)
{
	return le_get32(img->pages + nr * FORMAT_INDEX_RECORD + 8);
}

uint32_t img_page_slot(const struct usnap_image *img, uint64_t nr)
{
	return le_get16(img->pages + nr * FORMAT_INDEX_RECORD + 12);
}

const unsigned char *img_page_hash(const struct usnap_image *img, uint64_t nr)
{
	return img->pages + nr * FORMAT_INDEX_RECORD + 16;
}

uint64_t img_find_page_near(const struct usnap_image *img, uint64_t addr, uint64_t hint)
{
	uint64_t a = 0, b = img->nr_pages;

	/* Reads go upwards mostly: the next page is the one after the last. */
	if (hint < b && img_page_addr(img, hint) <= addr) {
		a = hint;
		if (hint + 1 < b && img_page_addr(img, hint + 1) >= addr)
			b = hint + 1;
	}
	while (a < b) {
		uint64_t m = a + (b - a) / 2;

		if (img_page_addr(img, m) < addr)
			a = m + 1;
		else
			b = m;
	}
	return a;
}

uint64_t img_find_page(struct usnap_image *img, uint64_t addr)
{
	return img->last_page = img_find_page_near(img, addr, img->last_page);
}

int img_sort_by_frame(const struct usnap_image *img, uint64_t **ret_first, uint64_t **ret_pages)
{
	uint64_t *first = *ret_first = calloc(img->nr_frames + 2, sizeof(*first));
	uint64_t *pages = *ret_pages = calloc(img->nr_pages + 1, sizeof(*pages));

	if (!first || !pages)
		return -ENOMEM;
	/* Counts two places on become starts one place on, and after the
	 * pages are in place starts where they belong. */
	for (uint64_t i = 0; i < img->nr_pages; i++)
		first[img_page_frame(img, i) + 2]++;
	for (uint64_t i = 2; i < img->nr_frames + 2; i++)
		first[i] += first[i - 1];
	for (uint64_t i = 0; i < img->nr_pages; i++)
		pages[first[img_page_frame(img, i) + 1]++] = i;
	return 0;
}

static bool all_zero(const unsigned char *p, size_t len)
{
	while (len--)
		if (*p++)
			return false;
	return true;
}

static int check_frames(struct usnap_image *img, uint64_t at)
{
	uint32_t ps = img->info.page_size;
	uint64_t own = 0;
	struct img_frame f;

	for (uint64_t i = 0; i < img->nr_frames; i++) {
		const unsigned char *rec = img->frames + i * FORMAT_INDEX_RECORD;

		img_get_frame(img, i, &f);
		if (f.image >= img->nr_images || !f.raw_bytes || f.raw_bytes % ps ||
		    f.raw_bytes > FORMAT_MAX_FRAME_RAW || !f.compressed_bytes ||
		    f.compressed_bytes > ZSTD_COMPRESSBOUND(f.raw_bytes) ||
		    !all_zero(rec + 12, 4) || !all_zero(rec + 24, 8))
			return img_damaged(img, at, "page index: frame %" PRIu64 " is impossible",
					   i);
		if (!f.image && (f.offset > img->commit_header ||
				 f.compressed_bytes > img->commit_header - f.offset))
			return img_damaged(img, at,
					   "page index: frame %" PRIu64 " lies beyond the archive",
					   i);
		/* Or one frame could be decompressed millions of times. */
		own += f.image ? 0 : f.compressed_bytes;
		if (own > img->commit_header)
			return img_damaged(img, at, "page index: its frames share their bytes");
	}
	return 0;
}

static int check_pages(struct usnap_image *img, uint64_t at)
{
	uint32_t ps = img->info.page_size;
	uint64_t next = 0;

	for (uint64_t i = 0; i < img->nr_pages; i++) {
		const unsigned char *rec = img->pages + i * FORMAT_INDEX_RECORD;
		uint64_t addr = le_get64(rec);
		uint32_t frame = le_get32(rec + 8);

		if (addr < next || addr % ps || addr > UINT64_MAX - ps)
			return img_damaged(img, at,
					   "page index: page 0x%" PRIx64 " is out of order", addr);
		if (frame >= img->nr_frames ||
		    le_get16(rec + 12) >=
			    le_get32(img->frames + (uint64_t)frame * FORMAT_INDEX_RECORD + 4) /
				    ps ||
		    !all_zero(rec + 14, 2))
			return img_damaged(img, at,
					   "page index: page 0x%" PRIx64 " lies in no frame", addr);
		next = addr + ps;
	}
	return 0;
}

static int check_images(struct usnap_image *img, uint64_t at)
{
	unsigned char id[FORMAT_ID_BYTES];

	hash_parse(img->id, id);
	if (memcmp(img->images, id, sizeof(id)) != 0)
		return img_damaged(img, at, "page index: it is another image's");
	for (uint64_t i = 0; i < img->nr_images; i++)
		if (!all_zero(img->images + i * FORMAT_INDEX_RECORD + 16, 16))
			return img_damaged(img, at,
					   "page index: image %" PRIu64 " is described wrongly", i);
	for (uint64_t i = 1; i < img->nr_images; i++)
		if (!memcmp(img->images + i * FORMAT_INDEX_RECORD, id, sizeof(id)))
			return img_damaged(img, at, "page index: the image is its own ancestor");
	return 0;
}

static int check_index(struct usnap_image *img, uint64_t at)
{
	const unsigned char *h = img->index;
	uint32_t version = le_get32(h + 8);
	uint64_t records = (img->index_len - FORMAT_INDEX_HEADER) / FORMAT_INDEX_RECORD;
	int r;

	if (memcmp(h, FORMAT_INDEX_MAGIC, 8) != 0)
		return img_damaged(img, at, "page index: it does not begin as one");
	if (version > FORMAT_INDEX_VERSION)
		return img_newer(img, "the page index", version);
	img->nr_images = le_get64(h + 16);
	/* No sum of these can wrap: each is below the number of records. */
	if (version < 1 || le_get32(h + 12) != img->info.page_size || !img->nr_images ||
	    img->nr_images > MIN(records, (uint64_t)FORMAT_MAX_IMAGES) ||
	    le_get64(h + 24) != img->nr_frames || le_get64(h + 32) != img->nr_pages ||
	    img->nr_frames > records || img->nr_pages > records ||
	    img->nr_images + img->nr_frames + img->nr_pages != records || !all_zero(h + 48, 16))
		return img_damaged(img, at, "page index: its counts are not those of the image");
	img->seed = le_get64(h + 40);
	img->images = h + FORMAT_INDEX_HEADER;
	img->frames = img->images + img->nr_images * FORMAT_INDEX_RECORD;
	img->pages = img->frames + img->nr_frames * FORMAT_INDEX_RECORD;
	if ((r = check_images(img, at)) < 0 || (r = check_frames(img, at)) < 0)
		return r;
	return check_pages(img, at);
}

/* What is read from the member passes the hash and zstd piece by piece. */
struct index_input {
	struct usnap_image *img;
	const struct img_member *m;
	uint64_t done;
	XXH3_state_t *hash;
	size_t room;
	unsigned char *buf;
	ZSTD_inBuffer in;
};

static int refill(struct index_input *s)
{
	size_t n = (size_t)MIN(s->m->size - s->done, (uint64_t)s->room);
	int r = img_pread(s->img, s->buf, n, s->m->offset + s->done);

	if (r < 0)
		return r;
	XXH3_128bits_update(s->hash, s->buf, n);
	s->done += n;
	s->in = (ZSTD_inBuffer){.src = s->buf, .size = n};
	return 0;
}

static int decompress(struct index_input *s)
{
	struct usnap_image *img = s->img;
	ZSTD_outBuffer out = {.dst = img->index, .size = img->index_len};
	unsigned char hash[FORMAT_HASH_BYTES];
	size_t left;
	int r;

	for (;;) {
		size_t before_in = s->in.pos, before_out = out.pos;

		left = ZSTD_decompressStream(img->dctx, &out, &s->in);
		if (ZSTD_isError(left))
			return img_damaged(img, s->m->offset, "page index: %s",
					   ZSTD_getErrorName(left));
		if (!left)
			break;
		if (s->in.pos == s->in.size && s->done < s->m->size) {
			if ((r = refill(s)) < 0)
				return r;
		} else if (s->in.pos == before_in && out.pos == before_out) {
			break; /* it wants more than there is */
		}
	}
	if (left || out.pos != img->index_len || s->in.pos != s->in.size || s->done != s->m->size)
		return img_damaged(img, s->m->offset, "page index: its size is wrong");
	hash_canonical(hash, XXH3_128bits_digest(s->hash));
	if (memcmp(hash, s->m->hash, sizeof(hash)) != 0)
		return img_damaged(img, s->m->offset, "page index: it differs from its hash");
	return 0;
}

/* Maps room for the index once its first bytes have said how much it is. */
static int prepare(struct index_input *s)
{
	struct usnap_image *img = s->img;
	unsigned long long size;
	int r;

	if (!img->dctx && !(img->dctx = ZSTD_createDCtx()))
		return img_failed(img, -ENOMEM, FORMAT_INDEX);
	s->room = MIB(1);
	s->buf = malloc(s->room);
	s->hash = XXH3_createState();
	if (!s->buf || !s->hash)
		return img_failed(img, -ENOMEM, FORMAT_INDEX);
	XXH3_128bits_reset(s->hash);
	ZSTD_DCtx_reset(img->dctx, ZSTD_reset_session_and_parameters);
	ZSTD_DCtx_setParameter(img->dctx, ZSTD_d_windowLogMax, 23);
	if ((r = refill(s)) < 0)
		return r;
	size = ZSTD_getFrameContentSize(s->in.src, s->in.size);
	if (size == ZSTD_CONTENTSIZE_ERROR || size == ZSTD_CONTENTSIZE_UNKNOWN ||
	    size < FORMAT_INDEX_HEADER + FORMAT_INDEX_RECORD ||
	    (size - FORMAT_INDEX_HEADER) % FORMAT_INDEX_RECORD ||
	    size / FORMAT_MAX_INDEX_RATIO > s->m->size || size > SIZE_MAX / 2)
		return img_damaged(img, s->m->offset, "page index: an impossible size");
	img->index_len = (size_t)size;
	img->index = mmap(NULL, img->index_len, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (img->index == MAP_FAILED) {
		img->index = NULL;
		return img_failed(img, -errno, FORMAT_INDEX);
	}
	return 0;
}

int img_load_index(struct usnap_image *img)
{
	struct index_input s = {.img = img, .m = img_find_member(img, FORMAT_INDEX)};
	int r;

	if (img->pages)
		return 0;
	if (!s.m)
		return img_damaged(img, img->commit_content, "there is no '%s'", FORMAT_INDEX);
	if ((r = img_check_header(img, s.m)) == 0 && (r = prepare(&s)) == 0 &&
	    (r = decompress(&s)) == 0)
		r = check_index(img, s.m->offset);
	free(s.buf);
	XXH3_freeState(s.hash);
	if (r < 0 && img->index) {
		munmap(img->index, img->index_len);
		img->index = NULL;
		img->images = img->frames = img->pages = NULL;
	}
	return r;
}
