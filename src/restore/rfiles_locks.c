/*
 * Locks and leases. A descriptor shows (fdinfo) the locks of its open file
 * description, and the POSIX locks that the process has on its file: those
 * appear with every descriptor of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>

#include "common/util.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

enum {
	MAX_LOCKS = 1 << 20
};

struct lock {
	const char *kind, *type;
	int64_t start, end;
};

static int parse(const json_t *o, struct lock *l, struct usnap_err *err)
{
	int ret;

	if ((ret = rjson_text(o, "kind", &l->kind, err)) < 0 ||
	    (ret = rjson_text(o, "type", &l->type, err)) < 0 ||
	    (ret = rjson_int_or(o, "start", 0, INT64_MAX, 0, &l->start, err)) < 0)
		return ret;
	return rjson_int_or(o, "end", l->start, INT64_MAX, -1, &l->end, err);
}

static bool is_write(const struct lock *l)
{
	return !strcmp(l->type, "WRITE");
}

static bool same_lock(const struct lock *a, const struct lock *b)
{
	return !strcmp(a->kind, b->kind) && !strcmp(a->type, b->type) && a->start == b->start &&
	       a->end == b->end;
}

/* Whether an earlier description of the file has shown this POSIX lock. */
static bool was_seen(const struct rdesc *d, const struct lock *l)
{
	for (size_t i = 0; d->node && i < d->node->n && d->node->d[i] != d; i++) {
		const json_t *list = json_object_get(d->node->d[i]->o, "locks"), *o;
		struct lock other;
		size_t j;

		json_array_foreach (list, j, o)
			if (parse(o, &other, NULL) == 0 && same_lock(l, &other))
				return true;
	}
	return false;
}

/* A number of the file that may be locked so. */
static int number_for(const struct rdesc *d, bool write)
{
	for (size_t i = 0; d->node && i < d->node->n; i++) {
		const struct rdesc *e = d->node->d[i];

		if (!(e->flags & O_PATH) && (write ? rdesc_writes(e) : rdesc_reads(e)))
			return e->fd;
	}
	return d->fd;
}

static int add_range(struct finish *f, const struct rdesc *d, const struct lock *l, int command)
{
	struct flock range = {
		.l_type = is_write(l) ? F_WRLCK : F_RDLCK,
		.l_whence = SEEK_SET,
		.l_start = l->start,
		.l_len = l->end < 0 || l->end == INT64_MAX ? 0 : l->end - l->start + 1,
	};
	int fd = command == F_SETLK ? number_for(d, is_write(l)) : d->fd;
	uint64_t addr = finish_data(f, &range, sizeof(range));

	return finish_add(f, d, "lock", SYS_fcntl, (uint64_t)fd, (uint64_t)command, addr, 0, 0, 0);
}

static int add_lock(struct finish *f, const struct rdesc *d, const struct lock *l)
{
	if (strcmp(l->type, "READ") != 0 && !is_write(l))
		return 0; /* UNLCK: a lease that is being given up */
	if (!strcmp(l->kind, "FLOCK"))
		return finish_add(f, d, "lock", SYS_flock, (uint64_t)d->fd,
				  (is_write(l) ? LOCK_EX : LOCK_SH) | LOCK_NB, 0, 0, 0, 0);
	if (!strcmp(l->kind, "POSIX"))
		return was_seen(d, l) ? 0 : add_range(f, d, l, F_SETLK);
	if (!strcmp(l->kind, "OFDLCK"))
		return add_range(f, d, l, F_OFD_SETLK);
	if (!strcmp(l->kind, "LEASE"))
		return finish_add(f, d, "take the lease of", SYS_fcntl, (uint64_t)d->fd, F_SETLEASE,
				  is_write(l) ? F_WRLCK : F_RDLCK, 0, 0, 0);
	return 0;
}

int rlocks_finish(struct finish *f)
{
	const struct rfiles *files = finish_restore(f)->files;

	for (size_t i = 0; i < files->nr_descs; i++) {
		const struct rdesc *d = &files->descs[i];
		json_t *list, *o;
		size_t j;
		int ret = rjson_array(d->o, "locks", MAX_LOCKS, &list, finish_error(f));

		if (ret < 0)
			return ret;
		if (d->how != RFILE_MADE || d->flags & O_PATH)
			continue;
		json_array_foreach (list, j, o) {
			struct lock l;

			if ((ret = parse(o, &l, finish_error(f))) < 0 ||
			    (ret = add_lock(f, d, &l)) < 0)
				return ret;
		}
	}
	return 0;
}
