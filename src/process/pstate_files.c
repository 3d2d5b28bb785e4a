/*
 * The descriptor table: listed, classified and opened beforehand, verified
 * and brought up to date in the freeze.
 *
 * A descriptor costs one pread() of its fdinfo in the freeze (1.5 us against
 * 6 with open and close): flags, offset and what moves for its kind are in it,
 * and the inode, which tells whether it is still what it was. An open fdinfo
 * holds no reference to the file behind the descriptor. The number of open
 * descriptors is the size of /proc/PID/fd (Linux 6.2): when it agrees and
 * none is gone, none is new.
 *
 * Two descriptors of one open file description are told by kcmp(2), asked
 * only where fdinfo does not tell them apart. Before the freeze they are
 * put in the order that kcmp gives; in it, neighbours that are still in order
 * are as they were.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "process/pstate_internal.h"

/* Of our own descriptors, some must be left for others. */
#define FDS_SPARE 256
/* How many regular files are asked for their size in the freeze (3 us each);
 * the rest keep what they had before. */
#define FRESH_STATS_MAX 64

void fd_free(struct fd_state *f)
{
	free(f->link);
	if (f->info_fd >= 0)
		close(f->info_fd);
	if (f->pipe_copy >= 0)
		close(f->pipe_copy);
	socket_free(f->sock);
	free(f->data);
	free(f->packets);
	free(f->strays);
}

void files_free(struct fd_table *t)
{
	for (size_t i = 0; i < t->n; i++)
		fd_free(&t->v[i]);
	free(t->v);
	*t = (struct fd_table){0};
}

static struct fd_state *table_add(struct fd_table *t, int fd)
{
	if (t->n == t->room) {
		size_t room = t->room ? t->room * 2 : 64;
		struct fd_state *bigger = realloc(t->v, room * sizeof(*bigger));
		if (!bigger)
			return NULL;
		t->v = bigger;
		t->room = room;
	}
	t->v[t->n] = (struct fd_state){
		.fd = fd, .info_fd = -1, .pipe_copy = -1, .pipe_size = -1, .pipe_queued = -1};
	return &t->v[t->n++];
}

#ifndef MQUEUE_MAGIC
#define MQUEUE_MAGIC 0x19800202
#endif
#define MQUEUE_TEXT_BYTES 80 /* of any of its files (FILENT_SIZE of ipc/mqueue.c) */

bool fd_lies_in(const struct pstate *ps, const struct fd_state *f, long magic)
{
	char path[64];
	struct statfs sf;

	snprintf(path, sizeof(path), "/proc/self/fd/%d/%d", ps->fd_dir, f->fd);
	return statfs(path, &sf) == 0 && (long)sf.f_type == magic;
}

/* Of mq_open(3): the mount is the kernel's own, and the path "/NAME". Only what looks like it has its
 * file system asked, for that of a network can take long to answer. */
static bool is_message_queue(const struct pstate *ps, const struct fd_state *f)
{
	return f->kind == FD_REGULAR && f->has_stat && major(f->st.st_dev) == 0 &&
	       f->st.st_size == MQUEUE_TEXT_BYTES && strrchr(f->link, '/') == f->link &&
	       fd_lies_in(ps, f, MQUEUE_MAGIC);
}

static int look_at(const struct pstate *ps, struct fd_state *f)
{
	char name[16];
	char *link = NULL;

	snprintf(name, sizeof(name), "%d", f->fd);
	int r = io_readlink_at(ps->fd_dir, name, &link);
	if (r < 0)
		return r;
	free(f->link);
	f->link = link;
	f->has_stat = fstatat(ps->fd_dir, name, &f->st, 0) == 0;
	f->kind = fd_classify(f->link, f->has_stat ? &f->st : NULL);
	if (is_message_queue(ps, f))
		f->kind = FD_MQUEUE;
	return 0;
}

/* What of fdinfo tells one description from another. The hash leaves out
 * close-on-exec, which belongs to the descriptor. Every text begins with
 * pos, flags, mnt_id and (Linux 5.14) ino, a line each. */
static void parse_info(struct fd_state *f, const char *text)
{
	uint64_t h = 14695981039346656037u; /* FNV-1a */

	f->ino = f->mnt_id = f->flags = 0;
	for (const char *s = text; *s;) {
		const char *eol = strchrnul(s, '\n');

		if (!strncmp(s, "flags:", 6))
			f->flags = strtoull(s + 6, NULL, 8);
		else if (!strncmp(s, "mnt_id:", 7))
			f->mnt_id = strtoull(s + 7, NULL, 10);
		else if (!strncmp(s, "ino:", 4))
			f->ino = strtoull(s + 4, NULL, 10);
		else
			for (; s < eol; s++)
				h = (h ^ (unsigned char)*s) * 1099511628211u;
		s = *eol ? eol + 1 : eol;
	}
	f->hash = h ^ f->mnt_id << 32 ^ (f->flags & ~(uint64_t)O_CLOEXEC);
}

/* ---- kcmp ---------------------------------------------------------------- */

/* 0: the same description; -1, 1: an order. 2: cannot be told. */
static int compare_descriptions(pid_t pid, int a, int b)
{
	static const int order[] = {0, -1, 1, 2};
	long r = syscall(SYS_kcmp, pid, pid, KCMP_FILE, a, b);

	return r >= 0 && r <= 3 ? order[r] : 2;
}

static int by_hash_then_kcmp(const void *a, const void *b, void *arg)
{
	const struct fd_state *x = *(struct fd_state *const *)a, *y = *(struct fd_state *const *)b;

	if (x->ino != y->ino)
		return x->ino < y->ino ? -1 : 1;
	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	int r = x == y ? 0 : compare_descriptions(*(const pid_t *)arg, x->fd, y->fd);
	return r == 2 || r == 0 ? (x->fd > y->fd) - (x->fd < y->fd) : r;
}

static int by_hash_then_rank(const void *a, const void *b)
{
	const struct fd_state *x = *(struct fd_state *const *)a, *y = *(struct fd_state *const *)b;

	if (x->ino != y->ino)
		return x->ino < y->ino ? -1 : 1;
	if (x->hash != y->hash)
		return x->hash < y->hash ? -1 : 1;
	return (x->rank > y->rank) - (x->rank < y->rank);
}

static bool indistinct(const struct fd_state *a, const struct fd_state *b)
{
	return a->ino == b->ino && a->hash == b->hash;
}

/* Numbers descriptions: equal neighbours share theirs. False: the order does
 * not hold any more. */
static bool number_in_order(pid_t pid, struct fd_state **order, size_t n, bool *ret_has_kcmp)
{
	unsigned next = 0;

	for (size_t i = 0; i < n; i++) {
		int c = -1;

		if (i && indistinct(order[i - 1], order[i])) {
			/* A socket has one description for as long as it lives. */
			c = order[i]->kind == FD_SOCKET
				    ? 0
				    : compare_descriptions(pid, order[i - 1]->fd, order[i]->fd);
			if (c == 1)
				return false;
			if (c == 2)
				*ret_has_kcmp = false;
		}
		order[i]->first = !i || c != 0;
		order[i]->description = order[i]->first ? next++ : order[i - 1]->description;
		order[i]->rank = (unsigned)i;
	}
	return true;
}

static int number_descriptions(const struct pstate *ps, struct fd_table *t, bool ranked)
{
	pid_t pid = ps->t->pid;
	cleanup_free struct fd_state **order = malloc(MAX(t->n, (size_t)1) * sizeof(*order));
	if (!order)
		return -ENOMEM;
	t->has_kcmp = true;
	for (size_t i = 0; i < t->n; i++)
		order[i] = &t->v[i];
	if (ranked) {
		qsort(order, t->n, sizeof(*order), by_hash_then_rank);
		if (number_in_order(pid, order, t->n, &t->has_kcmp))
			return 0;
	}
	qsort_r(order, t->n, sizeof(*order), by_hash_then_kcmp, &pid);
	/* While the target runs the order may be false at once; the freeze finds out. */
	number_in_order(pid, order, t->n, &t->has_kcmp);
	return 0;
}

/* ---- before the freeze --------------------------------------------------- */

static void raise_descriptor_limit(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) == 0 && rl.rlim_cur < rl.rlim_max) {
		rl.rlim_cur = rl.rlim_max;
		setrlimit(RLIMIT_NOFILE, &rl);
	}
}

int files_prepare(struct pstate *ps)
{
	struct rlimit rl = {.rlim_cur = 1024};
	struct fd_table *t = &ps->prepared;
	int fd = openat(ps->fd_dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;

	if (!dir) {
		int r = -errno;

		if (fd >= 0)
			close(fd);
		return r;
	}
	raise_descriptor_limit();
	getrlimit(RLIMIT_NOFILE, &rl);
	for (const struct dirent *e; (e = readdir(dir));) {
		struct span span;

		if (e->d_name[0] == '.')
			continue;
		struct fd_state *f = table_add(t, atoi(e->d_name));
		if (!f)
			return -ENOMEM;
		if (look_at(ps, f) < 0) {
			fd_free(f);
			t->n--;
			continue;
		}
		if (t->n + FDS_SPARE + ps->nr_preps < rl.rlim_cur)
			f->info_fd = openat(ps->fdinfo_dir, e->d_name, O_RDONLY | O_CLOEXEC);
		int r = f->info_fd >= 0
				? arena_pread(&ps->arena, f->info_fd, &span)
				: arena_read_at(&ps->arena, ps->fdinfo_dir, e->d_name, &span);
		if (r < 0) {
			fd_free(f);
			t->n--;
			continue;
		}
		parse_info(f, span_text(span));
	}
	int r = number_descriptions(ps, t, false);
	if (r == 0)
		r = epoll_prepare(ps);
	for (size_t i = 0; i < t->n && r == 0; i++)
		if (t->v[i].kind == FD_SOCKET)
			return sockets_prepare(ps);
	return r;
}

/* ---- in the freeze ------------------------------------------------------- */

static bool is_anonymous(enum fd_kind k)
{
	return k >= FD_EVENTFD;
}

/* Whether the kernel's text for one of these kinds begins as it does for the
 * kind that was seen: they all have one inode. */
static bool kind_still_fits(const struct fd_state *f, const char *text)
{
	switch (f->kind) {
	case FD_EVENTFD:
		return text_line(text, "eventfd-count");
	case FD_TIMERFD:
		return text_line(text, "clockid");
	case FD_SIGNALFD:
		return text_line(text, "sigmask");
	default:
		return !is_anonymous(f->kind);
	}
}

static bool link_still_fits(const struct pstate *ps, const struct fd_state *f)
{
	char name[16];
	cleanup_free char *link = NULL;

	snprintf(name, sizeof(name), "%d", f->fd);
	return io_readlink_at(ps->fd_dir, name, &link) == 0 && !strcmp(link, f->link);
}

/* Looks at a descriptor that prepare knows: its slot in the new table has the
 * same number; info stays empty when it is closed by now. Other threads are
 * at other slots. */
int files_collect_known(struct pstate *ps, struct arena *a, size_t i)
{
	const struct fd_state *known = &ps->prepared.v[i];
	struct fd_state *f = &ps->files.v[i];
	char name[16];
	int r;

	*f = (struct fd_state){.fd = known->fd,
			       .info_fd = -1,
			       .pipe_copy = -1,
			       .pipe_size = -1,
			       .pipe_queued = -1};
	if (known->info_fd >= 0) {
		r = arena_pread(a, known->info_fd, &f->info);
	} else {
		snprintf(name, sizeof(name), "%d", known->fd);
		r = arena_read_at(a, ps->fdinfo_dir, name, &f->info);
	}
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	const char *text = span_text(f->info);
	parse_info(f, text);
	f->fresh = !f->ino || f->ino != known->ino || f->mnt_id != known->mnt_id ||
		   !(kind_still_fits(known, text) || link_still_fits(ps, known));
	if (f->fresh) {
		f->rank = UINT32_MAX;
		return look_at(ps, f);
	}
	f->rank = known->rank;
	f->kind = known->kind;
	f->has_stat = known->has_stat;
	f->st = known->st;
	f->diag = known->diag;
	f->pair_inside = known->pair_inside;
	f->link = strdup(known->link);
	return f->link ? 0 : -ENOMEM;
}

static int collect_fresh(struct pstate *ps, int fd)
{
	struct fd_state *f = table_add(&ps->files, fd);
	char name[16];

	if (!f)
		return -ENOMEM;
	f->fresh = true;
	f->rank = UINT32_MAX;
	snprintf(name, sizeof(name), "%d", fd);
	int r = arena_read_at(&ps->arena, ps->fdinfo_dir, name, &f->info);
	if (r == 0)
		r = look_at(ps, f);
	if (r < 0)
		return r;
	parse_info(f, span_text(f->info));
	return 0;
}

static int compare_fd(const void *a, const void *b)
{
	int x = ((const struct fd_state *)a)->fd, y = ((const struct fd_state *)b)->fd;

	return (x > y) - (x < y);
}

/* Collects the descriptors that prepare did not see. */
static int collect_unknown(struct pstate *ps)
{
	int fd = openat(ps->fd_dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	size_t nr_known = ps->files.n;

	if (!dir) {
		int r = -errno;

		if (fd >= 0)
			close(fd);
		return r;
	}
	for (const struct dirent *e; (e = readdir(dir));) {
		if (e->d_name[0] == '.')
			continue;
		struct fd_state key = {.fd = atoi(e->d_name)};
		if (nr_known && bsearch(&key, ps->files.v, nr_known, sizeof(key), compare_fd))
			continue;
		int r = collect_fresh(ps, key.fd);
		if (r < 0)
			return r;
	}
	qsort(ps->files.v, ps->files.n, sizeof(*ps->files.v), compare_fd);
	return 0;
}

int files_begin(struct pstate *ps)
{
	struct fd_table *t = &ps->files;

	t->room = ps->prepared.n + 64;
	t->v = malloc(t->room * sizeof(*t->v));
	if (!t->v)
		return -ENOMEM;
	t->n = 0;
	return 0;
}

/* Closes the gaps that closed descriptors have left. Every slot was looked at. */
static void pack(struct fd_table *t, size_t n)
{
	t->n = 0;
	for (size_t i = 0; i < n; i++) {
		if (t->v[i].info.len && t->v[i].link)
			t->v[t->n++] = t->v[i];
		else
			fd_free(&t->v[i]);
	}
}

int files_end(struct pstate *ps, int error)
{
	struct stat st;
	unsigned stats = 0;

	pack(&ps->files, ps->prepared.n);
	if (error < 0)
		return error;
	/* Before Linux 6.2 the size is 0. */
	if (fstat(ps->fd_dir, &st) < 0 || st.st_size == 0 || (size_t)st.st_size != ps->files.n) {
		int r = collect_unknown(ps);
		if (r < 0)
			return r;
	}
	int r = number_descriptions(ps, &ps->files, true);
	if (r < 0)
		return r;
	for (size_t i = 0; i < ps->files.n; i++) {
		struct fd_state *f = &ps->files.v[i];
		char name[16];

		if (f->kind == FD_REGULAR && !f->fresh && stats++ < FRESH_STATS_MAX) {
			snprintf(name, sizeof(name), "%d", f->fd);
			f->has_stat = fstatat(ps->fd_dir, name, &f->st, 0) == 0;
		}
		fd_collect_kind(ps, f);
	}
	return 0;
}

/* ---- afterwards ---------------------------------------------------------- */

json_t *files_json(struct pstate *ps)
{
	json_t *a = json_array();

	for (size_t i = 0; i < ps->files.n; i++)
		json_array_append_new(a, fd_json(ps, &ps->files.v[i]));
	return a;
}
