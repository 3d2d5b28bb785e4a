#include "restore/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"

enum {
	STEP_BYTES = 1 << 20,
	LEFT_FREE_BYTES = 64 << 20 /* of the file system: others write to it as well */
};

struct spool {
	int fd;
	const char *where; /* for messages */
};

static int open_spool(struct spool *s)
{
	const char *tmpdir = getenv("TMPDIR");
	const char *const dirs[] = {tmpdir && *tmpdir ? tmpdir : "/var/tmp", "/var/tmp"};

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		s->where = dirs[i];
		/* O_EXCL: it can never get a name. */
		s->fd = open(dirs[i], O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600);
		if (s->fd >= 0)
			return 0;
	}
	s->where = "memory";
	s->fd = memfd_create("uffd-snap", MFD_CLOEXEC);
	return s->fd < 0 ? -errno : 0;
}

/* Before a file system is full, not when it is: a full one harms others. */
static int check_room(const struct spool *s, size_t len)
{
	struct statvfs fs;

	if (fstatvfs(s->fd, &fs) < 0 || !fs.f_blocks)
		return 0; /* a memfd without a limit of its own */
	return (uint64_t)fs.f_bavail * fs.f_frsize < (uint64_t)LEFT_FREE_BYTES + len ? -ENOSPC : 0;
}

static int copy(const struct spool *s, int fd, const char *name,
		const volatile sig_atomic_t *cancel, struct usnap_err *err)
{
	cleanup_free char *buf = malloc(STEP_BYTES);

	if (!buf)
		return usnap_fail_errno(err, -ENOMEM, "cannot read '%s'", name);
	for (;;) {
		if (cancel && *cancel)
			return usnap_fail(err, -ECANCELED, "cannot read '%s': interrupted", name);
		ssize_t n = read(fd, buf, STEP_BYTES);

		if (n == 0)
			return 0;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return usnap_fail_errno(err, -errno, "cannot read '%s'", name);
		int r = check_room(s, (size_t)n);
		if (r == 0)
			r = io_write_full(s->fd, buf, (size_t)n);
		if (r < 0) {
			usnap_fail_errno(err, r, "cannot keep '%s' in '%s'", name, s->where);
			if (r == -ENOSPC || r == -EFBIG || r == -EDQUOT)
				return usnap_hint(err, "TMPDIR names the directory where the image "
						       "is kept while it is read");
			return r;
		}
	}
}

int spool_stream(int fd, const char *name, const volatile sig_atomic_t *cancel, int *ret_fd,
		 struct usnap_err *err)
{
	struct spool s = {.fd = -1};

	if (isatty(fd)) {
		usnap_fail(err, -EINVAL, "cannot read '%s': it is a terminal", name);
		return usnap_hint(err, "give the name of an image, or send one through a pipe");
	}
	int r = open_spool(&s);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot keep '%s' in a file", name);
	r = copy(&s, fd, name, cancel, err);
	if (r < 0) {
		close(s.fd);
		return r;
	}
	*ret_fd = s.fd;
	return 0;
}
