#include "process/watched.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"

/* As seen from the root directory. */
static const char *below_root(const char *path)
{
	while (*path == '/')
		path++;
	return *path ? path : ".";
}

static bool is_dev(const struct watched *w, const struct stat *st)
{
	return major(st->st_dev) == w->dev_major && minor(st->st_dev) == w->dev_minor;
}

bool watched_is(const struct watched *w, const char *path)
{
	struct stat st;

	return path[0] == '/' && fstatat(w->root, below_root(path), &st, 0) == 0 &&
	       (uint64_t)st.st_ino == w->inode && is_dev(w, &st);
}

/* A descriptor on the file system of the watch. */
static int open_mount(const struct watched *w)
{
	int raw = openat(w->procfd, "mountinfo", O_RDONLY | O_CLOEXEC), fd = -1;
	cleanup_file FILE *mounts = raw >= 0 ? fdopen(raw, "r") : NULL;
	char *line = NULL;
	size_t room = 0;

	if (raw >= 0 && !mounts)
		close(raw);
	while (fd < 0 && mounts && getline(&line, &room, mounts) > 0) {
		unsigned maj, min;
		char dir[4096];
		struct stat st;

		/* "36 35 98:0 /root /mount/point ..."; a blank in a path is \040: not followed */
		if (sscanf(line, "%*d %*d %u:%u %*s %4095s", &maj, &min, dir) != 3 ||
		    maj != w->dev_major || min != w->dev_minor)
			continue;
		fd = openat(w->root, below_root(dir), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		/* Another mount may lie on top. */
		if (fd >= 0 && (fstat(fd, &st) < 0 || !is_dev(w, &st))) {
			close(fd);
			fd = -1;
		}
	}
	free(line);
	return fd;
}

char *watched_by_handle(const struct watched *w)
{
	struct {
		struct file_handle h;
		unsigned char bytes[WATCHED_HANDLE_MAX];
	} handle = {0};
	char link[32], *path = NULL;

	if (!w->handle_len || w->handle_len > WATCHED_HANDLE_MAX)
		return NULL;
	handle.h.handle_bytes = (unsigned)w->handle_len;
	handle.h.handle_type = w->handle_type;
	memcpy(handle.h.f_handle, w->handle, w->handle_len);
	cleanup_fd int mount = open_mount(w);
	cleanup_fd int fd =
		mount < 0 ? -1 : open_by_handle_at(mount, &handle.h, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (io_readlink_at(AT_FDCWD, link, &path) < 0)
		return NULL;
	if (watched_is(w, path))
		return path;
	free(path);
	return NULL;
}

char *watched_above(const struct watched *w, const char *start, unsigned *budget)
{
	char *path = start && start[0] == '/' ? strdup(start) : NULL;

	for (; path && *budget; (*budget)--) {
		if (watched_is(w, path))
			return path;
		char *slash = strrchr(path, '/');
		if (slash == path && !path[1])
			break;
		slash[slash == path] = '\0';
	}
	free(path);
	return NULL;
}

char *watched_in(const struct watched *w, const char *dir, unsigned *budget)
{
	int fd = *budget && dir[0] == '/'
			 ? openat(w->root, below_root(dir), O_RDONLY | O_DIRECTORY | O_CLOEXEC)
			 : -1;
	cleanup_dir DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *e;

	if (fd >= 0 && !d)
		close(fd);
	while (d && *budget && (e = readdir(d))) {
		char *path;

		(*budget)--;
		if ((uint64_t)e->d_ino != w->inode ||
		    asprintf(&path, "%s/%s", dir[1] ? dir : "", e->d_name) < 0)
			continue;
		if (watched_is(w, path))
			return path;
		free(path);
	}
	return NULL;
}

char *watched_beside(const struct watched *w, const char *file, unsigned *budget)
{
	cleanup_free char *dir = file && file[0] == '/' ? strdup(file) : NULL;

	if (!dir)
		return NULL;
	char *slash = strrchr(dir, '/');
	slash[slash == dir] = '\0';
	return watched_in(w, dir, budget);
}
