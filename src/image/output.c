#include "image/output.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "common/util.h"

struct output {
	char *path; /* as given, for messages */
	char *final; /* name in dirfd */
	char *part; /* name in dirfd until the commit, or NULL: has none */
	int dirfd;
	int fd;
	bool stream;
	bool borrowed; /* fd is standard output */
};

static int open_stdout(struct output *o, struct usnap_err *err)
{
	int flags;

	if (isatty(STDOUT_FILENO)) {
		usnap_fail(err, -EINVAL, "cannot write an image to a terminal");
		return usnap_hint(err, "redirect standard output, or name a file with -o FILE");
	}
	flags = fcntl(STDOUT_FILENO, F_GETFL);
	if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY)
		return usnap_fail(err, -EBADF, "cannot write to standard output: it is closed");
	o->fd = STDOUT_FILENO;
	o->borrowed = o->stream = true;
	return 0;
}

/* Where a symbolic link leads is where the image goes: like a shell's
 * redirection, not like rename(2), which would replace the link. */
static char *follow(const char *path)
{
	char *real = realpath(path, NULL);
	struct stat st;

	if (real || errno != ENOENT || lstat(path, &st) < 0 || !S_ISLNK(st.st_mode))
		return real ? real : strdup(path);
	errno = ENOENT;
	return NULL; /* the link leads nowhere */
}

static int split_path(struct output *o, const char *path, struct usnap_err *err)
{
	cleanup_free char *real = follow(path), *dir = NULL;
	char *slash;

	if (!real)
		return usnap_fail(err, -ENOENT, "cannot write '%s': it is a dangling symbolic link",
				  path);
	slash = strrchr(real, '/');
	o->final = strdup(slash ? slash + 1 : real);
	dir = slash ? strndup(real, slash == real ? 1 : (size_t)(slash - real)) : strdup(".");
	if (!o->final || !dir)
		return usnap_fail_errno(err, -ENOMEM, "cannot write '%s'", path);
	if (!*o->final || !strcmp(o->final, ".") || !strcmp(o->final, ".."))
		return usnap_fail(err, -EISDIR, "cannot write '%s': it names a directory", path);
	/* Long enough for the file, too long for its ".part". */
	if (strlen(o->final) > NAME_MAX)
		return usnap_fail_errno(err, -ENAMETOOLONG, "cannot write '%s'", path);
	o->dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (o->dirfd < 0)
		return usnap_fail_errno(err, -errno, "cannot open directory '%s'", dir);
	return 0;
}

/* A name that nobody has. Short, because NAME_MAX may be near. */
static char *part_name(const char *final)
{
	char *name = NULL;
	uint32_t r = 0;

	if (getrandom(&r, sizeof(r), 0) < 0)
		r = (uint32_t)now_ns();
	if (asprintf(&name, ".%.200s.%06x.part", final, r & 0xffffff) < 0)
		return NULL;
	return name;
}

static int open_part(struct output *o)
{
	for (int tries = 0; tries < 100; tries++) {
		char *name = part_name(o->final);
		int fd;

		if (!name)
			return -ENOMEM;
		fd = openat(o->dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW,
			    0600);
		if (fd >= 0) {
			o->part = name;
			return fd;
		}
		free(name);
		if (errno != EEXIST)
			return -errno;
	}
	return -EEXIST;
}

static int open_new(struct output *o, struct usnap_err *err)
{
	o->fd = openat(o->dirfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	/* Old kernels and some file systems say EISDIR or EINVAL. */
	if (o->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL ||
			  errno == ENOENT || errno == ENOSYS))
		o->fd = open_part(o);
	else if (o->fd < 0)
		o->fd = -errno;
	if (o->fd < 0) {
		int r = o->fd;

		o->fd = -1;
		usnap_fail_errno(err, r, "cannot create '%s'", o->path);
		if (r == -EACCES || r == -EPERM || r == -EROFS)
			usnap_hint(err, "the image is written beside its final name: "
					"the directory must be writable");
		return r;
	}
	/* The umask may have taken even more away. */
	if (fchmod(o->fd, 0600) < 0 && errno != EPERM && errno != EOPNOTSUPP)
		return usnap_fail_errno(err, -errno, "cannot create '%s'", o->path);
	return 0;
}

static int open_named(struct output *o, struct usnap_err *err)
{
	struct stat st;
	int r;

	if (!*o->path)
		return usnap_fail(err, -EINVAL, "cannot write '': the name is empty");
	if (stat(o->path, &st) == 0 && !S_ISREG(st.st_mode)) {
		if (S_ISDIR(st.st_mode))
			return usnap_fail(err, -EISDIR, "cannot write '%s': it is a directory",
					  o->path);
		if (!S_ISFIFO(st.st_mode) && !S_ISCHR(st.st_mode))
			return usnap_fail(err, -EINVAL,
					  "cannot write '%s': neither a file nor a pipe", o->path);
		o->fd = open(o->path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
		if (o->fd < 0 && errno == EINTR)
			return usnap_fail(err, -ECANCELED, "interrupted while '%s' had no reader",
					  o->path);
		if (o->fd < 0)
			return usnap_fail_errno(err, -errno, "cannot open '%s'", o->path);
		if (isatty(o->fd))
			return usnap_fail(err, -EINVAL, "cannot write an image to a terminal");
		o->stream = true;
		return 0;
	}
	if ((r = split_path(o, o->path, err)) < 0)
		return r;
	return open_new(o, err);
}

int output_open(struct output **ret, const char *path, struct usnap_err *err)
{
	struct output *o = calloc(1, sizeof(*o));
	int r;

	if (!o)
		return usnap_fail_errno(err, -ENOMEM, "cannot write '%s'", path);
	o->fd = o->dirfd = -1;
	o->path = strdup(path);
	if (!o->path)
		r = usnap_fail_errno(err, -ENOMEM, "cannot write '%s'", path);
	else
		r = strcmp(path, "-") ? open_named(o, err) : open_stdout(o, err);
	if (r < 0) {
		output_close(o);
		return r;
	}
	*ret = o;
	return 0;
}

int output_fd(const struct output *o)
{
	return o->fd;
}

bool output_is_stream(const struct output *o)
{
	return o->stream;
}

int output_set_name(struct output *o, const char *name, struct usnap_err *err)
{
	const char *slash = strrchr(o->path, '/');
	char *path = NULL, *final = strdup(name);

	if (!final ||
	    asprintf(&path, "%.*s%s", slash ? (int)(slash - o->path + 1) : 0, o->path, name) < 0) {
		free(final);
		return usnap_fail_errno(err, -ENOMEM, "cannot name '%s'", name);
	}
	free(o->final);
	o->final = final;
	free(o->path);
	o->path = path;
	return 0;
}

/* Gives the nameless file a temporary name: linkat(2) cannot replace. */
static int link_part(struct output *o)
{
	char self[64];

	snprintf(self, sizeof(self), "/proc/self/fd/%d", o->fd);
	for (int tries = 0; tries < 100; tries++) {
		char *name = part_name(o->final);

		if (!name)
			return -ENOMEM;
		if (linkat(AT_FDCWD, self, o->dirfd, name, AT_SYMLINK_FOLLOW) == 0) {
			o->part = name;
			return 0;
		}
		free(name);
		if (errno != EEXIST)
			return -errno;
	}
	return -EEXIST;
}

int output_commit(struct output *o, struct usnap_err *err)
{
	struct stat st;
	int r;

	/* A pipe or socket has nothing to sync; a redirected file has. */
	if (o->stream) {
		if (fstat(o->fd, &st) == 0 && S_ISREG(st.st_mode) && fsync(o->fd) < 0)
			return usnap_fail_errno(err, -errno, "cannot sync '%s'", o->path);
		return 0;
	}
	if (fsync(o->fd) < 0)
		return usnap_fail_errno(err, -errno, "cannot sync '%s'", o->path);
	if (!o->part && (r = link_part(o)) < 0)
		return usnap_fail_errno(err, r, "cannot name '%s'", o->path);
	if (renameat(o->dirfd, o->part, o->dirfd, o->final) < 0)
		return usnap_fail_errno(err, -errno, "cannot rename to '%s'", o->path);
	free(o->part);
	o->part = NULL;
	free(o->final);
	o->final = NULL; /* committed: a second commit has nothing to name */
	/* Some file systems have nothing to sync there. */
	if (fsync(o->dirfd) < 0 && errno != EINVAL)
		return usnap_fail_errno(err, -errno, "cannot sync the directory of '%s'", o->path);
	return 0;
}

void output_close(struct output *o)
{
	if (!o)
		return;
	if (o->part)
		unlinkat(o->dirfd, o->part, 0);
	if (o->fd >= 0 && !o->borrowed)
		close(o->fd);
	if (o->dirfd >= 0)
		close(o->dirfd);
	free(o->part);
	free(o->final);
	free(o->path);
	free(o);
}
