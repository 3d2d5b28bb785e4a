/*
 * Inotify watches.
 *
 * The kernel tells of a watch the inode and a file handle (fdinfo), not the
 * path. With the handle the file is opened wherever it is now; without the
 * privilege for that (CAP_DAC_READ_SEARCH) the places that the process is
 * known to use are looked through for the inode.
 */
#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

enum {
	MAX_WATCHES = 1 << 20,
	MAX_WD = 1 << 20, /* numbers are given out one by one */
	MAX_HANDLE = 128, /* MAX_HANDLE_SZ */
	MAX_ENTRIES = 1 << 16, /* of a directory that is looked through */
	MAX_BESIDE = 64,
};

struct watch {
	int wd;
	uint32_t mask, dev_major, dev_minor;
	uint64_t inode;
	char *path; /* in the text below */
};

struct rinotify {
	size_t n;
	struct watch v[];
};

/* ---- finding the file --------------------------------------------------------------- */

static bool is_inode(const char *path, const struct watch *w)
{
	struct stat st;

	return stat(path, &st) == 0 && (uint64_t)st.st_ino == w->inode &&
	       major(st.st_dev) == w->dev_major && minor(st.st_dev) == w->dev_minor;
}

/* A descriptor on the file system of the watch. */
static int open_mount(const struct watch *w)
{
	cleanup_file FILE *mounts = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t room = 0;
	int fd = -1;

	while (fd < 0 && mounts && getline(&line, &room, mounts) > 0) {
		unsigned maj, min;
		char dir[4096];
		struct stat st;

		/* "36 35 98:0 /root /mount/point ..."; a blank in a path is \040: not followed */
		if (sscanf(line, "%*d %*d %u:%u %*s %4095s", &maj, &min, dir) != 3 ||
		    maj != w->dev_major || min != w->dev_minor)
			continue;
		fd = open(dir, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		/* Another mount may lie on top. */
		if (fd >= 0 &&
		    (fstat(fd, &st) < 0 || major(st.st_dev) != maj || minor(st.st_dev) != min)) {
			close(fd);
			fd = -1;
		}
	}
	free(line);
	return fd;
}

static char *find_by_handle(const json_t *o, const struct watch *w)
{
	struct {
		struct file_handle h;
		unsigned char bytes[MAX_HANDLE];
	} handle = {0};
	cleanup_free unsigned char *raw = NULL;
	char link[32], *path = NULL;
	int64_t type;
	size_t len;

	if (rjson_int(o, "handle_type", 0, 255, &type, NULL) < 0 ||
	    rjson_hex(o, "handle", MAX_HANDLE, &raw, &len, NULL) < 0 || !raw)
		return NULL;
	handle.h.handle_bytes = (unsigned)len;
	handle.h.handle_type = (int)type;
	memcpy(handle.h.f_handle, raw, len);
	cleanup_fd int mount = open_mount(w);
	cleanup_fd int fd =
		mount < 0 ? -1 : open_by_handle_at(mount, &handle.h, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (io_readlink_at(AT_FDCWD, link, &path) < 0)
		return NULL;
	if (is_inode(path, w))
		return path;
	free(path);
	return NULL;
}

static char *find_in(const char *start, const struct watch *w)
{
	char *path = start && start[0] == '/' ? strdup(start) : NULL;

	while (path) {
		if (is_inode(path, w))
			return path;
		char *slash = strrchr(path, '/');
		if (slash == path && !path[1])
			break;
		slash[slash == path] = '\0';
	}
	free(path);
	return NULL;
}

/* The entries of a directory. */
static char *find_among(const char *dir, const struct watch *w)
{
	cleanup_dir DIR *d = opendir(dir);
	const struct dirent *e;

	for (unsigned n = 0; d && n < MAX_ENTRIES && (e = readdir(d)); n++) {
		char *path;

		if ((uint64_t)e->d_ino != w->inode || asprintf(&path, "%s/%s", dir, e->d_name) < 0)
			continue;
		if (is_inode(path, w))
			return path;
		free(path);
	}
	return NULL;
}

static char *find_beside(const char *file, const struct watch *w)
{
	cleanup_free char *dir = file && file[0] == '/' ? strdup(file) : NULL;

	if (!dir)
		return NULL;
	char *slash = strrchr(dir, '/');
	slash[slash == dir] = '\0';
	return find_among(dir, w);
}

/* Files that the process has open or mapped or works in, the directories above them, and what lies
 * beside them. */
static char *find_nearby(const struct restore *r, const struct watch *w)
{
	const json_t *maps = json_object_get(r->process, "maps");
	static const char *const keys[] = {"cwd", "exe", "root"};
	char *path = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(keys) && !path; i++)
		path = find_in(json_string_value(json_object_get(r->process, keys[i])), w);
	for (size_t i = 0; i < r->files->nr_descs && !path; i++)
		path = find_in(r->files->descs[i].path, w);
	for (size_t i = 0; i < json_array_size(maps) && !path; i++)
		path = find_in(json_string_value(json_object_get(json_array_get(maps, i), "path")),
			       w);
	const char *cwd = json_string_value(json_object_get(r->process, "cwd"));
	if (!path && cwd)
		path = find_among(cwd, w);
	for (size_t i = 0; i < r->files->nr_descs && i < MAX_BESIDE && !path; i++)
		path = find_beside(r->files->descs[i].path, w);
	return path;
}

/* ---- plan ------------------------------------------------------------------------------ */

static int parse_watch(struct restore *r, const struct rdesc *d, const json_t *o, struct watch *w,
		       struct usnap_err *err)
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
	w->path = find_by_handle(o, w);
	if (!w->path)
		w->path = find_nearby(r, w);
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
	json_t *list;
	int ret = rjson_array(d->more, "watches", MAX_WATCHES, &list, err);

	if (ret < 0)
		return ret;
	struct rinotify *p = calloc(1, sizeof(*p) + json_array_size(list) * sizeof(p->v[0]));
	d->state = p;
	if (!p)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
	for (size_t i = 0; i < json_array_size(list); i++) {
		ret = parse_watch(r, d, json_array_get(list, i), &p->v[p->n++], err);
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
