/*
 * Epoll sets.
 *
 * An entry belongs to a number and the open file description that the number
 * had when it was added; the description may have gone on under another
 * number since, and the number to another file. The image says which
 * description it was ("description"), one of an earlier build the inode only.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

enum {
	MAX_ENTRIES = 1 << 22,
	/* EP_PRIVATE_BITS of fs/eventpoll.c: all that is left of an entry that has reported once. */
	MODE_BITS = EPOLLWAKEUP | (int)EPOLLONESHOT | (int)EPOLLET | EPOLLEXCLUSIVE,
};

struct entry {
	int fd;
	int64_t description; /* -1: not told, -2: closed */
	bool has_inode;
	uint64_t inode;
	struct epoll_event event;
};

struct repoll {
	size_t n;
	struct entry v[];
};

static int parse_entry(const json_t *o, struct entry *e, struct usnap_err *err)
{
	uint64_t events, data;
	int64_t fd, inode;
	int r;

	if ((r = rjson_int(o, "fd", 0, INT32_MAX - 1, &fd, err)) < 0 ||
	    (r = rjson_word(o, "events", &events, err)) < 0 ||
	    (r = rjson_word(o, "data", &data, err)) < 0 ||
	    (r = rjson_int_or(o, "inode", INT64_MIN, INT64_MAX, 0, &inode, err)) < 0)
		return r;
	e->fd = (int)fd;
	e->event.events = (uint32_t)events;
	e->event.data.u64 = data;
	e->inode = (uint64_t)inode;
	e->has_inode = inode != 0;
	const json_t *told = json_object_get(o, "description");
	return rjson_int_or(o, "description", 0, INT64_MAX, told ? -2 : -1, &e->description, err);
}

static bool is_at(const struct rfiles *f, const struct entry *e, int fd)
{
	const struct rslot *s = rfiles_slot(f, fd);
	const struct rdesc *d = s ? &f->descs[s->desc] : NULL;

	if (d && e->description >= 0)
		return d->id == e->description;
	return d && (!e->has_inode || !d->has_stat || d->inode == e->inode);
}

/* Where the description is now that had the number of e when e was added; -1: nowhere. */
static int number_of(const struct rfiles *f, const struct entry *e)
{
	if (e->description == -2)
		return -1;
	if (is_at(f, e, e->fd))
		return e->fd;
	for (size_t i = 0; i < f->nr_descs && e->description >= 0; i++)
		if (f->descs[i].id == e->description)
			return f->descs[i].fd;
	if (e->description >= 0)
		return -1;
	for (size_t i = 0; i < f->nr_nodes && e->has_inode; i++)
		if (f->nodes[i].d[0]->inode == e->inode)
			return f->nodes[i].d[0]->fd;
	return -1;
}

int repoll_plan(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	json_t *set;
	int ret = rjson_array(d->more, "set", MAX_ENTRIES, &set, err);

	if (ret < 0)
		return ret;
	struct repoll *p = calloc(1, sizeof(*p) + json_array_size(set) * sizeof(p->v[0]));
	d->state = p;
	if (!p)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the descriptors");
	for (size_t i = 0; i < json_array_size(set); i++) {
		struct entry *e = &p->v[p->n];

		if ((ret = parse_entry(json_array_get(set, i), e, err)) < 0)
			return ret;
		if (number_of(r->files, e) >= 0)
			p->n++;
		else if ((ret = rfile_problem(r, err, RESTORE_NOTE, "epoll-entry",
					      "fd %d: waits for descriptor %d, which the process "
					      "has closed",
					      d->fd, e->fd)) < 0)
			return ret;
	}
	return 0;
}

int repoll_make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);

	if (fd < 0)
		return rfile_fail(err, -errno, d, "make");
	*ret_fd = fd;
	return 0;
}

/* ---- when every descriptor is at its number -------------------------------------- */

static int add(int epfd, const struct entry *e)
{
	struct epoll_event event = e->event;

	return epoll_ctl(epfd, EPOLL_CTL_ADD, e->fd, &event) < 0 ? -errno : 0;
}

/* Under a number that is another file's by now, or nobody's: for a moment it is given back. */
static int add_moved(const struct rfiles *f, int epfd, const struct entry *e, int from)
{
	const struct rslot *s = rfiles_slot(f, e->fd);
	cleanup_fd int saved = s ? fcntl(e->fd, F_DUPFD_CLOEXEC, 0) : -1;

	if ((s && saved < 0) || dup3(from, e->fd, O_CLOEXEC) < 0)
		return -errno;
	int r = add(epfd, e);
	if (!s)
		close(e->fd);
	else if (dup3(saved, e->fd, s->cloexec ? O_CLOEXEC : 0) < 0)
		return -errno;
	return r;
}

/* With EPOLLONESHOT an entry that has reported is silent until it is set again. To make it silent
 * it has to report: where the file is ready for anything at all, that is brought about. Elsewhere
 * it stays open to errors, which the kernel adds to every new entry. */
static bool is_silent(const struct entry *e)
{
	return e->event.events & EPOLLONESHOT && !(e->event.events & ~(uint32_t)MODE_BITS);
}

static int add_silent(const struct rfiles *f, int epfd, const struct entry *e, int from)
{
	struct entry loud = *e;
	struct epoll_event event;

	if (from != e->fd)
		return add_moved(f, epfd, e, from);
	loud.event.events |= EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP;
	int r = add(epfd, &loud);
	if (r < 0 || epoll_wait(epfd, &event, 1, 0) == 1)
		return r;
	event = e->event;
	return epoll_ctl(epfd, EPOLL_CTL_MOD, e->fd, &event) < 0 ? -errno : 0;
}

static int add_entry(const struct rfiles *f, int epfd, const struct entry *e)
{
	int from = number_of(f, e);

	if (is_silent(e))
		return add_silent(f, epfd, e, from);
	return from == e->fd ? add(epfd, e) : add_moved(f, epfd, e, from);
}

/* The silent ones first, so that what reports is the one just added. */
int repoll_settle(struct restore *r, struct rdesc *d, struct usnap_err *err)
{
	const struct repoll *p = d->state;

	for (int silent = 1; silent >= 0; silent--)
		for (size_t i = 0; i < p->n; i++) {
			const struct entry *e = &p->v[i];
			int ret = is_silent(e) == silent ? add_entry(r->files, d->fd, e) : 0;

			/* A substitute such as /dev/null cannot be waited for: it is always ready. */
			if (ret < 0 && ret != -EPERM)
				return usnap_fail_errno(
					err, ret, "cannot add descriptor %d to the epoll set %d",
					e->fd, d->fd);
		}
	return 0;
}
