#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"
#include "image/ustar.h"

/* ---- commit.json ---- */

/* Whether commit.json's header stands at offset: a tar header of that name
 * whose archive ends exactly where the file does. */
static bool is_commit_header(const struct usnap_image *img, const unsigned char *block,
			     uint64_t offset, uint64_t *ret_size)
{
	struct ustar_entry e;
	const char *what;

	if (memcmp(block, FORMAT_COMMIT, sizeof(FORMAT_COMMIT)) != 0 ||
	    ustar_parse(block, &e, &what) < 0 || e.type != '0' || !e.size ||
	    e.size > FORMAT_MAX_COMMIT)
		return false;
	*ret_size = e.size;
	return offset + FORMAT_TAR_BLOCK + ustar_padded(e.size) + FORMAT_TAR_END == img->size;
}

/* Why there is no commit.json at the end: told by the beginning. */
static int no_commit(struct usnap_image *img)
{
	unsigned char block[FORMAT_TAR_BLOCK];
	struct ustar_entry e;
	const char *what;
	int r;

	if (img->size >= sizeof(block)) {
		if ((r = img_pread(img, block, sizeof(block), 0)) < 0)
			return r;
		if (ustar_parse(block, &e, &what) < 0)
			return usnap_fail(&img->err, -EINVAL,
					  "cannot read '%s': not an uffd-snap image", img->name);
	}
	img_damaged(img, img->size, "not a complete image: it does not end with '%s'",
		    FORMAT_COMMIT);
	return usnap_hint(&img->err,
			  "the snapshot was interrupted, or the file was cut off or added to");
}

/* From the end back, block by block: nothing else needs to be read, and the
 * cost does not depend on the size of the image. */
static int find_commit(struct usnap_image *img)
{
	cleanup_free unsigned char *buf = malloc(KIB(64));
	uint64_t end = img->size - img->size % FORMAT_TAR_BLOCK;
	uint64_t lowest = end > FORMAT_MAX_COMMIT + KIB(4) ? end - FORMAT_MAX_COMMIT - KIB(4) : 0;
	int r;

	if (!buf)
		return img_failed(img, -ENOMEM, NULL);
	if (end != img->size)
		return no_commit(img);
	while (end > lowest) {
		uint64_t start = end - MIN(end - lowest, (uint64_t)KIB(64));

		if ((r = img_pread(img, buf, (size_t)(end - start), start)) < 0)
			return r;
		for (uint64_t at = end; at > start;) {
			at -= FORMAT_TAR_BLOCK;
			if (is_commit_header(img, buf + (at - start), at, &img->commit_size)) {
				img->commit_header = at;
				img->commit_content = at + FORMAT_TAR_BLOCK;
				return 0;
			}
		}
		end = start;
	}
	return no_commit(img);
}

/* The hash over commit.json itself stands at a fixed distance from its end,
 * in every version of the format. */
static int check_commit_hash(struct usnap_image *img, const char *text, size_t len)
{
	char hex[FORMAT_HASH_HEX + 1], expected[160], zero[FORMAT_HASH_HEX + 1];
	size_t tail;

	memset(zero, '0', FORMAT_HASH_HEX);
	zero[FORMAT_HASH_HEX] = '\0';
	tail = (size_t)snprintf(expected, sizeof(expected), FORMAT_COMMIT_TAIL, zero, zero);
	if (len <= tail)
		return img_damaged(img, img->commit_content, "'%s' is too short", FORMAT_COMMIT);
	hash_format(hex, XXH3_128bits(text, len - FORMAT_COMMIT_SELF));
	snprintf(expected, sizeof(expected), "%s\"}\n", hex);
	if (memcmp(text + len - FORMAT_COMMIT_SELF, expected, FORMAT_COMMIT_SELF) != 0)
		return img_damaged(img, img->commit_content, "'%s' differs from its hash",
				   FORMAT_COMMIT);
	memcpy(hex, text + len - FORMAT_COMMIT_ARCHIVE, FORMAT_HASH_HEX);
	hex[FORMAT_HASH_HEX] = '\0';
	return hash_parse(hex, img->archive_hash);
}

static bool get_count(const json_t *j, const char *key, uint64_t *ret)
{
	const json_t *v = json_object_get(j, key);

	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return false;
	*ret = (uint64_t)json_integer_value(v);
	return true;
}

static int compare_offsets(const void *a, const void *b)
{
	const struct img_member *x = *(struct img_member *const *)a,
				*y = *(struct img_member *const *)b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Bytes that are in several members would take memory as often. */
static int check_overlap(struct usnap_image *img)
{
	cleanup_free const struct img_member **sorted = NULL;

	sorted = calloc(img->nr_members + 1, sizeof(*sorted));
	if (!sorted)
		return img_failed(img, -ENOMEM, FORMAT_COMMIT);
	for (size_t i = 0; i < img->nr_members; i++)
		sorted[i] = &img->members[i];
	qsort(sorted, img->nr_members, sizeof(*sorted), compare_offsets);
	for (size_t i = 1; i < img->nr_members; i++)
		if (sorted[i]->offset <
		    sorted[i - 1]->offset + sorted[i - 1]->size + FORMAT_TAR_BLOCK)
			return img_damaged(img, sorted[i]->offset, "'%s' lies in '%s'",
					   sorted[i]->name, sorted[i - 1]->name);
	return 0;
}

static int parse_members(struct usnap_image *img, const json_t *members)
{
	const char *key, *hash;
	json_t *v;

	if (!json_is_object(members))
		return img_damaged(img, img->commit_content, "'%s' names no members",
				   FORMAT_COMMIT);
	img->members = calloc(json_object_size(members) + 1, sizeof(*img->members));
	if (!img->members)
		return img_failed(img, -ENOMEM, FORMAT_COMMIT);
	json_object_foreach ((json_t *)members, key, v) {
		struct img_member *m = &img->members[img->nr_members];

		hash = json_string_value(json_object_get(v, "xxh3"));
		if (!*key || strlen(key) > FORMAT_MAX_NAME || !hash ||
		    hash_parse(hash, m->hash) < 0 || !get_count(v, "offset", &m->offset) ||
		    !get_count(v, "bytes", &m->size) || m->offset < FORMAT_TAR_BLOCK ||
		    m->offset % FORMAT_TAR_BLOCK || m->offset > img->commit_header ||
		    m->size > img->commit_header - m->offset)
			return img_damaged(img, img->commit_content,
					   "'%s' describes a member wrongly", FORMAT_COMMIT);
		snprintf(m->name, sizeof(m->name), "%s", key);
		img->nr_members++;
	}
	return check_overlap(img);
}

int img_load_commit(struct usnap_image *img)
{
	cleanup_free char *text = NULL;
	unsigned char id[FORMAT_ID_BYTES];
	uint64_t bytes;
	const char *s;
	json_error_t e;
	json_t *j;
	int64_t version;
	int r;

	if ((r = find_commit(img)) < 0)
		return r;
	text = malloc(img->commit_size);
	if (!text)
		return img_failed(img, -ENOMEM, FORMAT_COMMIT);
	if ((r = img_pread(img, text, img->commit_size, img->commit_content)) < 0)
		return r;
	if ((r = check_commit_hash(img, text, img->commit_size)) < 0)
		return r == -EINVAL ? img_damaged(img, img->commit_content,
						  "'%s' does not end as it must", FORMAT_COMMIT)
				    : r;
	j = json_loadb(text, img->commit_size, JSON_REJECT_DUPLICATES, &e);
	if (!json_is_object(j)) {
		json_decref(j);
		return img_damaged(img, img->commit_content, "'%s' is no JSON object: %s",
				   FORMAT_COMMIT, e.text);
	}
	version = json_integer_value(json_object_get(j, "version"));
	s = json_string_value(json_object_get(j, "id"));
	if (version > FORMAT_VERSION)
		r = img_newer(img, FORMAT_COMMIT, version);
	else if (version < 1 || !s || hash_parse(s, id) < 0 ||
		 !get_count(j, "pages", &img->nr_pages) ||
		 !get_count(j, "frames", &img->nr_frames) || !get_count(j, "bytes", &bytes) ||
		 bytes != img->commit_header)
		r = img_damaged(img, img->commit_content, "'%s' lacks what it must have",
				FORMAT_COMMIT);
	else {
		snprintf(img->id, sizeof(img->id), "%s", s);
		r = parse_members(img, json_object_get(j, "members"));
	}
	json_decref(j);
	return r;
}

/* ---- snapshot.json ---- */

static const char *get_string(const json_t *j, const char *key)
{
	const char *s = json_string_value(json_object_get(j, key));

	return s ? s : "";
}

static uint64_t get_ns(const json_t *j, const char *key)
{
	uint64_t v;

	return get_count(json_object_get(j, "t0"), key, &v) ? v : 0;
}

int img_load_snapshot(struct usnap_image *img)
{
	unsigned char id[FORMAT_ID_BYTES];
	const json_t *j, *target;
	uint64_t page_size;
	struct img_member *m;
	int64_t version;
	int r = img_load_json(img, FORMAT_SNAPSHOT, &img->snapshot);

	if (r < 0)
		return r;
	j = img->snapshot;
	m = img_find_member(img, FORMAT_SNAPSHOT);
	if (strcmp(get_string(j, "format"), FORMAT_NAME) != 0)
		return img_damaged(img, m->offset, "the format is not '%s'", FORMAT_NAME);
	version = json_integer_value(json_object_get(j, "version"));
	if (version > FORMAT_VERSION)
		return img_newer(img, FORMAT_SNAPSHOT, version);
	if (version < 1 || strcmp(get_string(j, "id"), img->id) != 0)
		return img_damaged(img, m->offset, "'%s' is not that of this image",
				   FORMAT_SNAPSHOT);
	if (!get_count(j, "page_size", &page_size) || page_size < FORMAT_MIN_PAGE ||
	    page_size > FORMAT_MAX_PAGE || (page_size & (page_size - 1)))
		return img_damaged(img, m->offset, "a page size that no machine has");
	target = json_object_get(j, "target");
	img->info = (struct usnap_info){
		.id = img->id,
		.parent = json_string_value(json_object_get(j, "parent")),
		.t0_realtime_ns = get_ns(j, "realtime_ns"),
		.t0_monotonic_ns = get_ns(j, "monotonic_ns"),
		.t0_boottime_ns = get_ns(j, "boottime_ns"),
		.host = get_string(j, "host"),
		.kernel = get_string(j, "kernel"),
		.arch = get_string(j, "arch"),
		.tool = get_string(j, "tool"),
		.strategy = get_string(j, "strategy"),
		.comm = get_string(target, "comm"),
		.exe = get_string(target, "exe"),
		.pid = (int32_t)json_integer_value(json_object_get(target, "pid")),
		.page_size = (uint32_t)page_size,
		.nr_pages = img->nr_pages,
		.nr_frames = img->nr_frames,
		.file_bytes = img->size,
		.run = get_string(j, "run"),
	};
	if (img->info.parent && hash_parse(img->info.parent, id) < 0)
		return img_damaged(img, m->offset, "the parent's id is none");
	return 0;
}
