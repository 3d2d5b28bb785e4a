#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"

_Static_assert(FORMAT_CONTENT_START == USNAP_UNLINKED_START, "the public name of it");

const char *img_decode(ZSTD_DCtx *dctx, const struct img_frame *f, const void *compressed,
		       void *raw)
{
	unsigned long long size = ZSTD_getFrameContentSize(compressed, f->compressed_bytes);
	size_t n;

	if (size != f->raw_bytes)
		return "the frame's size is not what the page index says";
	if (ZSTD_findFrameCompressedSize(compressed, f->compressed_bytes) != f->compressed_bytes)
		return "the frame does not end where the page index says";
	n = ZSTD_decompressDCtx(dctx, raw, f->raw_bytes, compressed, f->compressed_bytes);
	if (ZSTD_isError(n))
		return ZSTD_getErrorName(n);
	return n == f->raw_bytes ? NULL : "the frame is too short";
}

/* Where the next frame of len bytes goes: the entry that was used least
 * recently, after which as many others go as it takes to stay within bounds. */
static struct img_cached *make_room(struct usnap_image *img, uint32_t len)
{
	struct img_cached *free_entry = NULL;

	for (;;) {
		struct img_cached *oldest = NULL;

		for (size_t i = 0; i < IMG_CACHE_FRAMES; i++) {
			struct img_cached *c = &img->cache[i];

			if (!c->used)
				free_entry = c;
			else if (!oldest || c->used < oldest->used)
				oldest = c;
		}
		if (!oldest || (free_entry && img->cache_bytes + len <= IMG_CACHE_BYTES))
			break;
		img->cache_bytes -= oldest->len;
		free(oldest->data);
		*oldest = (struct img_cached){0};
	}
	return free_entry;
}

/* Damage of this file is at the frame, that of another at what refers to it. */
static int note_offset(struct usnap_image *img, const struct img_frame *f, int r)
{
	if (r == -EBADMSG)
		img->err_offset = f->image ? img_find_member(img, FORMAT_INDEX)->offset : f->offset;
	return r;
}

static int fetch(struct usnap_image *img, uint64_t nr, const struct img_frame *f,
		 unsigned char *raw)
{
	const char *what;
	int r;

	if (!img->dctx && !(img->dctx = ZSTD_createDCtx()))
		return img_failed(img, -ENOMEM, "a frame");
	if (!img->compressed) {
		img->compressed = malloc(ZSTD_COMPRESSBOUND(FORMAT_MAX_FRAME_RAW));
		if (!img->compressed)
			return img_failed(img, -ENOMEM, "a frame");
	}
	r = img_pread_frame(img, f, img->compressed, &img->err);
	if (r < 0)
		return note_offset(img, f, r);
	what = img_decode(img->dctx, f, img->compressed, raw);
	if (what)
		return note_offset(
			img, f,
			img_frame_damaged(img, f, &img->err, "frame %" PRIu64 ": %s", nr, what));
	return 0;
}

static int get_frame(struct usnap_image *img, uint64_t nr, struct img_frame *f,
		     const unsigned char **ret)
{
	struct img_cached *c;
	unsigned char *data;
	int r;

	img_get_frame(img, nr, f);
	for (size_t i = 0; i < IMG_CACHE_FRAMES; i++) {
		c = &img->cache[i];
		if (c->used && c->frame == nr) {
			c->used = ++img->clock;
			*ret = c->data;
			return 0;
		}
	}
	c = make_room(img, f->raw_bytes);
	data = malloc(f->raw_bytes);
	if (!data)
		return img_failed(img, -ENOMEM, "a frame");
	if ((r = fetch(img, nr, f, data)) < 0) {
		free(data);
		return r;
	}
	*c = (struct img_cached){
		.frame = nr, .used = ++img->clock, .data = data, .len = f->raw_bytes};
	img->cache_bytes += f->raw_bytes;
	*ret = data;
	return 0;
}

/* The bytes of stored page nr, compared with their hash. */
static int get_page(struct usnap_image *img, uint64_t nr, const unsigned char **ret)
{
	uint32_t ps = img->info.page_size;
	unsigned char hash[FORMAT_HASH_BYTES];
	const unsigned char *raw = NULL;
	struct img_frame f;
	int r = get_frame(img, img_page_frame(img, nr), &f, &raw);

	if (r < 0)
		return r;
	raw += (size_t)img_page_slot(img, nr) * ps;
	hash_page(hash, img->seed, raw, ps);
	if (memcmp(hash, img_page_hash(img, nr), sizeof(hash)) != 0)
		return note_offset(img, &f,
				   img_frame_damaged(img, &f, &img->err,
						     "page 0x%" PRIx64 " differs from its hash",
						     img_page_addr(img, nr)));
	*ret = raw;
	return 0;
}

static bool maps_file(const struct usnap_region *g, const struct img_content *c)
{
	return c->inode && g->inode == c->inode && g->dev_major == c->dev_major &&
	       g->dev_minor == c->dev_minor;
}

/* Stored page at addr, or *ret = NULL for zeros. */
static int stored_page(struct usnap_image *img, uint64_t addr, const unsigned char **ret)
{
	uint64_t nr = img_find_page(img, addr);

	*ret = NULL;
	return nr < img->nr_pages && img_page_addr(img, nr) == addr ? get_page(img, nr, ret) : 0;
}

/* Page at offset of the unlinked file that region g maps: under a shared mapping of it, or in its
 * content. Returns 1, or 0 when the image does not have it. */
static int page_of_unlinked(struct usnap_image *img, const struct usnap_region *g, uint64_t offset,
			    const unsigned char **ret)
{
	const struct img_content *c = NULL;
	int r = g->inode ? img_load_contents(img) : 0;

	for (size_t i = 0; r == 0 && i < img->nr_contents && !c; i++)
		if (maps_file(g, &img->contents[i]))
			c = &img->contents[i];
	if (r < 0 || !c || offset >= c->size || offset & (img->info.page_size - 1))
		return r;
	for (size_t i = 0; i < img->nr_regions; i++) {
		const struct usnap_region *s = &img->regions[i];

		if (s->shared && s->content == USNAP_CONTENT_IMAGE && maps_file(s, c) &&
		    offset - s->offset < s->end - s->start) {
			r = stored_page(img, s->start + (offset - s->offset), ret);
			return r < 0 ? r : 1;
		}
	}
	r = stored_page(img, c->addr + offset, ret);
	return r < 0 ? r : 1;
}

/* Page at addr (aligned), which region g holds: its bytes, or *ret = NULL
 * for zeros. */
static int page_in_region(struct usnap_image *img, const struct usnap_region *g, uint64_t addr,
			  const unsigned char **ret)
{
	uint64_t nr = img_find_page(img, addr);
	int r;

	*ret = NULL;
	if (nr < img->nr_pages && img_page_addr(img, nr) == addr)
		return get_page(img, nr, ret);
	switch (g->content) {
	case USNAP_CONTENT_IMAGE:
		return 0;
	case USNAP_CONTENT_FILE:
		if ((r = page_of_unlinked(img, g, g->offset + (addr - g->start), ret)) != 0)
			return MIN(r, 0);
		return usnap_fail(&img->err, -ENODATA,
				  "cannot read address 0x%" PRIx64 ": it was as in '%s' at offset "
				  "%" PRIu64 ", which the image does not hold",
				  addr, g->path, g->offset + (addr - g->start));
	case USNAP_CONTENT_NONE:
		break;
	}
	return usnap_fail(&img->err, -ENODATA,
			  "cannot read address 0x%" PRIx64 ": no image can hold %s%s%s", addr,
			  g->kind, *g->path ? " memory, " : " memory", g->path);
}

/* One pass over [addr, addr + len); buf NULL: only whether it is mapped. */
static int walk(struct usnap_image *img, uint64_t addr, unsigned char *buf, size_t len)
{
	uint32_t ps = img->info.page_size;
	struct usnap_region g;
	size_t nr;
	int r;

	while (len) {
		const unsigned char *page;
		size_t n;

		r = usnap_image_find_region(img, addr, &nr);
		if (r < 0 && r != -ENOENT)
			return r;
		if (r != 1) {
			img_begin(img);
			return usnap_fail(&img->err, -EFAULT,
					  "cannot read address 0x%" PRIx64
					  ": nothing was mapped there",
					  addr);
		}
		g = img->regions[nr];
		if (!buf) {
			n = (size_t)MIN((uint64_t)len, g.end - addr);
			addr += n;
			len -= n;
			continue;
		}
		while (len && addr < g.end) {
			uint64_t base = ALIGN_DOWN(addr, (uint64_t)ps);

			n = MIN(len, (size_t)(base + ps - addr));
			if ((r = page_in_region(img, &g, base, &page)) < 0)
				return r;
			if (page)
				memcpy(buf, page + (addr - base), n);
			else
				memset(buf, 0, n);
			buf += n;
			addr += n;
			len -= n;
		}
	}
	return 0;
}

int img_read_content(struct usnap_image *img, uint64_t addr, void *buf, size_t len)
{
	const struct img_content *c = NULL;
	unsigned char *to = buf;
	int r = img_require_open(img);

	if (r < 0 || (r = img_load_contents(img)) < 0 || (r = img_load_index(img)) < 0)
		return r;
	for (size_t i = 0; i < img->nr_contents && !c; i++)
		if (addr - img->contents[i].addr < img->contents[i].size)
			c = &img->contents[i];
	if (!c || len > c->size - (addr - c->addr))
		return usnap_fail(&img->err, -EFAULT,
				  "cannot read content at 0x%" PRIx64
				  ": no unlinked file has it there",
				  addr);
	while (len) {
		uint64_t base = ALIGN_DOWN(addr, (uint64_t)img->info.page_size);
		size_t n = MIN(len, (size_t)(base + img->info.page_size - addr));
		uint64_t nr = img_find_page(img, base);
		const unsigned char *page = NULL;

		if (nr < img->nr_pages && img_page_addr(img, nr) == base &&
		    (r = get_page(img, nr, &page)) < 0)
			return r;
		if (page)
			memcpy(to, page + (addr - base), n);
		else
			memset(to, 0, n);
		to += n;
		addr += n;
		len -= n;
	}
	return 0;
}

int usnap_image_read(struct usnap_image *img, uint64_t addr, void *buf, size_t len)
{
	int r = img_require_open(img);

	if (r < 0)
		return r;
	if (len > UINT64_MAX - addr)
		return usnap_fail(&img->err, -EFAULT,
				  "cannot read address 0x%" PRIx64 ": the range has no end", addr);
	if (addr >= FORMAT_CONTENT_START && addr < FORMAT_CONTENT_END)
		return img_read_content(img, addr, buf, len);
	/* All mapped before anything is decoded: a long range with a hole at
	 * its end is refused at once. */
	if ((r = walk(img, addr, NULL, len)) < 0 || (r = img_load_index(img)) < 0)
		return r;
	return walk(img, addr, buf, len);
}

/* The next run that lies in [addr, limit). */
static int next_run(struct usnap_image *img, uint64_t addr, uint64_t limit, uint64_t *ret_start,
		    uint64_t *ret_len)
{
	uint32_t ps = img->info.page_size;
	uint64_t nr = img_find_page(img, ALIGN_DOWN(addr, (uint64_t)ps)), start, end;

	if (nr == img->nr_pages || (start = img_page_addr(img, nr)) >= limit)
		return 0;
	end = start + ps;
	for (nr++; nr < img->nr_pages && end < limit && img_page_addr(img, nr) == end; nr++)
		end += ps;
	*ret_start = MAX(start, addr);
	*ret_len = end - *ret_start;
	return 1;
}

int usnap_image_next_run(struct usnap_image *img, uint64_t addr, uint64_t *ret_start,
			 uint64_t *ret_len)
{
	int r = img_require_open(img);

	if (r < 0 || (r = img_load_index(img)) < 0)
		return r;
	return next_run(img, addr, FORMAT_CONTENT_START, ret_start, ret_len);
}

int img_next_content_run(struct usnap_image *img, uint64_t addr, uint64_t *ret_start,
			 uint64_t *ret_len)
{
	int r = img_require_open(img);

	if (r < 0 || (r = img_load_index(img)) < 0)
		return r;
	return next_run(img, MAX(addr, FORMAT_CONTENT_START), FORMAT_CONTENT_END, ret_start,
			ret_len);
}

int usnap_image_page_hash(struct usnap_image *img, uint64_t addr, unsigned char ret[16])
{
	uint64_t nr;
	int r = img_require_open(img);

	if (r < 0 || (r = img_load_index(img)) < 0)
		return r;
	addr = ALIGN_DOWN(addr, (uint64_t)img->info.page_size);
	nr = img_find_page(img, addr);
	if (nr == img->nr_pages || img_page_addr(img, nr) != addr)
		return 0;
	memcpy(ret, img_page_hash(img, nr), FORMAT_HASH_BYTES);
	return 1;
}
