/*
 * Pipes whose both ends the process had, and FIFOs.
 *
 * What is queued in a pipe is written into it again, packet by packet where
 * there are packets (O_DIRECT, pipe2(2)).
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

enum {
	MAX_PIPE = 1 << 30
};

/* State of the first description of a pipe. */
struct rpipe {
	int64_t size; /* F_SETPIPE_SZ; 0: not known */
	json_t *packets; /* their lengths, or NULL: it is one stream */
	size_t len;
	unsigned char data[];
};

static struct rpipe *pipe_of(const struct rdesc *d)
{
	return d->node->d[0]->state;
}

static int parse_content(struct restore *r, struct rnode *n, struct usnap_err *err)
{
	cleanup_free unsigned char *data = NULL;
	int64_t size = 0, queued = 0;
	bool read = false;
	json_t *packets = NULL;
	size_t len = 0;

	for (size_t i = 0; i < n->n; i++) {
		const struct rdesc *d = n->d[i];
		int64_t q = 0;
		int ret = 0;

		read |= rdesc_reads(d);
		if (!d->more)
			continue;
		if (!size)
			ret = rjson_int_or(d->more, "size", 0, MAX_PIPE, 0, &size, err);
		if (ret == 0)
			ret = rjson_int_or(d->more, "queued", 0, MAX_PIPE, 0, &q, err);
		if (ret == 0 && !data)
			ret = rjson_hex(d->more, "data", MAX_PIPE, &data, &len, err);
		if (ret == 0 && !packets)
			ret = rjson_array(d->more, "packets", MAX_PIPE, &packets, err);
		if (ret < 0)
			return ret;
		queued = MAX(queued, q);
	}
	struct rpipe *p = calloc(1, sizeof(*p) + len);
	if (!p)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
	p->size = size;
	p->len = len;
	p->packets = packets;
	if (len)
		memcpy(p->data, data, len);
	n->d[0]->state = p;
	/* Nobody can read what nobody held the other end of. */
	if (read && (uint64_t)queued > len)
		return rfile_problem(r, err, RESTORE_REFUSE, "pipe-content",
				     "fd %d: of %lld bytes that wait in %s the image holds %zu",
				     n->d[0]->fd, (long long)queued, n->d[0]->path, len);
	return 0;
}

int rpipe_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	return d->node->d[0] == d ? parse_content(r, d->node, err) : 0;
}

/* A larger pipe than the user may have matters only when what waits does not fit. */
static int fill(const struct rpipe *p, int fd)
{
	if (p->size)
		fcntl(fd, F_SETPIPE_SZ, (int)p->size);
	if (p->packets)
		fcntl(fd, F_SETFL, O_NONBLOCK | O_DIRECT);
	for (size_t done = 0, i = 0; done < p->len; i++) {
		const json_t *packet = json_array_get(p->packets, i);
		uint64_t len = packet ? (uint64_t)json_integer_value(packet) : p->len - done;
		ssize_t n = write(fd, p->data + done, MIN(MAX(len, 1u), p->len - done));

		if (n < 0)
			return errno == EAGAIN ? -ENOSPC : -errno;
		done += (size_t)n;
	}
	return 0;
}

static int make_pipe(struct rnode *n, const struct rpipe *p, int end[2])
{
	int packets = 0;

	for (size_t i = 0; i < n->n; i++)
		packets |= n->d[i]->flags & O_DIRECT;
	if (pipe2(end, O_CLOEXEC | O_NONBLOCK | packets) < 0)
		return -errno;
	return fill(p, end[1]);
}

/* The kernel's O_LARGEFILE, which libc has as 0: set by open(2), not by pipe2(2). */
static bool was_opened(const struct rdesc *d)
{
	uint64_t flags = 0;

	rjson_word_or(d->o, "flags", 0, &flags, NULL);
	return flags & 0100000;
}

/* A reader and a writer get what pipe2(2) made, as they had it before; others open it again. */
static int make_end(const struct rdesc *d, const int end[2], bool given[2])
{
	int access = d->flags & O_ACCMODE, which = access == O_WRONLY, fd;

	if (d->flags & O_PATH)
		return rfile_reopen(end[0], O_PATH);
	if (access != O_RDWR && !given[which] && !was_opened(d)) {
		given[which] = true;
		fd = fcntl(end[which], F_DUPFD_CLOEXEC, 3);
		fd = fd < 0 ? -errno : fd;
	} else {
		fd = rfile_reopen(end[0], access | O_NONBLOCK);
	}
	int ret = fd < 0 ? fd : rfile_set_flags(fd, d->flags);
	if (fd >= 0 && ret < 0)
		close(fd);
	return ret < 0 ? ret : fd;
}

/* All descriptions of the pipe at once. */
int rpipe_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	int end[2] = {-1, -1}, fd = -1;
	bool given[2] = {false, false};
	int ret = make_pipe(d->node, pipe_of(d), end);

	for (size_t i = 0; i < d->node->n && ret == 0; i++) {
		struct rdesc *e = d->node->d[i];
		int made = make_end(e, end, given);

		if (made < 0)
			ret = made;
		else if (e == d)
			fd = made;
		else
			ret = rfiles_park_description(r->files, e, made);
	}
	if (end[0] >= 0) {
		close(end[0]);
		close(end[1]);
	}
	if (ret < 0) {
		if (fd >= 0)
			close(fd);
		return rfile_fail(err, ret, d, "make");
	}
	*ret_fd = fd;
	return 0;
}

/* ---- FIFOs -------------------------------------------------------------------- */

int rfifo_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	int ret = d->deleted ? 0 : rpath_plan(r, d, err);

	return ret < 0 ? ret : rpipe_plan(r, d, err);
}

/* Whether somebody else has it open: then its content is where it was, or was read. */
static bool is_held(const char *path)
{
	int queued = 0;
	char byte;
	cleanup_fd int writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);

	if (writer >= 0)
		return true; /* ENXIO without a reader */
	cleanup_fd int reader = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (reader < 0)
		return true; /* not ours to write to */
	if (ioctl(reader, FIONREAD, &queued) == 0 && queued > 0)
		return true;
	/* The end of the file without a writer, -EAGAIN with one. */
	return read(reader, &byte, 1) != 0;
}

static int make_nameless(void)
{
	char dir[] = "/tmp/uffd-snap-XXXXXX", path[sizeof(dir) + 8];
	int fd = -1, ret = 0;

	if (!mkdtemp(dir))
		return -errno;
	snprintf(path, sizeof(path), "%s/fifo", dir);
	if (mkfifo(path, 0600) < 0 || (fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC)) < 0)
		ret = -errno;
	unlink(path);
	rmdir(dir);
	return ret < 0 ? ret : fd;
}

static int make_fifo(struct restore *r, const struct rdesc *d)
{
	struct rnode *n = d->node;
	bool held = !d->deleted && is_held(d->path);
	int fd = d->deleted ? make_nameless()
			    : open(d->path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;

	if (fd < 0)
		return d->deleted ? fd : -errno;
	int ret = fstat(fd, &st) < 0 ? -errno : S_ISFIFO(st.st_mode) ? 0 : -ESTALE;
	if (ret == 0 && !held)
		ret = fill(pipe_of(d), fd);
	if (ret < 0) {
		close(fd);
		return ret;
	}
	n->base = fd;
	return rfiles_park(r->files, &n->base);
}

/* Opened for both reading and writing first: then no open waits for a peer. */
int rfifo_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	int ret = d->node->base < 0 ? make_fifo(r, d) : 0;

	if (ret < 0)
		return rfile_fail(err, ret, d, "open");
	cleanup_fd int fd = rfile_reopen(
		d->node->base,
		d->flags & O_PATH ? O_PATH : (d->flags & (O_ACCMODE | O_APPEND)) | O_NONBLOCK);
	if (fd < 0)
		return rfile_fail(err, fd, d, "open");
	ret = d->flags & O_PATH ? 0 : rfile_set_flags(fd, d->flags);
	if (ret < 0)
		return rfile_fail(err, ret, d, "set the flags of");
	*ret_fd = take_fd(&fd);
	return 0;
}
