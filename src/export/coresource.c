#include "export/coresource.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "common/util.h"

static uint64_t stat_ns(const struct timespec *ts)
{
	return (uint64_t)ts->tv_sec * 1000000000u + (uint64_t)ts->tv_nsec;
}

/* The change time cannot be set back (utimensat(2) sets it to now), so a file
 * whose times all lie before T0 has had its bytes since. Time stamps are as
 * coarse as a tick: what changed within the last one may carry the tick's
 * beginning. A second is far more than that. */
#define STAMP_GRAIN_NS 1000000000u

static int source_same(const struct core_source *s, const struct stat *st)
{
	if (!S_ISREG(st->st_mode))
		return -ESTALE;
	if (st->st_ino != s->inode || major(st->st_dev) != s->dev_major ||
	    minor(st->st_dev) != s->dev_minor)
		return -ESTALE;
	if (st->st_ctim.tv_sec < 0 || st->st_mtim.tv_sec < 0)
		return -ESTALE;
	if (stat_ns(&st->st_ctim) + STAMP_GRAIN_NS > s->t0_ns ||
	    stat_ns(&st->st_mtim) + STAMP_GRAIN_NS > s->t0_ns)
		return -ESTALE;
	return 0;
}

int core_source_open(struct core_source *ret, const char *path, uint64_t inode, uint32_t dev_major,
		     uint32_t dev_minor, uint64_t t0_ns)
{
	struct core_source s = {-1, inode, dev_major, dev_minor, t0_ns};
	struct stat st;
	char link[64];
	int r;

	/* The path is an image's word: look before opening, for to open a
	 * device or a FIFO is to act on it. */
	cleanup_fd int probe = open(path, O_PATH | O_CLOEXEC);
	if (probe < 0)
		return -errno;
	if (fstat(probe, &st))
		return -errno;
	r = source_same(&s, &st);
	if (r)
		return r;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", probe);
	s.fd = open(link, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (s.fd < 0)
		return -errno;
	*ret = s;
	return 0;
}

int core_source_read(const struct core_source *s, void *buf, size_t len, uint64_t offset)
{
	char *p = buf;

	while (len) {
		/* Offsets beyond the signed range lie beyond the end of any file. */
		ssize_t n = offset > INT64_MAX ? 0 : pread(s->fd, p, len, (off_t)offset);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (n == 0) {
			memset(p, 0, len);
			return 0;
		}
		p += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

int core_source_check(const struct core_source *s)
{
	struct stat st;

	if (fstat(s->fd, &st))
		return -errno;
	return source_same(s, &st);
}

void core_source_close(struct core_source *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}
