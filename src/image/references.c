#include "image/references.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/le.h"
#include "image/image.h"

static bool find(const struct usnap_image *parent, uint64_t addr, uint64_t *hint)
{
	uint64_t nr = img_find_page_near(parent, addr, *hint);

	*hint = nr;
	return nr < parent->nr_pages && img_page_addr(parent, nr) == addr;
}

bool references_match(const struct usnap_image *parent, uint64_t addr, const struct page_hash *h,
		      uint64_t *hint)
{
	return find(parent, addr, hint) &&
	       !memcmp(img_page_hash(parent, *hint), h->b, sizeof(h->b));
}

void references_clear(struct references *rf)
{
	free(rf->frames);
	free(rf->images);
	rf->frames = rf->images = NULL;
	rf->nr_frames = rf->nr_images = 0;
}

int references_begin(struct references *rf)
{
	references_clear(rf);
	if (!rf->parent)
		return 0;
	rf->frames = calloc(rf->parent->nr_frames + 1, sizeof(*rf->frames));
	rf->images = calloc(rf->parent->nr_images + 1, sizeof(*rf->images));
	return rf->frames && rf->images ? 0 : -ENOMEM;
}

int references_need(struct references *rf, uint64_t addr, uint64_t *hint)
{
	struct img_frame f;

	if (!rf->parent || !find(rf->parent, addr, hint))
		return -EINVAL;
	uint32_t frame = img_page_frame(rf->parent, *hint);

	rf->frames[frame] = 1;
	img_get_frame(rf->parent, frame, &f);
	rf->images[f.image] = 1;
	return 0;
}

int references_number(struct references *rf, uint64_t first_frame, struct usnap_err *err)
{
	if (!rf->parent)
		return 0;
	for (uint64_t i = 0; i < rf->parent->nr_images; i++)
		if (rf->images[i])
			rf->images[i] = (uint32_t)(++rf->nr_images + 1);
	for (uint64_t i = 0; i < rf->parent->nr_frames; i++) {
		if (!rf->frames[i])
			continue;
		if (first_frame + rf->nr_frames >= UINT32_MAX - 1)
			return usnap_fail_errno(err, -EOVERFLOW, "cannot write the page index");
		rf->frames[i] = (uint32_t)(first_frame + rf->nr_frames++ + 1);
	}
	return 0;
}

bool references_image_record(const struct references *rf, uint64_t nr, unsigned char *ret)
{
	if (!rf->images[nr])
		return false;
	memcpy(ret, rf->parent->images + nr * FORMAT_INDEX_RECORD, FORMAT_ID_BYTES);
	return true;
}

bool references_frame_record(const struct references *rf, uint64_t nr, unsigned char *ret)
{
	struct img_frame f;

	if (!rf->frames[nr])
		return false;
	img_get_frame(rf->parent, nr, &f);
	le_put32(ret, rf->images[f.image] - 1);
	le_put32(ret + 4, f.raw_bytes);
	le_put32(ret + 8, f.compressed_bytes);
	le_put64(ret + 16, f.offset);
	return true;
}

void references_page_record(const struct references *rf, uint64_t addr, uint64_t *hint,
			    unsigned char *ret)
{
	find(rf->parent, addr, hint);
	le_put64(ret, addr);
	le_put32(ret + 8, rf->frames[img_page_frame(rf->parent, *hint)] - 1);
	le_put16(ret + 12, (uint16_t)img_page_slot(rf->parent, *hint));
	memcpy(ret + 16, img_page_hash(rf->parent, *hint), FORMAT_HASH_BYTES);
}
