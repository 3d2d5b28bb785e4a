#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "common/util.h"
#include "store/store.h"
#include "store/storetime.h"

enum {
	MAX_IMAGES = 1 << 20,
	MIN_ID_PREFIX = 6,
	TIME_LEN = 20
};

int store_file_name(uint64_t t0_ms, const char *id, char ret[STORE_FILE_LEN + 1])
{
	char time[STORETIME_STAMP + 1];
	int r = storetime_stamp(t0_ms, time);

	if (r < 0)
		return r;
	if (strlen(id) != STORE_ID_LEN)
		return -EINVAL;
	snprintf(ret, STORE_FILE_LEN + 1, "%s-%s.usnap", time, id);
	return 0;
}

bool store_file_parse(const char *file, struct store_image *ret)
{
	char again[STORE_FILE_LEN + 1];
	struct store_image i = {0};

	if (strlen(file) != STORE_FILE_LEN || file[TIME_LEN] != '-' ||
	    strspn(file + TIME_LEN + 1, "0123456789abcdef") != STORE_ID_LEN)
		return false;
	memcpy(i.file, file, STORE_FILE_LEN);
	memcpy(i.id, file + TIME_LEN + 1, STORE_ID_LEN);
	/* There is one way to write a time: what differs is another's file. */
	if (storetime_parse_stamp(file, &i.t0_ms) < 0 ||
	    store_file_name(i.t0_ms, i.id, again) < 0 || strcmp(file, again) != 0)
		return false;
	*ret = i;
	return true;
}

static int by_time(const void *a, const void *b)
{
	const struct store_image *x = a, *y = b;

	/* The stamp has a fixed width, and the id makes the order total. */
	return strcmp(x->file, y->file);
}

static int add(struct store_images *images, size_t *room, const struct store_image *i)
{
	if (images->nr == MAX_IMAGES)
		return -E2BIG;
	if (images->nr == *room) {
		size_t more = *room * 2 + 64;
		struct store_image *p = realloc(images->image, more * sizeof(*p));

		if (!p)
			return -ENOMEM;
		images->image = p;
		*room = more;
	}
	images->image[images->nr++] = *i;
	return 0;
}

int store_scan(struct store *s, const char *name, struct store_images *ret, struct usnap_err *err)
{
	struct store_images images = {0};
	int fd = store_open_name(s, name, false, err), r = 0;
	cleanup_dir DIR *d = NULL;
	struct dirent *e;
	char latest[STORE_FILE_LEN + 2];
	struct stat st;
	size_t room = 0;

	if (fd < 0)
		return fd;
	ssize_t len = readlinkat(fd, "latest", latest, sizeof(latest) - 1);
	latest[MAX(len, 0)] = '\0';
	if (!(d = fdopendir(fd))) {
		r = -errno;
		close(fd);
		return usnap_fail_errno(err, r, "cannot list '%s/%s'", store_path(s), name);
	}
	while (r == 0 && (errno = 0, e = readdir(d))) {
		struct store_image i;

		/* Gone meanwhile: as if it had been looked for a moment later. */
		if (!store_file_parse(e->d_name, &i) ||
		    fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
			continue;
		i.bytes = (uint64_t)st.st_size;
		r = add(&images, &room, &i);
		if (r == 0 && !strcmp(i.file, latest))
			images.latest_ms = i.t0_ms;
	}
	if (r == 0 && errno)
		r = -errno;
	if (r < 0) {
		free(images.image);
		return usnap_fail_errno(err, r, "cannot list '%s/%s'", store_path(s), name);
	}
	if (images.nr)
		qsort(images.image, images.nr, sizeof(*images.image), by_time);
	*ret = images;
	return 0;
}

void store_images_free(struct store_images *images)
{
	free(images->image);
	*images = (struct store_images){0};
}

uint64_t store_time_ms(const struct store_images *images, uint64_t now_ms)
{
	return MAX(now_ms, images->latest_ms);
}

const struct store_image *store_newest(const struct store_images *images, const bool *without,
				       uint64_t now_ms)
{
	const struct store_image *future = NULL;

	now_ms = store_time_ms(images, now_ms);
	for (size_t i = images->nr; i-- > 0;) {
		if (without && without[i])
			continue;
		if (images->image[i].t0_ms <= now_ms)
			return &images->image[i];
		if (!future)
			future = &images->image[i];
	}
	return future;
}

static int find_id(const struct store_images *images, const char *name, const char *id,
		   const struct store_image **ret, struct usnap_err *err)
{
	const struct store_image *found = NULL;

	for (size_t i = 0; i < images->nr; i++) {
		if (strncasecmp(images->image[i].id, id, strlen(id)) != 0)
			continue;
		if (found)
			return usnap_fail(err, -EEXIST,
					  "cannot choose '%s@%s': more than one id begins so", name,
					  id);
		found = &images->image[i];
	}
	if (!found)
		return usnap_fail(err, -ENOENT, "cannot find '%s@%s': no id begins so", name, id);
	*ret = found;
	return 0;
}

int store_find(const struct store_images *images, const char *name, const char *when, int64_t now_s,
	       const struct store_image **ret, struct usnap_err *err)
{
	const struct store_image *found = NULL;
	uint64_t until_ms;
	char first[STORETIME_LOCAL + 1];

	if (!images->nr)
		return usnap_fail(err, -ENOENT, "cannot find '%s': it has no image", name);
	if (!when || !strcmp(when, "latest")) {
		/* All of that second has been; and time(2) may be a tick behind. */
		*ret = store_newest(images, NULL, ((uint64_t)now_s + 2) * 1000);
		return 0;
	}
	if (storetime_parse(when, now_s, &until_ms) < 0) {
		if (strlen(when) >= MIN_ID_PREFIX && strlen(when) <= STORE_ID_LEN &&
		    strspn(when, "0123456789abcdefABCDEF") == strlen(when))
			return find_id(images, name, when, ret, err);
		usnap_fail(err, -EINVAL, "cannot understand '@%s': neither a time nor an id", when);
		return usnap_hint(err,
				  "such as @2026-11-22T10:15, @10:15, @-2h, @1f3a5c7e or @latest");
	}
	for (size_t i = 0; i < images->nr && images->image[i].t0_ms < until_ms; i++)
		found = &images->image[i];
	if (found) {
		*ret = found;
		return 0;
	}
	storetime_local(images->image[0].t0_ms, first);
	usnap_fail(err, -ENOENT, "cannot find '%s@%s': there is no image so old", name, when);
	return usnap_hint(err, "the first one is of %s", first);
}

int store_set_latest(int name_fd, const char *file)
{
	static const char part[] = ".latest.part";

	if (!file)
		return unlinkat(name_fd, "latest", 0) < 0 && errno != ENOENT ? -errno : 0;
	if (unlinkat(name_fd, part, 0) < 0 && errno != ENOENT)
		return -errno;
	if (symlinkat(file, name_fd, part) < 0)
		return errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS ? 0 : -errno;
	if (renameat(name_fd, part, name_fd, "latest") < 0) {
		int r = -errno;

		unlinkat(name_fd, part, 0);
		return r;
	}
	fsync(name_fd);
	return 0;
}

size_t store_clean(int name_fd)
{
	int fd = openat(name_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	struct stat st;
	size_t n = 0;

	while (d && (e = readdir(d))) {
		size_t len = strlen(e->d_name);

		if (e->d_name[0] != '.' || len < 6 || strcmp(e->d_name + len - 5, ".part") != 0 ||
		    fstatat(name_fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
		    S_ISDIR(st.st_mode))
			continue;
		if (unlinkat(name_fd, e->d_name, 0) == 0)
			n++;
	}
	return n;
}
