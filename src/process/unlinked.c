#include "process/unlinked.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"

static bool has_prefix(const char *s, const char *prefix)
{
	return !strncmp(s, prefix, strlen(prefix));
}

bool unlinked_maybe(const struct vma *v)
{
	static const char suffix[] = " (deleted)";
	size_t len = strlen(v->path);

	switch (v->kind) {
	case VMA_FILE:
	case VMA_FILE_SHARED:
	case VMA_SHMEM:
	case VMA_SHMEM_PRIVATE:
		break;
	case VMA_HUGETLB:
		/* Anonymous and private: the file behind it never holds a page. */
		if (!v->shared && has_prefix(v->path, "/anon_hugepage"))
			return false;
		break;
	default:
		return false;
	}
	return has_prefix(v->path, "[anon_shmem:") ||
	       (len >= sizeof(suffix) && !strcmp(v->path + len - (sizeof(suffix) - 1), suffix));
}

static enum unlinked_kind kind_of(const char *path)
{
	if (has_prefix(path, "/memfd:"))
		return UNLINKED_MEMFD;
	if (has_prefix(path, "/SYSV"))
		return UNLINKED_SYSV;
	if (has_prefix(path, "/dev/zero (deleted)") || has_prefix(path, "[anon_shmem:") ||
	    has_prefix(path, "/anon_hugepage"))
		return UNLINKED_ANON;
	return UNLINKED_FILE;
}

struct unlinked_file *unlinked_find(const struct unlinked_files *u, const struct stat *st)
{
	for (size_t i = 0; i < u->n; i++)
		if (u->v[i].st.st_ino == st->st_ino && u->v[i].st.st_dev == st->st_dev)
			return &u->v[i];
	return NULL;
}

struct unlinked_file *unlinked_find_mapped(const struct unlinked_files *u, const struct vma *v)
{
	for (size_t i = 0; i < u->n; i++)
		if (u->v[i].map_inode && u->v[i].map_inode == v->inode &&
		    u->v[i].map_dev == unlinked_map_dev(v))
			return &u->v[i];
	return NULL;
}

static struct unlinked_file *append(struct unlinked_files *u)
{
	if (u->n == u->room) {
		size_t room = u->room ? u->room * 2 : 16;
		struct unlinked_file *bigger = realloc(u->v, room * sizeof(*bigger));

		if (!bigger)
			return NULL;
		u->v = bigger;
		u->room = room;
	}
	u->v[u->n] = (struct unlinked_file){.fd = -1, .seals = -1};
	return &u->v[u->n++];
}

/* For reading, and without leaving a trace where that is possible. */
static int open_quietly(int dirfd_, const char *name)
{
	int fd = openat(dirfd_, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOATIME);

	if (fd < 0 && errno == EPERM)
		fd = openat(dirfd_, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int add(struct unlinked_files *u, const struct target *t, const char *name,
	       const struct stat *st, const char *missing, struct unlinked_file **ret)
{
	struct unlinked_file *f = unlinked_find(u, st);
	struct statfs fs;

	if (f && (f->fd >= 0 || missing))
		goto found;
	if (!f) {
		char *path = NULL;

		/* A mapping's name in map_files is the file's, not the one it was given. */
		if (io_readlink_at(t->procfd, name, &path) < 0)
			return 0;
		f = append(u);
		if (!f) {
			free(path);
			return -ENOMEM;
		}
		f->path = path;
		f->kind = kind_of(path);
		f->st = *st;
	}
	f->missing = missing;
	if (!missing) {
		f->fd = open_quietly(t->procfd, name);
		if (f->fd < 0)
			f->missing = "it may not be read";
	}
	if (f->fd >= 0) {
		f->seals = fcntl(f->fd, F_GET_SEALS);
		if (fstatfs(f->fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC)
			f->page_size = (uint64_t)fs.f_bsize;
	}
found:
	if (ret)
		*ret = f;
	return 1;
}

/* Opening a file breaks the lease on it. */
static bool has_lease(const struct target *t, int nr)
{
	char name[32];
	cleanup_free char *text = NULL;

	snprintf(name, sizeof(name), "fdinfo/%d", nr);
	return io_read_file_at(t->procfd, name, KIB(256), &text, NULL) < 0 ||
	       strstr(text, ": LEASE ");
}

int unlinked_add_fd(struct unlinked_files *u, const struct target *t, int nr,
		    struct unlinked_file **ret)
{
	char name[32];
	struct stat st;

	snprintf(name, sizeof(name), "fd/%d", nr);
	if (fstatat(t->procfd, name, &st, 0) < 0 || !S_ISREG(st.st_mode) || st.st_nlink)
		return 0;
	return add(u, t, name, &st, has_lease(t, nr) ? "it has a lease" : NULL, ret);
}

int unlinked_add_mapped(struct unlinked_files *u, const struct target *t, const struct vma *v,
			struct unlinked_file **ret)
{
	struct unlinked_file *f;
	char name[80];
	struct stat st;

	snprintf(name, sizeof(name), "map_files/%llx-%llx", (unsigned long long)v->start,
		 (unsigned long long)v->end);
	if (fstatat(t->procfd, name, &st, 0) < 0 || !S_ISREG(st.st_mode) || st.st_nlink)
		return 0;
	int r = add(u, t, name, &st, NULL, &f);
	if (r <= 0)
		return r;
	f->map_dev = unlinked_map_dev(v);
	f->map_inode = v->inode;
	if (ret)
		*ret = f;
	return 1;
}

int unlinked_scan(struct unlinked_files *u, const struct target *t, const struct maps *maps)
{
	int fd = openat(t->procfd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;
	cleanup_dir DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;

	if (!dir) {
		r = -errno;
		if (fd >= 0)
			close(fd);
		return r;
	}
	for (const struct dirent *e; r >= 0 && (e = readdir(dir));)
		if (e->d_name[0] != '.')
			r = unlinked_add_fd(u, t, atoi(e->d_name), NULL);
	for (size_t i = 0; i < maps->n && r >= 0; i++)
		if (unlinked_maybe(&maps->v[i]) && !unlinked_find_mapped(u, &maps->v[i]))
			r = unlinked_add_mapped(u, t, &maps->v[i], NULL);
	return r < 0 ? r : 0;
}

void unlinked_close(struct unlinked_files *u)
{
	for (size_t i = 0; i < u->n; i++) {
		if (u->v[i].fd >= 0)
			close(u->v[i].fd);
		u->v[i].fd = -1;
	}
}

void unlinked_free(struct unlinked_files *u)
{
	unlinked_close(u);
	for (size_t i = 0; i < u->n; i++)
		free(u->v[i].path);
	free(u->v);
	*u = (struct unlinked_files){0};
}
