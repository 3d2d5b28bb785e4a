/*
 * Inotify watches.
 *
 * The image has the path of each, as far as it could be found, and what the
 * kernel tells: the inode and a file handle. A file that is still the same is
 * watched wherever it is by now (process/watched.h). On another machine, and
 * after another boot, the one under the path is.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/util.h"
#include "process/watched.h"
#include "restore/place.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

enum {
	MAX_WATCHES = 1 << 20,
	MAX_WD = 1 << 20, /* numbers are given out one by one */
	MAX_SEARCHED = 1 << 20, /* paths, for all watches of a descriptor */
	MAX_BESIDE = 64,
};

struct watch {
	int wd;
	uint32_t mask, dev_major, dev_minor;
	uint64_t inode;
	char *path;
};

struct rinotify {
	size_t n;
	struct watch v[];
};

/* ---- finding the file --------------------------------------------------------------- */

/* Files that the process has open or mapped or works in, the directories above them, and what lies
 * beside them. */
static char *find_nearby(const struct restore *r, const struct watched *w, unsigned *budget)
{
	const json_t *maps = json_object_get(r->process, "maps");
	static const char *const keys[] = {"cwd", "exe", "root"};
	char *path = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(keys) && !path; i++)
		path = watched_above(w, json_string_value(json_object_get(r->process, keys[i])),
				     budget);
	for (size_t i = 0; i < r->files->nr_descs && !path; i++)
		path = watched_above(w, r->files->descs[i].path, budget);
	for (size_t i = 0; i < json_array_size(maps) && !path; i++)
		path = watched_above(
			w, json_string_value(json_object_get(json_array_get(maps, i), "path")),
			budget);
	const char *cwd = json_string_value(json_object_get(r->process, "cwd"));
	if (!path && cwd)
		path = watched_in(w, cwd, budget);
	for (size_t i = 0; i < r->files->nr_descs && i < MAX_BESIDE && !path; i++)
		path = watched_beside(w, r->files->descs[i].path, budget);
	return path;
}

/* The handle and the inode mean nothing on another machine; its own boot is the one thing that
 * tells this one. */
static int take_recorded(struct restore *r, const struct rdesc *d, struct watch *w, char **path,
			 struct usnap_err *err)
{
	struct stat st;

	if (!*path || (*path)[0] != '/' || place_same_boot(r) || stat(*path, &st) < 0)
		return 0;
	w->path = *path;
	*path = NULL;
	return rfile_problem(r, err, RESTORE_NOTE, "watched-file",
			     "fd %d: watch %d is for '%s', which is another file here", d->fd,
			     w->wd, w->path);
}

static int find(struct restore *r, const struct rdesc *d, const json_t *o, struct watch *w,
		unsigned *budget, struct usnap_err *err)
{
	cleanup_fd int procfd = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_fd int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct watched f = {.procfd = procfd,
			    .root = root,
			    .dev_major = w->dev_major,
			    .dev_minor = w->dev_minor,
			    .inode = w->inode};
	cleanup_free unsigned char *raw = NULL;
	cleanup_free char *recorded = NULL;
	int64_t type;
	int ret;

	if ((ret = rjson_path(o, "path", &recorded, err)) < 0 ||
	    (ret = rjson_int_or(o, "handle_type", 0, 255, 0, &type, err)) < 0 ||
	    (ret = rjson_hex(o, "handle", WATCHED_HANDLE_MAX, &raw, &f.handle_len, err)) < 0)
		return ret;
	f.handle_type = (int)type;
	memcpy(f.handle, raw ? raw : (unsigned char *)"", f.handle_len);
	if (recorded && watched_is(&f, recorded)) {
		w->path = recorded;
		recorded = NULL;
		return 0;
	}
	w->path = watched_by_handle(&f);
	if (!w->path)
		w->path = find_nearby(r, &f, budget);
	return w->path ? 0 : take_recorded(r, d, w, &recorded, err);
}

/* ---- plan ------------------------------------------------------------------------------ */

static int parse_watch(struct restore *r, const struct rdesc *d, const json_t *o, struct watch *w,
		       unsigned *budget, struct usnap_err *err)
{
	int64_t wd, inode;
	uint64_t mask;
	int ret;

	if ((ret = rjson_int(o, "wd", 1, INT32_MAX, &wd, err)) < 0 ||
	    (ret = rjson_int(o, "inode", INT64_MIN, INT64_MAX, &inode, err)) < 0 ||
	    (ret = rjson_word(o, "mask", &mask, err)) < 0 ||
	    (ret = rfile_parse_dev(o, "dev", 16, &w->dev_major, &w->dev_minor, err)) < 0)
		return ret;
	w->wd = (int)wd;
	w->inode = (uint64_t)inode;
	w->mask = (uint32_t)mask & (IN_ALL_EVENTS | IN_ONESHOT | IN_EXCL_UNLINK);
	if ((ret = find(r, d, o, w, budget, err)) < 0)
		return ret;
	if (!w->path)
		return rfile_problem(r, err, RESTORE_REFUSE, "inotify-watch",
				     "fd %d: the file that watch %d is for (inode %llu of device "
				     "%02x:%02x) cannot be found",
				     d->fd, w->wd, (unsigned long long)w->inode, w->dev_major,
				     w->dev_minor);
	if (w->wd > MAX_WD)
		return rfile_problem(r, err, RESTORE_REFUSE, "inotify-watch",
				     "fd %d: watch number %d is too high to be given out again",
				     d->fd, w->wd);
	return 0;
}

static int by_wd(const void *a, const void *b)
{
	int x = ((const struct watch *)a)->wd, y = ((const struct watch *)b)->wd;

	return (x > y) - (x < y);
}

int rinotify_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	unsigned budget = MAX_SEARCHED;
	json_t *list;
	int ret = rjson_array(d->more, "watches", MAX_WATCHES, &list, err);

	if (ret < 0)
		return ret;
	struct rinotify *p = calloc(1, sizeof(*p) + json_array_size(list) * sizeof(p->v[0]));
	d->state = p;
	if (!p)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
	for (size_t i = 0; i < json_array_size(list); i++) {
		ret = parse_watch(r, d, json_array_get(list, i), &p->v[p->n++], &budget, err);
		if (ret < 0)
			return ret;
	}
	qsort(p->v, p->n, sizeof(p->v[0]), by_wd);
	for (size_t i = 1; i < p->n; i++)
		if (p->v[i].wd == p->v[i - 1].wd)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: process.json has watch %d of "
					  "descriptor %d twice",
					  p->v[i].wd, d->fd);
	return 0;
}

void rinotify_forget(struct rdesc *d)
{
	struct rinotify *p = d->state;

	for (size_t i = 0; p && i < p->n; i++)
		free(p->v[i].path);
}

int rinotify_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	int fd = inotify_init1(IN_CLOEXEC | (d->flags & O_NONBLOCK));

	if (fd < 0)
		return rfile_fail(err, -errno, d, "make");
	*ret_fd = fd;
	return 0;
}

/* ---- in the builder ---------------------------------------------------------------------- */

/* What giving numbers back has queued: IN_IGNORED. */
static void drain(int fd)
{
	char buf[8192];
	int flags = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	while (read(fd, buf, sizeof(buf)) > 0)
		;
	fcntl(fd, F_SETFL, flags);
}

/* Numbers ascend, and one that was given back is not given out again before the others
 * (idr_alloc_cyclic() in fs/notify/inotify). */
static int add_watch(int fd, const struct watch *w)
{
	for (unsigned tries = 0; tries < MAX_WD; tries++) {
		int wd = inotify_add_watch(fd, w->path, w->mask | IN_MASK_CREATE);

		if (wd < 0)
			return -errno;
		if (wd == w->wd)
			return 0;
		inotify_rm_watch(fd, wd);
		if (wd > w->wd)
			return -EEXIST;
		if (tries % 4096 == 4095)
			drain(fd);
	}
	return -EEXIST;
}

/* Last of all descriptors: opening files is what is watched for. */
int rinotify_settle(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	const struct rinotify *p = d->state;

	for (size_t i = 0; i < p->n; i++) {
		if (!p->v[i].path)
			continue; /* ignored by the user's wish */
		int ret = add_watch(d->fd, &p->v[i]);
		if (ret < 0)
			return usnap_fail_errno(err, ret,
						"cannot watch '%s' as number %d of descriptor %d",
						p->v[i].path, p->v[i].wd, d->fd);
	}
	drain(d->fd);
	return 0;
}
