#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "common/util.h"
#include "image/image.h"
#include "image/ustar.h"

/* The last entry of a name is the one that commit.json must mean, so that
 * tar and we read the same. */
struct seen {
	uint64_t *offset; /* per member of commit.json; 0: not met */
};

static int add_segment(struct usnap_image *img, struct img_scan *s, uint64_t offset, uint64_t size,
		       size_t *room)
{
	if (s->nr_segments == *room) {
		size_t n = *room ? 2 * *room : 64;
		struct img_extent *v = reallocarray(s->segments, n, sizeof(*v));

		if (!v)
			return img_failed(img, -ENOMEM, NULL);
		s->segments = v;
		*room = n;
	}
	s->segments[s->nr_segments++] = (struct img_extent){.offset = offset, .size = size};
	return 0;
}

/* A pax header gives the next entry a size that its own field cannot hold. */
static int read_pax(struct usnap_image *img, const struct ustar_entry *e, uint64_t content,
		    uint64_t *ret_size)
{
	char text[4096];
	int r;

	if (e->size > sizeof(text))
		return img_damaged(img, content, "a pax header larger than any needs to be");
	if ((r = img_pread(img, text, (size_t)e->size, content)) < 0)
		return r;
	if (ustar_pax_size(text, (size_t)e->size, ret_size) < 0)
		return img_damaged(img, content, "a malformed pax header");
	return 0;
}

static int meet(struct usnap_image *img, struct img_scan *s, struct seen *seen,
		const struct ustar_entry *e, uint64_t content, uint64_t size, size_t *room)
{
	const struct img_member *m;

	if (!strncmp(e->name, FORMAT_PAGES_DIR, strlen(FORMAT_PAGES_DIR)))
		return add_segment(img, s, content, size, room);
	m = img_find_member(img, e->name);
	if (m) {
		seen->offset[m - img->members] = content;
		if (m->offset == content && m->size != size)
			return img_damaged(img, content - FORMAT_TAR_BLOCK,
					   "the tar header and '%s' differ about '%s'",
					   FORMAT_COMMIT, e->name);
	}
	return 0;
}

/* Fills the last block of an entry up; zero, or not what was written. */
static int check_padding(struct usnap_image *img, uint64_t end)
{
	unsigned char block[FORMAT_TAR_BLOCK];
	size_t len = (size_t)(ustar_padded(end) - end);
	int r = img_pread(img, block, len, end);

	for (size_t i = 0; i < len && r == 0; i++)
		if (block[i])
			return img_damaged(img, end + i, "a byte of padding that is not zero");
	return r;
}

static int scan(struct usnap_image *img, struct img_scan *s, struct seen *seen)
{
	unsigned char block[FORMAT_TAR_BLOCK];
	uint64_t at = 0, pax_size = 0;
	size_t room = 0;
	int r;

	while (at < img->commit_header) {
		struct ustar_entry e;
		const char *what;
		uint64_t content = at + FORMAT_TAR_BLOCK, size;

		if ((r = img_pread(img, block, sizeof(block), at)) < 0)
			return r;
		if (ustar_parse(block, &e, &what) < 0)
			return img_damaged(img, at, "%s", what);
		size = pax_size && e.type == '0' ? pax_size : e.size;
		if (size > img->commit_header || content > img->commit_header ||
		    ustar_padded(size) > img->commit_header - content)
			return img_damaged(img, at, "an entry that is longer than the archive");
		if (e.type == 'x')
			r = read_pax(img, &e, content, &pax_size);
		else
			r = meet(img, s, seen, &e, content, size, &room);
		if (r < 0 || (r = check_padding(img, content + size)) < 0)
			return r;
		if (e.type == '0')
			pax_size = 0;
		at = content + ustar_padded(size);
	}
	if (at != img->commit_header)
		return img_damaged(img, at, "the archive does not lead to '%s'", FORMAT_COMMIT);
	return 0;
}

int img_scan(struct usnap_image *img, struct img_scan *ret)
{
	struct seen seen = {.offset = calloc(img->nr_members + 1, sizeof(*seen.offset))};
	int r;

	if (!seen.offset)
		return img_failed(img, -ENOMEM, NULL);
	r = scan(img, ret, &seen);
	for (size_t i = 0; i < img->nr_members && r == 0; i++)
		if (seen.offset[i] != img->members[i].offset)
			r = img_damaged(img, img->members[i].offset - FORMAT_TAR_BLOCK,
					"'%s' is not where '%s' says", img->members[i].name,
					FORMAT_COMMIT);
	free(seen.offset);
	return r;
}

void img_scan_free(struct img_scan *s)
{
	free(s->segments);
	memset(s, 0, sizeof(*s));
}
