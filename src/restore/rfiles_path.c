/*
 * What has a name: regular files, directories, device nodes.
 *
 * Compared with what was there at T0. A file that has grown or was written
 * since is what it was, only later: a note. One that is shorter, or another
 * one with other content under the same name, would be read at an offset and
 * with expectations that mean nothing in it: refused unless the user says
 * that he knows. The same bytes under another inode number are a copy, as
 * after a move to another machine, and say nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rfiles_internal.h"

#ifndef TRACEFS_MAGIC
#define TRACEFS_MAGIC 0x74726163
#endif

/* Made by the kernel as they are read: sizes and times say nothing. */
static bool is_pseudo_file(const char *path)
{
	static const long magics[] = {PROC_SUPER_MAGIC,	   SYSFS_MAGIC,	  CGROUP_SUPER_MAGIC,
				      CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC,
				      SECURITYFS_MAGIC,	   BPF_FS_MAGIC};
	cleanup_fd int fd = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct statfs sf;

	if (fd < 0 || fstatfs(fd, &sf) < 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(magics); i++)
		if ((long)sf.f_type == magics[i])
			return true;
	return false;
}

/* /proc/PID of the process itself: another number in another namespace. */
static int rename_own_proc(const struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	char prefix[32];
	char *path;
	int len = snprintf(prefix, sizeof(prefix), "/proc/%d", (int)r->files->image_pid);

	if (strncmp(d->path, prefix, (size_t)len) != 0 ||
	    (d->path[len] != '/' && d->path[len] != '\0'))
		return 0;
	if (asprintf(&path, "/proc/self%s", d->path + len) < 0)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
	free(d->path);
	d->path = path;
	return 0;
}

static int64_t mtime_of(const struct stat *st)
{
	return st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec;
}

static bool has_changed(const struct rdesc *d, const struct stat *st)
{
	return st->st_size != d->size || mtime_of(st) != d->mtime_ns;
}

static bool is_another(const struct rdesc *d, const struct stat *st)
{
	return (uint64_t)st->st_ino != d->inode && has_changed(d, st);
}

static int check_content(struct restore *r, const struct rdesc *d, const struct stat *st,
			 struct usnap_err *err)
{
	enum restore_severity severity = r->o->allow_changed_files ? RESTORE_NOTE : RESTORE_REFUSE;

	if (is_pseudo_file(d->path))
		return 0;
	if (st->st_size < d->size)
		return rfile_problem(r, err, severity, "changed-file",
				     "fd %d: '%s' has %lld bytes, and had %lld when the snapshot "
				     "was taken",
				     d->fd, d->path, (long long)st->st_size, (long long)d->size);
	if (is_another(d, st))
		return rfile_problem(r, err, severity, "changed-file",
				     "fd %d: '%s' is another file than when the snapshot was taken",
				     d->fd, d->path);
	if (has_changed(d, st))
		return rfile_problem(r, err, RESTORE_NOTE, "written-file",
				     "fd %d: '%s' was written since the snapshot was taken", d->fd,
				     d->path);
	return 0;
}

/* Of a file that cannot be had; ret: of adding the problem. */
static int suggest_another(struct restore *r, const struct rdesc *d, int ret, struct usnap_err *err)
{
	if (ret < 0)
		return ret;
	ret = restore_problem_hint(r, "--fd %d=PATH gives it another file", d->fd);
	return ret < 0 ? usnap_fail_errno(err, ret, "cannot restore the descriptors") : 0;
}

static int wanted_access(const struct rdesc *d)
{
	return (rdesc_reads(d) ? R_OK : 0) | (rdesc_writes(d) ? W_OK : 0);
}

static bool may_open(const struct rdesc *d)
{
	return d->flags & O_PATH || faccessat(AT_FDCWD, d->path, wanted_access(d), AT_EACCESS) == 0;
}

static int check_permission(struct restore *r, const struct rdesc *d, struct usnap_err *err)
{
	if (may_open(d))
		return 0;
	int mode = wanted_access(d);
	int ret = rfile_problem(r, err, RESTORE_FATAL, "no-permission",
				"fd %d: '%s' cannot be opened for %s: %s", d->fd, d->path,
				mode == (R_OK | W_OK) ? "reading and writing"
				: mode == W_OK	      ? "writing"
						      : "reading",
				strerror(errno));
	return suggest_another(r, d, ret, err);
}

static bool same_type(const struct rdesc *d, const struct stat *st)
{
	if ((st->st_mode & S_IFMT) != (d->mode & S_IFMT))
		return false;
	return (d->kind != RFILE_CHAR && d->kind != RFILE_BLOCK) ||
	       (major(st->st_rdev) == d->rdev_major && minor(st->st_rdev) == d->rdev_minor);
}

bool rpath_is_as_it_was(const struct rdesc *d)
{
	struct stat st;

	if (d->path[0] != '/' || lstat(d->path, &st) < 0 || !same_type(d, &st) || !may_open(d))
		return false;
	return d->kind != RFILE_REGULAR || is_pseudo_file(d->path) ||
	       (st.st_size >= d->size && !is_another(d, &st));
}

int rpath_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	struct stat st;
	int ret = rename_own_proc(r, d, err);

	if (ret < 0)
		return ret;
	if (d->path[0] != '/' || lstat(d->path, &st) < 0) {
		ret = rfile_problem(r, err, RESTORE_FATAL, "missing-file", "fd %d: '%s': %s", d->fd,
				    d->path,
				    d->path[0] == '/' ? strerror(errno) : "has no path here");
		return suggest_another(r, d, ret, err);
	}
	if (!same_type(d, &st)) {
		ret = rfile_problem(r, err, RESTORE_FATAL, "replaced-file",
				    "fd %d: '%s' is no longer a %s", d->fd, d->path,
				    d->kind == RFILE_REGULAR	 ? "regular file"
				    : d->kind == RFILE_DIRECTORY ? "directory"
				    : d->kind == RFILE_FIFO	 ? "FIFO"
				    : d->kind == RFILE_SYMLINK	 ? "symbolic link"
								 : "device of this kind");
		return suggest_another(r, d, ret, err);
	}
	if ((d->kind == RFILE_REGULAR || d->kind == RFILE_SYMLINK) &&
	    (ret = check_content(r, d, &st, err)) < 0)
		return ret;
	return check_permission(r, d, err);
}

/* Without blocking, whatever lies there; the flag goes again if it was not set. */
static int open_named(const char *path, int flags)
{
	int extra = O_CLOEXEC | O_NOCTTY | (flags & O_PATH ? 0 : O_NONBLOCK);
	int fd = open(path, flags | extra);

	/* Only the owner of a file may ask for it. */
	if (fd < 0 && errno == EPERM && flags & O_NOATIME)
		fd = open(path, (flags & ~O_NOATIME) | extra);
	return fd < 0 ? -errno : fd;
}

int rpath_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	struct stat seen, st;

	/* Looked at first: to open a device can do something. O_NOFOLLOW would be seen in its flags. */
	if (lstat(d->path, &seen) < 0)
		return rfile_fail(err, -errno, d, "open");
	if (!same_type(d, &seen))
		return rfile_fail(err, -ESTALE, d, "open");
	/* It can have been opened by way of /proc/self/fd, without O_NOFOLLOW. */
	cleanup_fd int fd =
		open_named(d->path, d->kind == RFILE_SYMLINK ? O_PATH | O_NOFOLLOW : d->flags);
	if (fd < 0)
		return rfile_fail(err, fd, d, "open");
	if (fstat(fd, &st) < 0 || st.st_ino != seen.st_ino || st.st_dev != seen.st_dev)
		return rfile_fail(err, -ESTALE, d, "open");
	if (!(d->flags & O_PATH)) {
		int ret = rfile_set_flags(fd, d->flags);

		if (ret < 0)
			return rfile_fail(err, ret, d, "set the flags of");
		/* Devices have no offset, or none that can be set. */
		if (d->offset && lseek(fd, d->offset, SEEK_SET) < 0 &&
		    (d->kind == RFILE_REGULAR || d->kind == RFILE_DIRECTORY))
			return rfile_fail(err, -errno, d, "seek in");
	}
	*ret_fd = take_fd(&fd);
	return 0;
}

/* ---- redirected ------------------------------------------------------------------ */

int rpath_plan_redirect(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	if (faccessat(AT_FDCWD, d->redirect, wanted_access(d), AT_EACCESS) == 0)
		return 0;
	int code = -errno;
	usnap_fail_errno(err, code, "cannot open '%s' as descriptor %d", d->redirect, d->fd);
	if (code == -ENOENT && rdesc_writes(d))
		return usnap_hint(err, "a restore creates no files: make an empty one first");
	return code;
}

/* The same file under another name goes on where it was; output to any other goes to its end, input
 * starts at its beginning. */
int rpath_make_redirect(struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	cleanup_fd int fd = open_named(d->redirect, d->flags & ~(O_DIRECTORY | O_NOFOLLOW));
	struct stat st;

	if (fd < 0)
		return rfile_fail(err, fd, d, "open");
	if (fstat(fd, &st) < 0)
		return rfile_fail(err, -errno, d, "open");
	if (!(d->flags & O_PATH))
		rfile_set_flags(fd, d->flags);
	if (S_ISREG(st.st_mode) && !(d->flags & O_PATH)) {
		if (d->kind == RFILE_REGULAR && st.st_size >= d->size)
			lseek(fd, d->offset, SEEK_SET);
		else if (rdesc_writes(d))
			lseek(fd, 0, SEEK_END);
	}
	*ret_fd = take_fd(&fd);
	return 0;
}
