/*
 * In the builder: descriptions made, then put at their numbers.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "restore/rfiles_internal.h"

/* ---- numbers ------------------------------------------------------------------ */

static bool raise_limit(rlim_t nr, struct rlimit *old)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return false;
	*old = rl;
	if (rl.rlim_cur >= nr)
		return true;
	rl.rlim_cur = nr;
	rl.rlim_max = MAX(rl.rlim_max, nr);
	if (setrlimit(RLIMIT_NOFILE, &rl) == 0)
		return true;
	rl = *old;
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	return false;
}

bool rfiles_may_raise_limit(int nr)
{
	struct rlimit old;
	bool ok = raise_limit((rlim_t)nr, &old);

	setrlimit(RLIMIT_NOFILE, &old);
	return ok;
}

/* As many as wanted, or as many as may be. Parked descriptors go above all numbers of the process
 * where there is room, between them where there is not. The process gets its own limits later. */
static void make_room(struct rfiles *f)
{
	int end = f->nr_slots ? f->slots[f->nr_slots - 1].fd + 1 : 3;
	size_t wanted = (size_t)end + f->nr_descs + f->nr_nodes + 64;
	struct rlimit old, rl = {.rlim_cur = 1024};

	raise_limit(wanted, &old);
	getrlimit(RLIMIT_NOFILE, &rl);
	f->park_from = rl.rlim_cur >= wanted ? end + f->nr_keep : 3;
}

static bool is_planned(const struct rfiles *f, int fd)
{
	if (rfiles_slot(f, fd))
		return true;
	/* keep_fd of nodes: above all others. */
	return fd >= f->keep_from && fd < f->keep_from + f->nr_keep;
}

int rfiles_park(struct rfiles *f, int *fd)
{
	int from = *fd, to = f->park_from, ret = 0;

	*fd = -1;
	if (f->nr_parked == f->parked_room) {
		size_t room = MAX(f->parked_room * 2, (size_t)64);
		int *more = reallocarray(f->parked, room, sizeof(*more));

		if (!more) {
			close(from);
			return -ENOMEM;
		}
		f->parked = more;
		f->parked_room = room;
	}
	for (;; to++) {
		to = fcntl(from, F_DUPFD_CLOEXEC, to);
		if (to < 0) {
			ret = -errno;
			break;
		}
		if (!is_planned(f, to))
			break;
		close(to);
	}
	close(from);
	if (ret < 0)
		return ret;
	f->parked[f->nr_parked++] = to;
	f->park_from = to + 1; /* none below comes free before the end */
	*fd = to;
	return 0;
}

/* At its own number if that is free by chance, which it mostly is: the limit may not leave room for
 * twice as many descriptors. */
int rfiles_park_description(struct rfiles *f, struct rdesc *d, int fd)
{
	int ret = 0;

	d->parked = fd;
	if (fd != d->fd && fcntl(d->fd, F_GETFD) >= 0)
		return rfiles_park(f, &d->parked);
	if (fd != d->fd) {
		ret = dup3(fd, d->fd, O_CLOEXEC) < 0 ? -errno : 0;
		close(fd);
	}
	d->parked = ret < 0 ? -1 : d->fd;
	return ret;
}

static int compare_ints(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

static int close_between(unsigned first, unsigned last)
{
	return first <= last && syscall(SYS_close_range, first, last, 0) < 0 ? -errno : 0;
}

/* What the builder came with, and what making things has left. */
static int close_others(struct rfiles *f)
{
	size_t n = f->nr_parked;
	unsigned next = 0;
	int r = 0;
	cleanup_free int *all = calloc(n + f->nr_descs + 1, sizeof(*all));

	if (!all)
		return -ENOMEM;
	if (n)
		memcpy(all, f->parked, n * sizeof(*all));
	for (size_t i = 0; i < f->nr_descs; i++)
		if (f->descs[i].parked == f->descs[i].fd)
			all[n++] = f->descs[i].fd;
	qsort(all, n, sizeof(*all), compare_ints);
	for (size_t i = 0; i < n && r == 0; i++) {
		unsigned fd = (unsigned)all[i];

		r = fd ? close_between(next, fd - 1) : 0;
		next = fd + 1;
	}
	return r < 0 ? r : close_between(next, ~0u);
}

/* ---- flags ---------------------------------------------------------------------- */

int rfile_reopen(int fd, int flags)
{
	char name[32];

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	int r = open(name, (flags & ~O_NOFOLLOW) | O_CLOEXEC | O_NOCTTY);
	return r < 0 ? -errno : r;
}

int rfile_set_flags(int fd, int flags)
{
	const int settable = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME;
	int now = fcntl(fd, F_GETFL);

	if (now < 0)
		return -errno;
	if (!((now ^ flags) & settable))
		return 0;
	return fcntl(fd, F_SETFL, (now & ~settable) | (flags & settable)) < 0 ? -errno : 0;
}

/* ---- one description --------------------------------------------------------------- */

/* Not to block was the process's own wish, and not one of those who share the descriptor with the
 * restorer: where it can be, it has a description of its own. */
static int make_inherited(const struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	struct stat st;
	int fd = -1;

	if (d->flags & O_NONBLOCK && fstat(d->own, &st) == 0 &&
	    (S_ISFIFO(st.st_mode) || isatty(d->own)))
		fd = rfile_reopen(d->own, (fcntl(d->own, F_GETFL) & O_ACCMODE) | O_NONBLOCK);
	if (fd < 0)
		fd = fcntl(d->own, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return rfile_fail(err, -errno, d, "pass on");
	*ret_fd = fd;
	return 0;
}

static int make_null(const struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	int fd = open("/dev/null", (d->flags & (O_ACCMODE | O_NONBLOCK)) | O_CLOEXEC);

	if (fd < 0)
		return usnap_fail_errno(err, -errno, "cannot open '/dev/null' as descriptor %d",
					d->fd);
	*ret_fd = fd;
	return 0;
}

static int make_socket(struct restore *r, const struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	int fd = -1, ret = rsockets_make(r->files->sockets, r, d->id, &fd, err);

	if (ret < 0)
		return ret;
	if ((ret = rfile_set_flags(fd, d->flags)) < 0) {
		close(fd);
		return rfile_fail(err, ret, d, "open");
	}
	*ret_fd = fd;
	return 0;
}

static int make(struct restore *r, struct rdesc *d, int *ret_fd, struct usnap_err *err)
{
	switch (d->how) {
	case RFILE_REDIRECTED:
		return rpath_make_redirect(d, ret_fd, err);
	case RFILE_INHERITED:
		return make_inherited(d, ret_fd, err);
	case RFILE_NULL:
		return make_null(d, ret_fd, err);
	case RFILE_MADE:
		break;
	}
	if (d->kind == RFILE_SOCKET)
		return make_socket(r, d, ret_fd, err);
	if (d->deleted && (d->kind == RFILE_REGULAR || d->kind == RFILE_DIRECTORY))
		return runlinked_make(r, d, ret_fd, err);
	return rfile_ops[d->kind].make(r, d, ret_fd, err);
}

static int make_all(struct restore *r, struct usnap_err *err)
{
	struct rfiles *f = r->files;

	for (size_t i = 0; i < f->nr_descs; i++) {
		struct rdesc *d = &f->descs[i];
		int ret, fd = -1;

		if (d->parked >= 0)
			continue; /* made with another one */
		if ((ret = make(r, d, &fd, err)) < 0 ||
		    (ret = rfiles_park_description(f, d, fd)) < 0)
			return rfile_fail(err, ret, d, "open");
	}
	return f->sockets ? rsockets_made(f->sockets, r, err) : 0;
}

/* ---- their numbers ------------------------------------------------------------------- */

static int put_at(int from, int fd, bool cloexec, struct usnap_err *err)
{
	if (from == fd && fcntl(fd, F_SETFD, cloexec ? FD_CLOEXEC : 0) == 0)
		return 0;
	if (dup3(from, fd, cloexec ? O_CLOEXEC : 0) < 0)
		return usnap_fail_errno(err, -errno, "cannot make descriptor %d", fd);
	return 0;
}

static int put_all(struct rfiles *f, struct usnap_err *err)
{
	for (size_t i = 0; i < f->nr_slots; i++) {
		const struct rslot *s = &f->slots[i];
		int r = put_at(f->descs[s->desc].parked, s->fd, s->cloexec, err);

		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < f->nr_nodes; i++) {
		const struct rnode *n = &f->nodes[i];
		int r = n->keep_fd >= 0 ? put_at(n->base, n->keep_fd, true, err) : 0;

		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < f->nr_parked; i++)
		close(f->parked[i]);
	f->nr_parked = 0;
	return 0;
}

static int settle_all(struct restore *r, struct usnap_err *err)
{
	struct rfiles *f = r->files;

	for (size_t i = 0; i < f->nr_descs; i++) {
		struct rdesc *d = &f->descs[i];
		int ret = d->how == RFILE_MADE && rfile_ops[d->kind].settle
				  ? rfile_ops[d->kind].settle(r, d, err)
				  : 0;
		if (ret < 0)
			return ret;
	}
	return 0;
}

int rfiles_build(struct restore *r, struct usnap_err *err)
{
	struct rfiles *f = r->files;
	int ret;

	make_room(f);
	if ((ret = make_all(r, err)) < 0)
		return ret;
	if ((ret = close_others(f)) < 0)
		return usnap_fail_errno(err, ret, "cannot close the restorer's descriptors");
	if ((ret = put_all(f, err)) < 0)
		return ret;
	return settle_all(r, err);
}
