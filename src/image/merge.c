#include "image/merge.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/random.h>

#include "common/util.h"
#include "image/append.h"
#include "image/hash.h"
#include "image/image.h"

enum {
	MAX_SLOTS = FORMAT_MAX_FRAME_RAW / FORMAT_MIN_PAGE,
	NEW_FRAME_BYTES = 256 << 10 /* of what is compressed anew */
};

/* A frame on its way to the result: pages, and where they go. */
struct batch {
	unsigned char *raw;
	struct page_hash *hashes;
	uint32_t nr_pages;
	struct page_run *runs;
	size_t nr_runs, room_runs;
};

struct merge {
	struct usnap_image *img;
	const struct merge_options *o;
	struct image_writer *w;
	uint64_t *first, *by_frame; /* img_sort_by_frame() */
	ZSTD_DCtx *dctx;
	ZSTD_CCtx *cctx;
	unsigned char *compressed, *raw, *out;
	struct batch whole; /* a frame that is taken over as it is; its bytes are in compressed */
	struct batch rest; /* what is left of others, until it is a frame */
	struct batch referred; /* pages that the parent has; there is no frame */
	bool *in_parent; /* by page */
	uint64_t parent_frame; /* of the parent, + 1: is in raw, if it could be read */
	bool parent_frame_good;
	uint64_t done, last_progress;
};

static struct page_run *new_run(struct batch *b)
{
	if (b->nr_runs == b->room_runs) {
		size_t room = b->room_runs ? 2 * b->room_runs : MAX_SLOTS;
		struct page_run *runs = realloc(b->runs, room * sizeof(*runs));

		if (!runs)
			return NULL;
		b->runs = runs;
		b->room_runs = room;
	}
	return &b->runs[b->nr_runs++];
}

static int add_run(struct batch *b, uint64_t addr, uint32_t slot, uint32_t ps)
{
	struct page_run *r = b->nr_runs ? &b->runs[b->nr_runs - 1] : NULL;

	if (r && r->addr + (uint64_t)r->nr_pages * ps == addr && r->slot + r->nr_pages == slot) {
		r->nr_pages++;
		return 0;
	}
	if (!(r = new_run(b)))
		return -ENOMEM;
	*r = (struct page_run){
		.addr = addr, .frame = PAGE_NEW_FRAME, .slot = (uint16_t)slot, .nr_pages = 1};
	return 0;
}

static int append(struct merge *m, struct batch *b, const void *data, size_t len)
{
	const struct encoded e = {.data = data,
				  .len = len,
				  .nr_pages = b->nr_pages,
				  .hashes = b->hashes,
				  .runs = b->runs,
				  .nr_runs = b->nr_runs};
	int r = writer_append(m->w, &e);

	b->nr_pages = 0;
	b->nr_runs = 0;
	return r;
}

/* The parent has the page at addr. */
static int refer(struct merge *m, uint64_t addr)
{
	struct batch *b = &m->referred;
	struct page_run *r = b->nr_runs ? &b->runs[b->nr_runs - 1] : NULL;
	int e = 0;

	if (r && r->nr_pages < UINT16_MAX &&
	    r->addr + (uint64_t)r->nr_pages * m->img->info.page_size == addr) {
		r->nr_pages++;
		return 0;
	}
	if (b->nr_runs == MAX_SLOTS)
		e = append(m, b, NULL, 0);
	if (e == 0 && !(r = new_run(b)))
		e = -ENOMEM;
	if (e == 0)
		*r = (struct page_run){.addr = addr, .frame = PAGE_IN_PARENT, .nr_pages = 1};
	return e;
}

/* The parent's page with that hash can be read; or the image has it from there anyway. What the image
 * has elsewhere is not given up for what nobody has looked at. */
static bool parent_page_good(struct merge *m, uint64_t page, uint64_t in_parent)
{
	struct usnap_image *img = m->img, *parent = m->o->parent;
	uint64_t nr = img_page_frame(parent, in_parent);
	unsigned char hash[FORMAT_HASH_BYTES];
	const size_t ps = img->info.page_size;
	struct img_frame mine, its;

	img_get_frame(img, img_page_frame(img, page), &mine);
	img_get_frame(parent, nr, &its);
	if (mine.offset == its.offset &&
	    img_page_slot(img, page) == img_page_slot(parent, in_parent) &&
	    !memcmp(img->images + mine.image * FORMAT_INDEX_RECORD,
		    parent->images + its.image * FORMAT_INDEX_RECORD, FORMAT_ID_BYTES))
		return true;
	if (m->parent_frame != nr + 1)
		m->parent_frame_good = img_pread_frame(parent, &its, m->compressed, NULL) == 0 &&
				       !img_decode(m->dctx, &its, m->compressed, m->raw);
	m->parent_frame = nr + 1;
	if (!m->parent_frame_good)
		return false;
	hash_page(hash, img->seed, m->raw + img_page_slot(parent, in_parent) * ps, ps);
	return !memcmp(hash, img_page_hash(img, page), sizeof(hash));
}

/* What need not be copied. */
static int refer_to_parent(struct merge *m)
{
	const struct usnap_image *parent = writer_parent(m->w);
	uint64_t hint = 0;
	int r = 0;

	if (!(m->in_parent = calloc(m->img->nr_pages + 1, sizeof(*m->in_parent))))
		return -ENOMEM;
	for (uint64_t i = 0; parent && i < m->img->nr_pages && r == 0; i++) {
		struct page_hash h;

		if (m->o->cancel && *m->o->cancel)
			return -ECANCELED;
		memcpy(h.b, img_page_hash(m->img, i), sizeof(h.b));
		m->in_parent[i] = references_match(parent, img_page_addr(m->img, i), &h, &hint) &&
				  parent_page_good(m, i, hint);
		if (m->in_parent[i])
			r = refer(m, img_page_addr(m->img, i));
	}
	return r == 0 && m->referred.nr_runs ? append(m, &m->referred, NULL, 0) : r;
}

static int flush_rest(struct merge *m, struct usnap_err *err)
{
	size_t n;

	if (!m->rest.nr_pages)
		return 0;
	n = ZSTD_compress2(m->cctx, m->out, ZSTD_COMPRESSBOUND(NEW_FRAME_BYTES), m->rest.raw,
			   (size_t)m->rest.nr_pages * m->img->info.page_size);
	if (ZSTD_isError(n))
		return usnap_fail(err, -EIO, "cannot compress pages: %s", ZSTD_getErrorName(n));
	return append(m, &m->rest, m->out, n);
}

static int read_frame(struct merge *m, uint64_t nr, struct img_frame *f, struct usnap_err *err)
{
	const char *what;
	int r;

	img_get_frame(m->img, nr, f);
	if ((r = img_pread_frame(m->img, f, m->compressed, err)) < 0)
		return r;
	what = img_decode(m->dctx, f, m->compressed, m->raw);
	return what ? img_frame_damaged(m->img, f, err, "frame %" PRIu64 ": %s", nr, what) : 0;
}

static int check_page(struct merge *m, uint64_t page, const struct img_frame *f,
		      struct usnap_err *err)
{
	const size_t ps = m->img->info.page_size;
	unsigned char hash[FORMAT_HASH_BYTES];

	hash_page(hash, m->img->seed, m->raw + img_page_slot(m->img, page) * ps, ps);
	if (!memcmp(hash, img_page_hash(m->img, page), sizeof(hash)))
		return 0;
	return img_frame_damaged(m->img, f, err, "page 0x%" PRIx64 " differs from its hash",
				 img_page_addr(m->img, page));
}

/* Every page of the frame is used: its bytes go over as they are. */
static int take_whole(struct merge *m, uint64_t nr, const struct img_frame *f)
{
	const struct usnap_image *img = m->img;
	int r = 0;

	m->whole.nr_pages = f->raw_bytes / img->info.page_size;
	for (uint64_t i = m->first[nr]; i < m->first[nr + 1] && r == 0; i++) {
		uint64_t page = m->by_frame[i];
		uint32_t slot = img_page_slot(img, page);

		memcpy(m->whole.hashes[slot].b, img_page_hash(img, page), FORMAT_HASH_BYTES);
		r = add_run(&m->whole, img_page_addr(img, page), slot, img->info.page_size);
	}
	return r < 0 ? r : append(m, &m->whole, m->compressed, f->compressed_bytes);
}

static int take_parts(struct merge *m, uint64_t nr, struct usnap_err *err)
{
	const struct usnap_image *img = m->img;
	const size_t ps = img->info.page_size;
	uint16_t moved[MAX_SLOTS] = {0}; /* slot in rest + 1, by slot here */
	int r = 0;

	for (uint64_t i = m->first[nr]; i < m->first[nr + 1] && r == 0; i++) {
		uint64_t page = m->by_frame[i];
		uint32_t slot = img_page_slot(img, page);

		if (m->in_parent[page])
			continue;
		if (!moved[slot]) {
			if ((m->rest.nr_pages + 1) * ps > NEW_FRAME_BYTES) {
				if ((r = flush_rest(m, err)) < 0)
					return r;
				/* What is in that frame cannot be added to. */
				memset(moved, 0, sizeof(moved));
			}
			memcpy(m->rest.raw + m->rest.nr_pages * ps, m->raw + slot * ps, ps);
			memcpy(m->rest.hashes[m->rest.nr_pages].b, img_page_hash(img, page),
			       FORMAT_HASH_BYTES);
			moved[slot] = (uint16_t)++m->rest.nr_pages;
		}
		r = add_run(&m->rest, img_page_addr(img, page), moved[slot] - 1u, (uint32_t)ps);
	}
	return r;
}

static int take_frame(struct merge *m, uint64_t nr, struct usnap_err *err)
{
	const struct usnap_image *img = m->img;
	bool used[MAX_SLOTS] = {false};
	uint64_t nr_pages = m->first[nr + 1] - m->first[nr], nr_referred = 0;
	uint32_t nr_used = 0;
	struct img_frame f;
	int r;

	m->done += nr_pages * img->info.page_size;
	for (uint64_t i = m->first[nr]; i < m->first[nr + 1]; i++)
		nr_referred += m->in_parent[m->by_frame[i]];
	if (nr_referred == nr_pages)
		return 0;
	r = read_frame(m, nr, &f, err);
	for (uint64_t i = m->first[nr]; i < m->first[nr + 1] && r == 0; i++) {
		if (m->in_parent[m->by_frame[i]])
			continue;
		uint32_t slot = img_page_slot(img, m->by_frame[i]);

		r = check_page(m, m->by_frame[i], &f, err);
		nr_used += !used[slot];
		used[slot] = true;
	}
	if (r < 0)
		return r;
	return !nr_referred && nr_used == f.raw_bytes / img->info.page_size
		       ? take_whole(m, nr, &f)
		       : take_parts(m, nr, err);
}

static int take_frames(struct merge *m, struct usnap_err *err)
{
	uint64_t total = m->img->nr_pages * m->img->info.page_size;
	int r = refer_to_parent(m);

	for (uint64_t nr = 0; nr < m->img->nr_frames && r == 0; nr++) {
		if (m->o->cancel && *m->o->cancel)
			return usnap_fail(err, -ECANCELED, "cannot merge '%s': interrupted",
					  m->img->name);
		if (m->first[nr] < m->first[nr + 1])
			r = take_frame(m, nr, err);
		if (m->o->progress && now_ns() - m->last_progress > 100000000u) {
			m->last_progress = now_ns();
			m->o->progress(m->o->progress_arg, m->done, total);
		}
	}
	return r < 0 ? r : flush_rest(m, err);
}

/* ---- what is not memory ------------------------------------------------------------------------- */

void merge_get_version(const struct usnap_image *img, char ret_id[FORMAT_HASH_HEX + 1],
		       uint64_t *ret_times)
{
	const json_t *j = img->snapshot, *from = json_object_get(j, "merged_from");
	const char *id = json_string_value(json_object_get(j, "version_of"));
	json_int_t times = json_integer_value(json_object_get(j, "times_merged"));
	unsigned char b[FORMAT_ID_BYTES];

	/* "merged_from" alone is older. */
	if (!id)
		id = json_string_value(json_array_get(from, 0));
	if (!id || hash_parse(id, b) < 0)
		id = img->id;
	memcpy(ret_id, id, FORMAT_HASH_HEX + 1);
	*ret_times = times > 0 && times < INT32_MAX ? (uint64_t)times : id != img->id;
}

/* Of which image it is one more version. Whoever has several is to tell which is which even when
 * some of them are gone. */
static void set_version(json_t *j, const struct usnap_image *img)
{
	char version_of[FORMAT_HASH_HEX + 1];
	uint64_t times;

	merge_get_version(img, version_of, &times);
	json_object_set_new(j, "version_of", json_string(version_of));
	json_object_set_new(j, "times_merged", json_integer((json_int_t)times + 1));
}

static int write_identity(struct merge *m, struct usnap_err *err)
{
	unsigned char id[FORMAT_ID_BYTES];
	char hex[FORMAT_HASH_HEX + 1];
	const struct usnap_image *parent = writer_parent(m->w);
	json_t *j = json_deep_copy(m->img->snapshot), *from = json_array();
	cleanup_free char *text = NULL;

	if (getrandom(id, sizeof(id), 0) != sizeof(id)) {
		json_decref(j);
		json_decref(from);
		return usnap_fail_errno(err, -EIO, "cannot name the image");
	}
	for (uint64_t i = 0; i < m->img->nr_images; i++)
		json_array_append_new(
			from, json_string(hash_hex(hex, m->img->images + i * FORMAT_INDEX_RECORD)));
	set_version(j, m->img);
	json_object_set_new(j, "merged_from", from);
	json_object_set_new(j, "id", json_string(hash_hex(hex, id)));
	json_object_set_new(j, "parent", parent ? json_string(parent->id) : json_null());
	json_object_del(j, "parent_path");
	/* Else it goes on to say how long ago the last full image was taken. */
	if (!parent)
		json_object_del(j, "depth");
	text = json_dumps(j, JSON_INDENT(1));
	json_decref(j);
	if (!text)
		return usnap_fail_errno(err, -ENOMEM, "cannot name the image");
	return image_writer_member(m->w, FORMAT_SNAPSHOT, text, strlen(text), err);
}

static int copy_members(struct merge *m, struct usnap_err *err)
{
	struct usnap_image *img = m->img;
	int r = write_identity(m, err);

	for (size_t i = 0; i < img->nr_members && r == 0; i++) {
		struct img_member *member = &img->members[i];

		if (!strcmp(member->name, FORMAT_SNAPSHOT) || !strcmp(member->name, FORMAT_INDEX) ||
		    !strcmp(member->name, FORMAT_STATS))
			continue;
		if ((r = img_load_member(img, member)) < 0)
			return usnap_fail(err, r, "%s", img->err.text);
		r = image_writer_member(m->w, member->name, member->data, member->size, err);
		/* Notes of thousands of threads need not be held at once. */
		if (strcmp(member->name, FORMAT_PROCESS) != 0) {
			free(member->data);
			member->data = NULL;
		}
	}
	return r;
}

static int finish(struct merge *m, struct usnap_err *err)
{
	struct img_member *stats = img_find_member(m->img, FORMAT_STATS);
	int r = stats ? img_load_member(m->img, stats) : 0;

	if (r < 0)
		return usnap_fail(err, r, "%s", m->img->err.text);
	return image_writer_commit(m->w, stats ? stats->data : "{}", stats ? stats->size : 2, err);
}

static int prepare(struct merge *m, struct usnap_err *err)
{
	struct usnap_image *img = m->img;
	const struct image_writer_options wo = {
		.fd = m->o->fd,
		.page_size = img->info.page_size,
		.level = m->o->level,
		.frame_pages = MAX(1, NEW_FRAME_BYTES / img->info.page_size),
		.seed = &img->seed,
		.cancel = m->o->cancel,
	};
	int r = img_sort_by_frame(img, &m->first, &m->by_frame);

	m->dctx = ZSTD_createDCtx();
	m->cctx = ZSTD_createCCtx();
	m->compressed = malloc(ZSTD_COMPRESSBOUND(FORMAT_MAX_FRAME_RAW));
	m->raw = malloc(FORMAT_MAX_FRAME_RAW);
	m->out = malloc(ZSTD_COMPRESSBOUND(NEW_FRAME_BYTES));
	m->rest.raw = malloc(NEW_FRAME_BYTES);
	m->rest.hashes = calloc(MAX_SLOTS, sizeof(struct page_hash));
	m->whole.hashes = calloc(MAX_SLOTS, sizeof(struct page_hash));
	if (r < 0 || !m->dctx || !m->cctx || !m->compressed || !m->raw || !m->out || !m->rest.raw ||
	    !m->rest.hashes || !m->whole.hashes ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(m->cctx, ZSTD_c_compressionLevel, m->o->level)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(m->cctx, ZSTD_c_checksumFlag, 1)))
		return usnap_fail_errno(err, -ENOMEM, "cannot merge '%s'", img->name);
	if ((r = image_writer_open(&m->w, &wo, err)) < 0 ||
	    (m->o->parent && (r = image_writer_set_parent(m->w, m->o->parent, err)) < 0))
		return r;
	return image_writer_begin(m->w, err);
}

int image_merge(struct usnap_image *img, const struct merge_options *o,
		struct image_writer_stats *ret, struct usnap_err *err)
{
	struct merge m = {.img = img, .o = o};
	int r = img_require_open(img);

	if (r == 0)
		r = img_load_index(img);
	if (r < 0)
		return usnap_fail(err, r, "%s", img->err.text);
	r = img_open_chain(img, err);
	if (r == 0)
		r = prepare(&m, err);
	if (r == 0)
		r = copy_members(&m, err);
	if (r == 0)
		r = take_frames(&m, err);
	if (r < 0 && m.w && (!err || !err->code)) {
		/* The writer has the words for its failure. */
		int f = image_writer_flush(m.w, err);

		if (f == 0)
			usnap_fail_errno(err, r, "cannot merge '%s'", img->name);
	}
	if (r == 0)
		r = finish(&m, err);
	if (r == 0 && ret)
		image_writer_get_stats(m.w, ret);
	image_writer_close(m.w);
	ZSTD_freeDCtx(m.dctx);
	ZSTD_freeCCtx(m.cctx);
	free(m.first);
	free(m.by_frame);
	free(m.compressed);
	free(m.raw);
	free(m.out);
	free(m.rest.raw);
	free(m.rest.hashes);
	free(m.rest.runs);
	free(m.whole.hashes);
	free(m.whole.runs);
	free(m.referred.runs);
	free(m.in_parent);
	return r;
}
