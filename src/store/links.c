#include "store/links.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uffd-snap.h>

#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"
#include "image/imgrefers.h"
#include "image/merge.h"

/* Images ordered by id, to find one. */
struct by_id {
	const char *id;
	size_t at;
};

static int compare_ids(const void *a, const void *b)
{
	return strcmp(((const struct by_id *)a)->id, ((const struct by_id *)b)->id);
}

static long find(const struct by_id *ids, size_t nr, const char *id)
{
	const struct by_id key = {.id = id};
	const struct by_id *found = nr ? bsearch(&key, ids, nr, sizeof(*ids), compare_ids) : NULL;

	return found ? (long)found->at : LINKS_MISSING;
}

static int by_place(const void *a, const void *b)
{
	size_t x = *(const size_t *)a, y = *(const size_t *)b;

	return x < y ? -1 : x > y;
}

static int set_needs(struct store_link *l, const unsigned char *refers, size_t n,
		     const struct by_id *ids, size_t nr)
{
	char id[STORE_ID_LEN + 1];

	if (!n)
		return 0;
	if (!(l->needs = malloc(n * sizeof(*l->needs))))
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		long at = find(ids, nr, hash_hex(id, refers + i * FORMAT_ID_BYTES));

		if (at >= 0)
			l->needs[l->nr_needs++] = (size_t)at;
		else if (!l->nr_missing++)
			memcpy(l->missing, id, sizeof(id));
	}
	qsort(l->needs, l->nr_needs, sizeof(*l->needs), by_place);
	return 0;
}

/* The images that it was merged of. */
static int set_from(struct store_link *l, const struct usnap_image *img, const struct by_id *ids,
		    size_t nr)
{
	const json_t *from = json_object_get(img->snapshot, "merged_from");
	size_t n = MIN(json_array_size(from), (size_t)FORMAT_MAX_IMAGES + 1);

	if (!n)
		return 0;
	if (!(l->from = malloc(n * sizeof(*l->from))))
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		const char *id = json_string_value(json_array_get(from, i));
		long at = id ? find(ids, nr, id) : LINKS_MISSING;

		if (at >= 0)
			l->from[l->nr_from++] = (size_t)at;
	}
	return 0;
}

/* An image that is merged again loses sight of the first one, which others may still need: so it is
 * not the one before it that counts but whose versions they both are. */
static int set_version(struct store_link *l, const struct usnap_image *img,
		       const struct usnap_info *info)
{
	cleanup_free char *target =
		json_dumps(json_object_get(img->snapshot, "target"), JSON_SORT_KEYS | JSON_COMPACT);
	cleanup_free char *whose = NULL;

	if (asprintf(&whose, "%s %s", info->run, target ? target : "") < 0)
		return -ENOMEM;
	hash_canonical(l->taken_of, XXH3_128bits(whose, strlen(whose)));
	snprintf(l->run, sizeof(l->run), "%s", info->run);
	merge_get_version(img, l->version_of, &l->times_merged);
	return 0;
}

bool store_links_is_named(const struct usnap_info *info, const struct store_image *i,
			  const char *path, char *why, size_t room)
{
	if (strcmp(info->id, i->id) != 0) {
		snprintf(why, room, "cannot use '%.200s': it is the image %.40s", path, info->id);
		return false;
	}
	if (info->t0_realtime_ns / 1000000 != i->t0_ms) {
		snprintf(why, room,
			 "cannot use '%.200s': the image is of another time than its name says",
			 path);
		return false;
	}
	return true;
}

static int load(struct store_link *l, const char *path, const struct store_image *i,
		const struct by_id *ids, size_t nr)
{
	struct usnap_image *img = usnap_image_new();
	cleanup_free unsigned char *refers = NULL;
	struct usnap_info info;
	size_t n;
	int r = 0;

	if (!img)
		return -ENOMEM;
	if ((r = usnap_image_open(img, path)) < 0 ||
	    (r = usnap_image_get_info(img, &info, sizeof(info))) < 0 ||
	    (r = img_read_refers(img, &refers, &n)) < 0) {
		snprintf(l->why, sizeof(l->why), "%s", usnap_image_error(img));
		/* -EINVAL: it is something else altogether, such as zeros. */
		l->damaged = r == -EBADMSG || r == -EINVAL;
		r = r == -ENOMEM ? r : 0;
	} else if (!store_links_is_named(&info, i, path, l->why, sizeof(l->why))) {
		l->damaged = true;
	} else {
		l->readable = true;
		memcpy(l->version_of, info.id, sizeof(l->version_of));
		l->parent = info.parent ? find(ids, nr, info.parent) : LINKS_NONE;
		r = set_needs(l, refers, n, ids, nr);
		if (r == 0)
			r = set_from(l, img, ids, nr);
		if (r == 0)
			r = set_version(l, img, &info);
	}
	usnap_image_free(img);
	return r;
}

static int set_need_bytes(struct store_link *l, const struct store_images *images,
			  const unsigned char *refers, const uint64_t *bytes, size_t n)
{
	unsigned char id[FORMAT_ID_BYTES];

	if (!(l->need_bytes = calloc(l->nr_needs + 1, sizeof(*l->need_bytes))))
		return -ENOMEM;
	/* Both are few, and mostly in the same order. */
	for (size_t i = 0, k = 0; i < n && l->nr_needs; i++)
		for (size_t tries = 0; tries < l->nr_needs; tries++, k = (k + 1) % l->nr_needs)
			if (hash_parse(images->image[l->needs[k]].id, id) == 0 &&
			    !memcmp(id, refers + i * FORMAT_ID_BYTES, sizeof(id))) {
				l->need_bytes[k] = bytes[i];
				break;
			}
	return 0;
}

static int load_sizes(struct store_link *l, const char *path, const struct store_images *images)
{
	struct usnap_image *img = usnap_image_new();
	cleanup_free unsigned char *refers = NULL;
	cleanup_free uint64_t *bytes = NULL;
	size_t n;
	int r = 0;

	if (!img)
		return -ENOMEM;
	if (usnap_image_open(img, path) == 0 &&
	    img_read_refers_sized(img, &refers, &n, &bytes) == 0)
		r = set_need_bytes(l, images, refers, bytes, n);
	usnap_image_free(img);
	return r;
}

int store_links_load_sizes(struct store *s, const char *name, const struct store_images *images,
			   struct store_link *links)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < images->nr; i++) {
		cleanup_free char *path = NULL;

		if (!links[i].readable || !links[i].nr_needs)
			continue;
		if (asprintf(&path, "%s/%s/%s", store_path(s), name, images->image[i].file) < 0)
			return -ENOMEM;
		r = load_sizes(&links[i], path, images);
	}
	return r;
}

bool store_links_is_complete(const struct store_link *links, size_t i)
{
	if (!links[i].readable || links[i].nr_missing)
		return false;
	for (size_t k = 0; k < links[i].nr_needs; k++)
		if (!links[links[i].needs[k]].readable)
			return false;
	return true;
}

/* An image ordered by what its versions have in common. */
struct by_version {
	const struct store_link *link;
	uint64_t t0_ms;
	size_t at;
};

static int compare_versions(const struct by_version *x, const struct by_version *y)
{
	int r = x->t0_ms < y->t0_ms ? -1 : x->t0_ms > y->t0_ms;

	if (!r)
		r = memcmp(x->link->taken_of, y->link->taken_of, sizeof(x->link->taken_of));
	return r ? r : strcmp(x->link->version_of, y->link->version_of);
}

static int compare_versions_and_places(const void *a, const void *b)
{
	const struct by_version *x = a, *y = b;
	int r = compare_versions(x, y);

	return r ? r : x->at < y->at ? -1 : x->at > y->at;
}

/* v: the versions of one image. One replaces the others if it lacks nothing. */
static void judge_versions(struct store_link *links, const struct by_version *v, size_t nr)
{
	size_t best = nr;

	for (size_t i = 0; i < nr; i++)
		if (store_links_is_complete(links, v[i].at) &&
		    (best == nr || v[i].link->times_merged > v[best].link->times_merged))
			best = i;
	for (size_t i = 0; i < nr; i++) {
		links[v[i].at].first_version = v[0].at;
		links[v[i].at].replaced = best < nr && i != best;
	}
}

static int find_versions(struct store_link *links, const struct store_images *images)
{
	cleanup_free struct by_version *v = calloc(images->nr + 1, sizeof(*v));
	size_t nr = 0;

	if (!v)
		return -ENOMEM;
	for (size_t i = 0; i < images->nr; i++) {
		links[i].first_version = i;
		if (links[i].readable)
			v[nr++] = (struct by_version){&links[i], images->image[i].t0_ms, i};
	}
	if (nr)
		qsort(v, nr, sizeof(*v), compare_versions_and_places);
	for (size_t i = 0, n; i < nr; i += n) {
		for (n = 1; i + n < nr && !compare_versions(&v[i], &v[i + n]);)
			n++;
		judge_versions(links, v + i, n);
	}
	return 0;
}

int store_links_load(struct store *s, const char *name, const struct store_images *images,
		     struct store_link **ret, struct usnap_err *err)
{
	struct store_link *links = calloc(images->nr + 1, sizeof(*links));
	cleanup_free struct by_id *ids = calloc(images->nr + 1, sizeof(*ids));
	int r = links && ids ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < images->nr; i++)
		ids[i] = (struct by_id){images->image[i].id, i};
	if (r == 0 && images->nr)
		qsort(ids, images->nr, sizeof(*ids), compare_ids);
	for (size_t i = 0; r == 0 && i < images->nr; i++) {
		cleanup_free char *path = NULL;

		links[i].parent = LINKS_NONE;
		if (asprintf(&path, "%s/%s/%s", store_path(s), name, images->image[i].file) < 0)
			r = -ENOMEM;
		else
			r = load(&links[i], path, &images->image[i], ids, images->nr);
	}
	if (r == 0)
		r = find_versions(links, images);
	if (r < 0) {
		store_links_free(links, images->nr);
		return usnap_fail_errno(err, r, "cannot look through '%s' of store '%s'", name,
					store_path(s));
	}
	*ret = links;
	return 0;
}

void store_links_free(struct store_link *links, size_t nr)
{
	for (size_t i = 0; links && i < nr; i++) {
		free(links[i].needs);
		free(links[i].need_bytes);
		free(links[i].from);
	}
	free(links);
}

size_t store_links_close(const struct store_link *links, bool *keep, size_t nr)
{
	size_t set = 0, before;

	/* What is kept for others can be read itself too. Once is enough unless clocks went back. */
	do {
		bool all = false;

		before = set;
		for (size_t i = nr; i-- > 0;) {
			if (all && !keep[i]) {
				keep[i] = true;
				set++;
			}
			if (!keep[i])
				continue;
			all |= !links[i].readable;
			for (size_t k = 0; k < links[i].nr_needs; k++) {
				set += !keep[links[i].needs[k]];
				keep[links[i].needs[k]] = true;
			}
		}
	} while (set != before);
	return set;
}

/* How many that are still to be removed need each. */
static void count_needed(const struct store_link *links, const bool *remove, size_t nr, size_t *by)
{
	for (size_t i = 0; i < nr; i++)
		for (size_t k = 0; remove[i] && k < links[i].nr_needs; k++)
			by[links[i].needs[k]]++;
}

int store_links_remove(const struct store_link *links, const struct store_images *images,
		       const bool *remove, int name_fd, size_t *ret_removed)
{
	cleanup_free size_t *needed_by = calloc(images->nr + 1, sizeof(*needed_by));
	cleanup_free bool *left = malloc(images->nr + 1);
	const struct store_image *latest;
	bool any = true, is_full;
	int r;

	if (!needed_by || !left)
		return -ENOMEM;
	if (images->nr)
		memcpy(left, remove, images->nr);
	count_needed(links, remove, images->nr, needed_by);
	latest = store_newest(images, remove, wall_ns() / 1000000);
	r = store_set_latest(name_fd, latest ? latest->file : NULL);
	/* Where not even a link has room, it leads nowhere until there is some: that is what images are
	 * removed for. */
	is_full = r == -ENOSPC || r == -EDQUOT;
	if (is_full)
		r = unlinkat(name_fd, "latest", 0) < 0 && errno != ENOENT ? -errno : 0;
	if (r < 0)
		return r;
	*ret_removed = 0;
	while (any) {
		any = false;
		for (size_t i = images->nr; i-- > 0;) {
			if (!left[i] || needed_by[i])
				continue;
			if (unlinkat(name_fd, images->image[i].file, 0) < 0 && errno != ENOENT)
				return -errno;
			left[i] = false;
			any = true;
			(*ret_removed)++;
			for (size_t k = 0; k < links[i].nr_needs; k++)
				needed_by[links[i].needs[k]]--;
		}
	}
	if (is_full && latest && (r = store_set_latest(name_fd, latest->file)) < 0)
		return r;
	return fsync(name_fd) < 0 && errno != EINVAL ? -errno : 0;
}
