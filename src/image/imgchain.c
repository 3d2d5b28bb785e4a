/*
 * Ancestors: the files that hold pages an image refers to.
 *
 * DESIGN. The table of images in the page index gives their ids; a file is
 * one of them when its commit.json says so, whatever its name. They are
 * looked for when the first byte of one is wanted: where the caller said, in
 * the image's directory, and where its parent was when it was taken, unless
 * the image lies in a store. A file
 * whose name holds the id is tried first: a directory is listed once, for all
 * of them. Only when that fails the others of a directory are opened, once,
 * and what is learned of each is kept.
 *
 * Any thread reads; chain_lock guards all that is here, the search included.
 * An ancestor that a thread reads from is not closed; of idle ones no more
 * than IMG_OPEN_ANCESTORS stay open.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "common/util.h"
#include "image/hash.h"
#include "image/image.h"

enum {
	MAX_WHY = 300
};

static bool same_id(const struct img_ancestor *a, const char *id)
{
	return !strcmp(a->id, id);
}

static void close_file(struct usnap_image *img, struct img_ancestor *a)
{
	close(a->fd);
	a->fd = -1;
	img->nr_open--;
}

static void close_idle(struct usnap_image *img)
{
	while (img->nr_open >= IMG_OPEN_ANCESTORS) {
		struct img_ancestor *oldest = NULL;

		for (uint64_t i = 1; i < img->nr_images; i++) {
			struct img_ancestor *a = &img->ancestors[i - 1];

			if (a->fd >= 0 && !a->users && (!oldest || a->used < oldest->used))
				oldest = a;
		}
		if (!oldest)
			break;
		close_file(img, oldest);
	}
}

/* Why an ancestor is not in the file where it should be; the first reason is kept. */
static void note_why(struct img_ancestor *a, const char *why)
{
	if (!a->why)
		a->why = strndup(why, MAX_WHY);
}

/* Opens path when it is an image; its id and where its archive ends. */
static int peek(const char *path, char id[FORMAT_HASH_HEX + 1], uint64_t *ret_end,
		char why[MAX_WHY])
{
	struct usnap_image *img = usnap_image_new();
	struct stat st;
	int fd = -1;

	/* Opening a device can do things. */
	if (img && stat(path, &st) == 0 && S_ISREG(st.st_mode) && img_open_file(img, path) == 0) {
		memcpy(id, img->id, FORMAT_HASH_HEX + 1);
		*ret_end = img->commit_header;
		fd = take_fd(&img->fd);
	} else if (img) {
		snprintf(why, MAX_WHY, "%.*s", MAX_WHY - 1, img->err.text);
	}
	usnap_image_free(img);
	return fd;
}

/* What is worth telling of a file that is not the ancestor that was looked for. */
enum blame {
	BLAME_NOTHING, /* its name is another image's */
	BLAME_DAMAGE, /* it might have been */
	BLAME_ALL
};

/* Looks into a file. Any ancestor that it is becomes known; it stays open when that is a. */
static void try_file(struct usnap_image *img, struct img_ancestor *a, const char *path,
		     enum blame blame)
{
	char id[FORMAT_HASH_HEX + 1], why[MAX_WHY] = "";
	uint64_t end;
	int fd = peek(path, id, &end, why);

	if (fd < 0) {
		if (*why && blame != BLAME_NOTHING)
			note_why(a, why);
		return;
	}
	for (uint64_t i = 1; i < img->nr_images; i++) {
		struct img_ancestor *b = &img->ancestors[i - 1];

		if (!same_id(b, id) || b->fd >= 0)
			continue;
		if (!b->path)
			b->path = strdup(path);
		if (b == a && b->path) {
			close_idle(img);
			a->fd = take_fd(&fd);
			a->end = end;
			img->nr_open++;
		}
	}
	if (a->fd < 0 && blame == BLAME_ALL) {
		snprintf(why, sizeof(why), "'%.200s' is image %s", path, id);
		note_why(a, why);
	}
	if (fd >= 0)
		close(fd);
}

static bool is_candidate(const char *name)
{
	static const char suffix[] = ".usnap";
	size_t len = strlen(name);

	return name[0] != '.' && len >= sizeof(suffix) &&
	       !strcmp(name + len - sizeof(suffix) + 1, suffix);
}

static bool has_id(const char *name)
{
	while (*name && strspn(name, "0123456789abcdef") < FORMAT_HASH_HEX)
		name++;
	return *name;
}

static enum blame blame_for(const char *name, const struct img_ancestor *a)
{
	return strstr(name, a->id) ? BLAME_ALL : has_id(name) ? BLAME_NOTHING : BLAME_DAMAGE;
}

static void scan(struct usnap_image *img, struct img_ancestor *a, const char *dir, bool by_name)
{
	cleanup_dir DIR *d = opendir(dir);
	const struct dirent *e;

	while (d && a->fd < 0 && (e = readdir(d))) {
		cleanup_free char *path = NULL;
		bool named = strstr(e->d_name, a->id) != NULL;

		if (is_candidate(e->d_name) && (named || !by_name) &&
		    asprintf(&path, "%s/%s", dir, e->d_name) >= 0)
			try_file(img, a, path, blame_for(e->d_name, a));
	}
}

static int compare_ids(const void *a, const void *b)
{
	return strcmp((*(struct img_ancestor *const *)a)->id,
		      (*(struct img_ancestor *const *)b)->id);
}

/* Of the nr ancestors, ordered by id, those that a file's name speaks of. */
static void match_name(struct img_ancestor **sorted, size_t nr, const char *dir, const char *file)
{
	struct img_ancestor want = {0}, *key = &want;

	for (const char *s = file; *s; s++) {
		if (strspn(s, "0123456789abcdef") < FORMAT_HASH_HEX)
			continue;
		memcpy(want.id, s, FORMAT_HASH_HEX);
		struct img_ancestor **found =
			bsearch(&key, sorted, nr, sizeof(*sorted), compare_ids);

		if (found && !(*found)->named && asprintf(&(*found)->named, "%s/%s", dir, file) < 0)
			(*found)->named = NULL;
	}
}

/* With thousands of images in a directory, and hundreds of them ancestors, one look has to do. */
static void list_names(struct usnap_image *img, const char *dir)
{
	cleanup_free struct img_ancestor **sorted = calloc(img->nr_images, sizeof(*sorted));
	cleanup_dir DIR *d = opendir(dir);
	const struct dirent *e;
	size_t nr = 0;

	for (uint64_t i = 1; sorted && i < img->nr_images; i++)
		sorted[nr++] = &img->ancestors[i - 1];
	if (nr)
		qsort(sorted, nr, sizeof(*sorted), compare_ids);
	while (d && nr && (e = readdir(d)))
		if (is_candidate(e->d_name))
			match_name(sorted, nr, dir, e->d_name);
}

/* Looks at one place: a file, or a directory. */
static void look(struct usnap_image *img, struct img_ancestor *a, struct img_place *p)
{
	struct stat st;

	if (a->fd >= 0 || stat(p->path, &st) < 0)
		return;
	if (!S_ISDIR(st.st_mode)) {
		try_file(img, a, p->path, BLAME_DAMAGE);
		return;
	}
	if (!p->listed)
		list_names(img, p->path);
	p->listed = true;
	if (a->named) {
		try_file(img, a, a->named, BLAME_ALL);
		scan(img, a, p->path, true); /* there may be more of that name */
	}
	if (a->fd >= 0 || p->scanned)
		return;
	scan(img, a, p->path, false);
	/* To its end: what is there is known now. */
	p->scanned = a->fd < 0;
}

static int add_place(struct usnap_image *img, const char *path)
{
	struct img_place *p = realloc(img->places, (img->nr_places + 1) * sizeof(*p));

	if (!p)
		return -ENOMEM;
	img->places = p;
	p[img->nr_places] = (struct img_place){.path = strdup(path)};
	if (!p[img->nr_places].path)
		return -ENOMEM;
	img->nr_places++;
	return 0;
}

/* Where the file lies that is open, whatever links led to it. Without a /proc that knows us, as
 * between PID namespaces, by its name. */
static char *own_directory(const struct usnap_image *img)
{
	char *path = NULL, *slash, link[64];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", img->fd);
	if (io_readlink_at(AT_FDCWD, link, &path) < 0 || path[0] != '/') {
		free(path);
		path = realpath(img->name, NULL);
	}
	if (!path)
		return NULL;
	slash = strrchr(path, '/');
	slash[slash == path] = '\0';
	return path;
}

/* A store keeps what its images need beside them: what one needs from elsewhere is missing there,
 * whoever else may have it today. */
static bool is_store(const char *dir)
{
	cleanup_free char *lock = NULL;
	struct stat st;

	return asprintf(&lock, "%s/" IMG_STORE_LOCK, dir) >= 0 && lstat(lock, &st) == 0 &&
	       S_ISREG(st.st_mode);
}

/* The places that are known without being told; after those that were. */
static void add_own_places(struct usnap_image *img)
{
	const char *parent = json_string_value(json_object_get(img->snapshot, "parent_path"));
	cleanup_free char *own = own_directory(img), *dir = NULL;
	char *slash;

	if (img->own_places)
		return;
	img->own_places = true;
	if (own)
		add_place(img, own);
	if (!parent || parent[0] != '/' || strlen(parent) >= PATH_MAX || (own && is_store(own)))
		return;
	add_place(img, parent);
	dir = strdup(parent);
	slash = dir ? strrchr(dir, '/') : NULL;
	if (slash) {
		slash[slash == dir] = '\0';
		if (!own || strcmp(own, dir) != 0)
			add_place(img, dir);
	}
}

static int prepare(struct usnap_image *img)
{
	if (img->ancestors)
		return 0;
	img->ancestors = calloc(img->nr_images, sizeof(*img->ancestors));
	if (!img->ancestors)
		return -ENOMEM;
	for (uint64_t i = 1; i < img->nr_images; i++) {
		img->ancestors[i - 1].fd = -1;
		hash_hex(img->ancestors[i - 1].id, img->images + i * FORMAT_INDEX_RECORD);
	}
	add_own_places(img);
	return 0;
}

static int not_found(struct usnap_image *img, const struct img_ancestor *a, struct usnap_err *err)
{
	const char *first = img->nr_places ? img->places[0].path : "its directory";

	if (a->why)
		usnap_fail(err, -ESTALE,
			   "cannot read '%.100s': it needs pages of image %s, which is missing; %s",
			   img->name, a->id, a->why);
	else
		usnap_fail(err, -ESTALE,
			   "cannot read '%.100s': it needs pages of image %s, which is not in "
			   "'%.150s'",
			   img->name, a->id, first);
	return usnap_hint(err, "put image %s beside the one that needs it", a->id);
}

/* Opens ancestor a. With chain_lock. */
static int open_ancestor(struct usnap_image *img, struct img_ancestor *a, struct usnap_err *err)
{
	if (a->fd >= 0)
		return 0;
	if (a->missing)
		return not_found(img, a, err);
	if (a->path)
		try_file(img, a, a->path, BLAME_ALL);
	for (size_t i = 0; i < img->nr_places && a->fd < 0; i++) {
		look(img, a, &img->places[i]);
		/* A scan for another one may have seen it already. */
		if (a->fd < 0 && a->path)
			try_file(img, a, a->path, BLAME_ALL);
	}
	if (a->fd >= 0)
		return 0;
	a->missing = true;
	return not_found(img, a, err);
}

static int acquire(struct usnap_image *img, uint32_t image, struct img_ancestor **ret,
		   struct usnap_err *err)
{
	int r;

	pthread_mutex_lock(&img->chain_lock);
	r = prepare(img);
	if (r < 0)
		usnap_fail_errno(err, r, "cannot read '%s'", img->name);
	else if ((r = open_ancestor(img, &img->ancestors[image - 1], err)) == 0) {
		*ret = &img->ancestors[image - 1];
		(*ret)->users++;
		(*ret)->used = ++img->chain_clock;
	}
	pthread_mutex_unlock(&img->chain_lock);
	return r;
}

static void release(struct usnap_image *img, struct img_ancestor *a)
{
	pthread_mutex_lock(&img->chain_lock);
	a->users--;
	pthread_mutex_unlock(&img->chain_lock);
}

int img_frame_damaged(struct usnap_image *img, const struct img_frame *f, struct usnap_err *err,
		      const char *fmt, ...)
{
	char what[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (!f->image)
		return usnap_fail(err, -EBADMSG, "cannot read '%s': offset %" PRIu64 ": %s",
				  img->name, f->offset, what);
	return usnap_fail(err, -EBADMSG,
			  "cannot read '%.150s': offset %" PRIu64 ": %s; '%.100s' needs it",
			  img_ancestor_path(img, f->image), f->offset, what, img->name);
}

const char *img_ancestor_path(struct usnap_image *img, uint64_t image)
{
	const char *path;

	pthread_mutex_lock(&img->chain_lock);
	path = img->ancestors ? img->ancestors[image - 1].path : NULL;
	pthread_mutex_unlock(&img->chain_lock);
	return path;
}

int img_pread_frame(struct usnap_image *img, const struct img_frame *f, void *buf,
		    struct usnap_err *err)
{
	struct img_ancestor *a = NULL;
	int r = 0, fd = img->fd;
	uint64_t end = img->commit_header;

	if (f->image) {
		if ((r = acquire(img, f->image, &a, err)) < 0)
			return r;
		fd = a->fd;
		end = a->end;
	}
	if (f->offset > end || f->compressed_bytes > end - f->offset)
		r = -ENODATA;
	else
		r = io_pread_full(fd, buf, f->compressed_bytes, f->offset);
	if (r == -ENODATA)
		r = img_frame_damaged(img, f, err, "the file ends before a frame does");
	else if (r < 0)
		usnap_fail_errno(err, r, "cannot read '%s'",
				 f->image ? img_ancestor_path(img, f->image) : img->name);
	if (a)
		release(img, a);
	return r;
}

int img_open_chain(struct usnap_image *img, struct usnap_err *err)
{
	struct img_ancestor *a;
	struct img_frame f;
	int r = 0;

	for (uint32_t i = 1; i < img->nr_images; i++) {
		if ((r = acquire(img, i, &a, err)) < 0)
			return r;
		release(img, a);
	}
	for (uint64_t i = 0; i < img->nr_frames && r == 0; i++) {
		img_get_frame(img, i, &f);
		if (!f.image)
			continue;
		uint64_t end = img->ancestors[f.image - 1].end;

		if (f.offset > end || f.compressed_bytes > end - f.offset)
			r = img_frame_damaged(img, &f, err, "the file ends before a frame does");
	}
	return r;
}

void img_close_chain(struct usnap_image *img)
{
	for (uint64_t i = 1; img->ancestors && i < img->nr_images; i++) {
		struct img_ancestor *a = &img->ancestors[i - 1];

		if (a->fd >= 0)
			close(a->fd);
		free(a->path);
		free(a->named);
		free(a->why);
	}
	free(img->ancestors);
	for (size_t i = 0; i < img->nr_places; i++)
		free(img->places[i].path);
	free(img->places);
}

/* ---- in public ---- */

int usnap_image_add_ancestors(struct usnap_image *img, const char *path)
{
	struct stat st;
	int r;

	img_begin(img);
	if (stat(path, &st) < 0)
		return usnap_fail_errno(&img->err, -errno, "cannot look into '%s'", path);
	pthread_mutex_lock(&img->chain_lock);
	r = img->ancestors ? -EINVAL : add_place(img, path);
	pthread_mutex_unlock(&img->chain_lock);
	return r < 0 ? usnap_fail_errno(&img->err, r, "cannot look into '%s'", path) : 0;
}

int usnap_image_get_nr_ancestors(struct usnap_image *img, size_t *ret)
{
	int r = img_require_open(img);

	if (r == 0 && (r = img_load_index(img)) == 0)
		*ret = img->nr_images - 1;
	return r;
}

static void count_pages(struct usnap_image *img)
{
	for (uint64_t i = 0; i < img->nr_pages && !img->counted; i++) {
		struct img_frame f;

		img_get_frame(img, img_page_frame(img, i), &f);
		if (f.image)
			img->ancestors[f.image - 1].nr_pages++;
	}
	img->counted = true;
}

int usnap_image_get_ancestor(struct usnap_image *img, size_t nr, struct usnap_ancestor *ret,
			     size_t size)
{
	struct usnap_err why = {0};
	struct usnap_ancestor out = {0};
	struct img_ancestor *a;
	size_t n = 0;
	int r = usnap_image_get_nr_ancestors(img, &n);

	if (r < 0)
		return r;
	if (nr >= n)
		return usnap_fail(&img->err, -EINVAL, "cannot read '%s': it has no ancestor %zu",
				  img->name, nr);
	r = acquire(img, (uint32_t)nr + 1, &a, &why);
	if (r == 0)
		release(img, a);
	else if (r != -ESTALE)
		return usnap_fail(&img->err, r, "%s", why.text);
	out.id = img->ancestors[nr].id;
	out.path = r == 0 ? img->ancestors[nr].path : NULL;
	count_pages(img);
	out.nr_pages = img->ancestors[nr].nr_pages;
	img_copy_out(ret, size, &out, sizeof(out));
	return 0;
}

int usnap_image_is_needed(struct usnap_image *img, const char *id)
{
	unsigned char b[FORMAT_ID_BYTES];
	int r = img_require_open(img);

	if (r < 0 || (r = img_load_index(img)) < 0)
		return r;
	if (hash_parse(id, b) < 0)
		return 0;
	for (uint64_t i = 0; i < img->nr_images; i++)
		if (!memcmp(img->images + i * FORMAT_INDEX_RECORD, b, sizeof(b)))
			return 1;
	return 0;
}
