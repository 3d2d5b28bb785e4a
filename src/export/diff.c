#include "export/diff.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"

struct side {
	struct usnap_image *img;
	uint64_t page; /* the next one */
	unsigned char zero[FORMAT_HASH_BYTES]; /* hash of a page of zeros */
	unsigned char *buf;
};

struct diff {
	struct side a, b;
	uint32_t page_size;
	bool by_hash;
	bool have_next;
	struct diff_run next; /* found, but no part of the last run */
};

static int prepare(struct side *s, struct usnap_image *img, struct usnap_err *err)
{
	size_t n;
	int r = usnap_image_get_nr_regions(img, &n);

	if (r == 0)
		r = img_load_index(img);
	if (r < 0)
		return usnap_fail(err, r, "%s", usnap_image_error(img));
	s->img = img;
	s->buf = calloc(1, img->info.page_size);
	if (!s->buf)
		return usnap_fail_errno(err, -ENOMEM, "cannot compare '%s'", img->name);
	hash_page(s->zero, img->seed, s->buf, img->info.page_size);
	return 0;
}

int diff_new(struct diff **ret, struct usnap_image *a, struct usnap_image *b, struct usnap_err *err)
{
	struct diff *d = calloc(1, sizeof(*d));
	int r = d ? 0 : usnap_fail_errno(err, -ENOMEM, "cannot compare images");

	if (r == 0)
		r = prepare(&d->a, a, err);
	if (r == 0)
		r = prepare(&d->b, b, err);
	if (r == 0 && a->info.page_size != b->info.page_size)
		r = usnap_fail(err, -EINVAL, "cannot compare '%s' with '%s': pages of other sizes",
			       a->name, b->name);
	if (r < 0) {
		diff_free(d);
		return r;
	}
	d->page_size = a->info.page_size;
	d->by_hash = a->seed == b->seed;
	*ret = d;
	return 0;
}

void diff_free(struct diff *d)
{
	if (!d)
		return;
	free(d->a.buf);
	free(d->b.buf);
	free(d);
}

/* Address of the next stored page, or UINT64_MAX. */
static uint64_t next_address(const struct side *s)
{
	uint64_t addr = s->page < s->img->nr_pages ? img_page_addr(s->img, s->page) : UINT64_MAX;

	return addr < FORMAT_CONTENT_START ? addr : UINT64_MAX;
}

static int same_bytes(struct diff *d, uint64_t addr, struct usnap_err *err)
{
	struct side *sides[] = {&d->a, &d->b};

	for (int i = 0; i < 2; i++) {
		int r = usnap_image_read(sides[i]->img, addr, sides[i]->buf, d->page_size);

		if (r < 0)
			return usnap_fail(err, r, "%s", usnap_image_error(sides[i]->img));
	}
	return !memcmp(d->a.buf, d->b.buf, d->page_size);
}

/* Only one side stores the page: what the other one has there. */
static int compare_with_absent(const struct side *has, struct side *lacks, uint64_t addr,
			       enum diff_kind when_unmapped, bool *ret_same, enum diff_kind *ret,
			       struct usnap_err *err)
{
	size_t nr;
	int r = usnap_image_find_region(lacks->img, addr, &nr);

	if (r < 0 && r != -ENOENT)
		return usnap_fail(err, r, "%s", usnap_image_error(lacks->img));
	*ret = r == 1 ? DIFF_CHANGED : when_unmapped;
	*ret_same = r == 1 && lacks->img->regions[nr].content == USNAP_CONTENT_IMAGE &&
		    !memcmp(img_page_hash(has->img, has->page), has->zero, FORMAT_HASH_BYTES);
	return 0;
}

/* The next page that differs. 1, or 0 at the end. */
static int next_page(struct diff *d, struct diff_run *ret, struct usnap_err *err)
{
	for (;;) {
		uint64_t a = next_address(&d->a), b = next_address(&d->b);
		bool same = false;
		int r = 0;

		if (a == UINT64_MAX && b == UINT64_MAX)
			return 0;
		*ret = (struct diff_run){.start = MIN(a, b), .len = d->page_size};
		if (a == b && d->by_hash)
			same = !memcmp(img_page_hash(d->a.img, d->a.page),
				       img_page_hash(d->b.img, d->b.page), FORMAT_HASH_BYTES);
		else if (a == b)
			same = (r = same_bytes(d, a, err)) == 1;
		else if (a < b)
			r = compare_with_absent(&d->a, &d->b, a, DIFF_GONE, &same, &ret->kind, err);
		else
			r = compare_with_absent(&d->b, &d->a, b, DIFF_NEW, &same, &ret->kind, err);
		if (r < 0)
			return r;
		d->a.page += a <= b;
		d->b.page += b <= a;
		if (!same)
			return 1;
	}
}

int diff_next(struct diff *d, struct diff_run *ret, struct usnap_err *err)
{
	int r = d->have_next ? 1 : next_page(d, &d->next, err);

	if (r <= 0)
		return r;
	*ret = d->next;
	while ((r = next_page(d, &d->next, err)) == 1 && d->next.kind == ret->kind &&
	       d->next.start == ret->start + ret->len)
		ret->len += d->page_size;
	if (r < 0)
		return r;
	d->have_next = r == 1;
	return 1;
}
