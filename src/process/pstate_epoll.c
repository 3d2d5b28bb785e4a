/*
 * Epoll sets. The kernel lists what a set watches by the number under which it
 * was added. The number may have been closed since, while the file is open
 * under another (dup(2)), and may even name another file by now: kcmp(2) can
 * tell, one entry at a time. That takes too long for the freeze, so it is
 * asked a moment before, and holds for the entries that are still the same.
 */
#include <errno.h>
#include <linux/kcmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/util.h"
#include "process/pstate_internal.h"

/* Sets with more entries than this are taken at their word. */
#define ENTRIES_MAX 4096

struct entry {
	int tfd;
	unsigned events;
	uint64_t data, ino;
};

/* "tfd:        5 events:       19 data:                5  pos:0 ino:3b sdev:8" Returns what follows
 * the line, or NULL; tfd -1: it is another line. */
static const char *parse_entry(const char *s, struct entry *e)
{
	unsigned long long data, ino = 0;
	long long pos;

	if (sscanf(s, "tfd: %d events: %x data: %llx pos:%lli ino:%llx", &e->tfd, &e->events, &data,
		   &pos, &ino) < 3)
		e->tfd = -1;
	e->data = data;
	e->ino = ino;
	s = strchr(s, '\n');
	return s ? s + 1 : NULL;
}

static const struct fd_state *find_fd(const struct fd_table *t, int fd)
{
	for (size_t a = 0, b = t->n; a < b;) {
		size_t m = a + (b - a) / 2;

		if (t->v[m].fd == fd)
			return &t->v[m];
		if (t->v[m].fd < fd)
			a = m + 1;
		else
			b = m;
	}
	return NULL;
}

/* ---- before the freeze --------------------------------------------------- */

/* Whether descriptor fd is the file of an entry; nth: of several with that number. */
static bool is_file_of(pid_t pid, int epfd, const struct entry *e, unsigned nth, int fd)
{
	struct kcmp_epoll_slot slot = {(uint32_t)epfd, (uint32_t)e->tfd, nth};

	return syscall(SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd, &slot) == 0;
}

static bool is_answered(pid_t pid, int epfd, const struct entry *e, unsigned nth, int fd)
{
	struct kcmp_epoll_slot slot = {(uint32_t)epfd, (uint32_t)e->tfd, nth};

	return syscall(SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd, &slot) >= 0;
}

static int find_file_of(const struct pstate *ps, int epfd, const struct entry *e, unsigned nth)
{
	const struct fd_table *t = &ps->prepared;

	for (size_t i = 0; i < t->n; i++)
		if (t->v[i].ino == e->ino && is_file_of(ps->t->pid, epfd, e, nth, t->v[i].fd))
			return t->v[i].fd;
	return -1;
}

static int add_stray(struct fd_state *f, const struct entry *e, int fd)
{
	struct epoll_stray *bigger = realloc(f->strays, (f->nr_strays + 1) * sizeof(*bigger));

	if (!bigger)
		return -ENOMEM;
	f->strays = bigger;
	bigger[f->nr_strays++] = (struct epoll_stray){e->tfd, e->ino, e->data, fd};
	return 0;
}

int epoll_prepare(struct pstate *ps, struct fd_state *f, const char *text)
{
	unsigned nr = 0;
	int r = 0;

	for (const char *s = text; s && *s && r == 0 && nr < ENTRIES_MAX;) {
		struct entry e;
		unsigned nth = 0;
		const char *at = s;

		s = parse_entry(at, &e);
		if (e.tfd < 0)
			continue;
		nr++;
		const struct fd_state *g = find_fd(&ps->prepared, e.tfd);
		/* An inode of its own for each socket: no other file is meant. */
		if (g && g->kind == FD_SOCKET && g->ino == e.ino)
			continue;
		/* The kernel counts entries of one number in the order of the list. */
		for (const char *p = text; p && p < at;) {
			struct entry before;

			p = parse_entry(p, &before);
			nth += before.tfd == e.tfd;
		}
		if ((g && is_file_of(ps->t->pid, f->fd, &e, nth, g->fd)) ||
		    !is_answered(ps->t->pid, f->fd, &e, nth, f->fd))
			continue;
		r = add_stray(f, &e, find_file_of(ps, f->fd, &e, nth));
	}
	return r;
}

/* ---- afterwards ---------------------------------------------------------- */

static const struct epoll_stray *find_stray(const struct fd_state *f, const struct entry *e)
{
	for (size_t i = 0; f && i < f->nr_strays; i++)
		if (f->strays[i].tfd == e->tfd && f->strays[i].ino == e->ino &&
		    f->strays[i].data == e->data)
			return &f->strays[i];
	return NULL;
}

json_t *epoll_json(const struct pstate *ps, const struct fd_state *f, const char *text)
{
	const struct fd_state *known = find_fd(&ps->prepared, f->fd);
	json_t *a = json_array();

	for (const char *s = text; s && *s;) {
		struct entry e;

		s = parse_entry(s, &e);
		if (e.tfd < 0)
			continue;
		const struct epoll_stray *stray = find_stray(known, &e);
		const struct fd_state *g = find_fd(&ps->files, stray ? stray->fd : e.tfd);
		json_array_append_new(
			a, json_pack("{s:i,s:o,s:o,s:I,s:o}", "fd", e.tfd, "events",
				     json_address(e.events), "data", json_address(e.data), "inode",
				     (json_int_t)e.ino, "description",
				     g && (g->ino == e.ino || !e.ino) ? json_integer(g->description)
								      : json_null()));
	}
	return json_pack("{s:o}", "set", a);
}
