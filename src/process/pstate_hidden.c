/*
 * What the process has open, or stands in, under a path that does not lead
 * there: another mount covers it, or its own was taken away (umount -l). The
 * kernel tells the path all the same, and a restore would find nothing there,
 * or something else.
 *
 * Looked at when the target runs again. Nothing is opened: paths are asked of
 * stat(2) alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "common/io.h"
#include "common/util.h"
#include "process/pstate_internal.h"

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static bool has_our_mounts(const struct pstate *ps)
{
	const char *theirs = json_string_value(json_object_get(ps->namespaces, "mnt"));
	cleanup_free char *own = NULL;

	return theirs && io_readlink_at(AT_FDCWD, "/proc/self/ns/mnt", &own) == 0 &&
	       !strcmp(own, theirs);
}

/* -ENOENT: nothing has this path. The kernel tells paths from our root, or from the top of the
 * target's mounts where those are others. */
static int stat_path(const struct pstate *ps, const char *path, struct stat *ret)
{
	static const int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT;
	char name[PATH_MAX + 8];
	int r;

	if (!ps->root || path[0] != '/' || strlen(path) >= PATH_MAX)
		return -EINVAL;
	size_t len = strcmp(ps->root, "/") != 0 ? strlen(ps->root) : 0;
	if (!strncmp(path, ps->root, len) && (path[len] == '/' || !path[len])) {
		snprintf(name, sizeof(name), "root/%s", path + len);
		r = fstatat(ps->t->procfd, name, ret, flags);
	} else {
		if (!has_our_mounts(ps))
			return -EXDEV;
		r = fstatat(AT_FDCWD, path, ret, flags);
	}
	if (r < 0)
		return errno == ENOTDIR ? -ENOENT : -errno;
	return 0;
}

/* As is_message_queue(): only what looks like it has its file system asked. */
static bool lies_in_proc(const struct pstate *ps, const struct fd_state *f)
{
	return f->has_stat && major(f->st.st_dev) == 0 && f->st.st_size == 0 &&
	       fd_lies_in(ps, f, PROC_SUPER_MAGIC);
}

/* What lies in /proc has its name for as long as it is there, but the kernel forgets that it had it: any
 * look at a name below /proc/PID/net does that to what is open there. */
static void name_of_proc(const struct pstate *ps, struct fd_state *f)
{
	size_t len = strlen(f->link), tail = strlen(" (deleted)");

	if (f->has_stat && f->st.st_nlink && path_says_deleted(f->link) && lies_in_proc(ps, f))
		f->link[len - tail] = '\0';
}

/* The kernel adds " (deleted)" to what has no name; but a name can end so. */
void names_judge(struct pstate *ps)
{
	struct stat named, st;

	for (size_t i = 0; i < ps->files.n; i++) {
		struct fd_state *f = &ps->files.v[i];

		name_of_proc(ps, f);
		f->ends_so = f->has_stat && f->st.st_nlink && path_says_deleted(f->link) &&
			     stat_path(ps, f->link, &named) == 0 && same_file(&named, &f->st);
	}
	ps->cwd_ends_so = path_says_deleted(ps->cwd) && stat_path(ps, ps->cwd, &named) == 0 &&
			  fstatat(ps->t->procfd, "cwd", &st, 0) == 0 && same_file(&named, &st);
}

bool cwd_is_deleted(const struct pstate *ps)
{
	return path_says_deleted(ps->cwd) && !ps->cwd_ends_so;
}

static bool seems_elsewhere(const struct pstate *ps, int dirfd_, const char *link, const char *path)
{
	cleanup_free char *text = NULL;
	struct stat named, st;
	int r = stat_path(ps, path, &named);

	if (r < 0 && r != -ENOENT)
		return false;
	return fstatat(dirfd_, link, &st, 0) == 0 && !(r == 0 && same_file(&named, &st)) &&
	       io_readlink_at(dirfd_, link, &text) == 0 && !strcmp(text, path);
}

/* Whether dirfd/link, a link of /proc, is of another file than its text path leads to. What has been
 * renamed, removed or closed since T0 is not: that is for a restore to judge. */
static bool leads_elsewhere(const struct pstate *ps, int dirfd_, const char *link, const char *path)
{
	/* Twice: a file that is replaced just now is seen once at most. */
	return seems_elsewhere(ps, dirfd_, link, path) && seems_elsewhere(ps, dirfd_, link, path);
}

static void limit_descriptor(const struct pstate *ps, json_t *l, const struct fd_state *f)
{
	char link[16];

	/* A name of /proc means another file to whoever looks in its stead. */
	if ((f->kind != FD_REGULAR && f->kind != FD_DIRECTORY && f->kind != FD_SYMLINK) ||
	    fd_is_deleted(f) || lies_in_proc(ps, f))
		return;
	snprintf(link, sizeof(link), "%d", f->fd);
	if (leads_elsewhere(ps, ps->fd_dir, link, f->link))
		limit_add(l, "hidden-file", "refuse",
			  "fd %d: %s: another mount covers it, or its own is gone: its path does "
			  "not lead there",
			  f->fd, f->link);
}

/* Only where there is nothing at all: of files of overlayfs a mapping tells other numbers than the path. */
static bool is_missing(const struct pstate *ps, const struct vma *v)
{
	char link[64];
	cleanup_free char *text = NULL;
	struct stat st;

	snprintf(link, sizeof(link), "map_files/%llx-%llx", (unsigned long long)v->start,
		 (unsigned long long)v->end);
	/* Private memory of huge pages has the name of a file that never was. */
	return !path_says_deleted(v->path) && stat_path(ps, v->path, &st) == -ENOENT &&
	       io_readlink_at(ps->t->procfd, link, &text) == 0 && !strcmp(text, v->path);
}

void limit_hidden(const struct pstate *ps, json_t *l)
{
	if (ps->cwd[0] && !cwd_is_deleted(ps) && leads_elsewhere(ps, ps->t->procfd, "cwd", ps->cwd))
		limit_add(l, "hidden-file", "refuse",
			  "its working directory %s: another mount covers it, or its own is gone: "
			  "its path does not lead there",
			  ps->cwd);
	for (size_t i = 0; i < ps->files.n; i++)
		limit_descriptor(ps, l, &ps->files.v[i]);
	for (size_t i = 0; i < ps->maps->n; i++) {
		const struct vma *v = &ps->maps->v[i];

		if (mapped_has_file(v) && !mapped_is_seen(ps->maps, i) && is_missing(ps, v))
			limit_add(l, "hidden-file", "refuse",
				  "0x%llx: %s: its path does not lead to what is mapped",
				  (unsigned long long)v->start, v->path);
	}
}
