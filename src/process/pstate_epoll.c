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

/* Further entries of a set are taken at their word: to find one, the kernel walks the set. */
#define ENTRIES_MAX 16384

struct entry {
	int tfd;
	unsigned events;
	unsigned nth; /* of those with its number, in the kernel's order */
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

/* What is known of one set, and of all descriptors while sets are looked at. */
struct search {
	const struct pstate *ps;
	int epfd;
	struct entry *entries; /* in the kernel's order */
	size_t nr_entries;
	/* Descriptors by inode, then in the order of kcmp(2): made for the first that is sought. */
	const struct fd_state **by_file;
};

/* How descriptor fd lies to the file of an entry, in the order of kcmp(2): 0, 1 (before), 2
 * (after), 3 (not the same); negative: cannot be told. */
static long compare_to_file_of(const struct search *s, const struct entry *e, int fd)
{
	struct kcmp_epoll_slot slot = {(uint32_t)s->epfd, (uint32_t)e->tfd, e->nth};
	pid_t pid = s->ps->t->pid;

	return syscall(SYS_kcmp, pid, pid, KCMP_EPOLL_TFD, fd, &slot);
}

static int by_inode_then_file(const void *a, const void *b, void *arg)
{
	const struct fd_state *x = *(const struct fd_state *const *)a;
	const struct fd_state *y = *(const struct fd_state *const *)b;
	pid_t pid = *(const pid_t *)arg;

	if (x->ino != y->ino)
		return x->ino < y->ino ? -1 : 1;
	long r = x == y ? 0 : syscall(SYS_kcmp, pid, pid, KCMP_FILE, x->fd, y->fd);
	return r == 1 ? -1 : r == 2 ? 1 : (x->fd > y->fd) - (x->fd < y->fd);
}

static int sort_by_file(struct search *s)
{
	const struct fd_table *t = &s->ps->prepared;
	pid_t pid = s->ps->t->pid;

	s->by_file = malloc(MAX(t->n, (size_t)1) * sizeof(const struct fd_state *));
	if (!s->by_file)
		return -ENOMEM;
	for (size_t i = 0; i < t->n; i++)
		s->by_file[i] = &t->v[i];
	qsort_r(s->by_file, t->n, sizeof(const struct fd_state *), by_inode_then_file, &pid);
	return 0;
}

/* -1: no descriptor is left of it. */
static int find_file_of(const struct search *s, const struct entry *e)
{
	for (size_t a = 0, b = s->ps->prepared.n; a < b;) {
		size_t m = a + (b - a) / 2;
		const struct fd_state *f = s->by_file[m];
		long r = f->ino == e->ino ? compare_to_file_of(s, e, f->fd) : 1 + (f->ino > e->ino);

		if (r == 0)
			return f->fd;
		if (r == 1)
			a = m + 1;
		else
			b = m;
	}
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

static int by_number_then_place(const void *a, const void *b)
{
	const struct entry *x = *(const struct entry *const *)a;
	const struct entry *y = *(const struct entry *const *)b;

	if (x->tfd != y->tfd)
		return x->tfd < y->tfd ? -1 : 1;
	return (x > y) - (x < y);
}

/* The kernel counts entries of one number in the order of the list. */
static int count_equal_numbers(struct search *s)
{
	cleanup_free struct entry **order =
		malloc(MAX(s->nr_entries, (size_t)1) * sizeof(struct entry *));

	if (!order)
		return -ENOMEM;
	for (size_t i = 0; i < s->nr_entries; i++)
		order[i] = &s->entries[i];
	qsort(order, s->nr_entries, sizeof(struct entry *), by_number_then_place);
	for (size_t i = 1; i < s->nr_entries; i++)
		if (order[i]->tfd == order[i - 1]->tfd)
			order[i]->nth = order[i - 1]->nth + 1;
	return 0;
}

static void parse_entries(struct search *s, const char *text)
{
	s->nr_entries = 0;
	while (text && *text && s->nr_entries < ENTRIES_MAX) {
		struct entry *e = &s->entries[s->nr_entries];

		*e = (struct entry){0};
		text = parse_entry(text, e);
		s->nr_entries += e->tfd >= 0;
	}
}

static int find_strays(struct search *s, struct fd_state *f)
{
	int r = count_equal_numbers(s);

	for (size_t i = 0; i < s->nr_entries && r == 0; i++) {
		const struct entry *e = &s->entries[i];
		const struct fd_state *g = find_fd(&s->ps->prepared, e->tfd);

		/* An inode of its own for each socket: no other file is meant. */
		if (g && g->kind == FD_SOCKET && g->ino == e->ino)
			continue;
		if ((g && compare_to_file_of(s, e, g->fd) == 0) ||
		    compare_to_file_of(s, e, f->fd) < 0)
			continue;
		if (!s->by_file)
			r = sort_by_file(s);
		if (r == 0)
			r = add_stray(f, e, find_file_of(s, e));
	}
	return r;
}

int epoll_prepare(struct pstate *ps)
{
	struct search s = {.ps = ps};
	int r = 0;

	for (size_t i = 0; i < ps->prepared.n && r == 0; i++) {
		struct fd_state *f = &ps->prepared.v[i];
		struct span span;

		if (f->kind != FD_EPOLL || f->info_fd < 0 ||
		    arena_pread(&ps->arena, f->info_fd, &span) < 0)
			continue;
		if (!s.entries)
			s.entries = malloc(ENTRIES_MAX * sizeof(*s.entries));
		if (!s.entries)
			return -ENOMEM;
		s.epfd = f->fd;
		parse_entries(&s, span_text(span));
		r = find_strays(&s, f);
	}
	free(s.entries);
	free(s.by_file);
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
