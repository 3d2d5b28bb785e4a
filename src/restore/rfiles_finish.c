/*
 * By remote calls, when memory and threads are there: what could not be
 * before. Locks, because a process loses the POSIX locks of a file with any
 * descriptor of it that it closes, and mapping files opens and closes them;
 * seals, because memory is filled through mappings; owners, because they can
 * be threads; timers, because they run from then on.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "common/util.h"
#include "restore/rfiles_internal.h"
#include "restore/rjson.h"

enum {
	BATCH = 64,
	ROOM_FOR_MORE = 8, /* calls that may follow one finish_data() */
};

struct finish {
	struct restore *r;
	struct usnap_err *err;
	struct stub_batch b;
	struct {
		const struct rdesc *d;
		const char *what;
	} calls[BATCH];
	size_t n;
	bool begun;
};

struct restore *finish_restore(const struct finish *f)
{
	return f->r;
}

struct usnap_err *finish_error(const struct finish *f)
{
	return f->err;
}

static int flush(struct finish *f)
{
	size_t failed = 0;

	if (!f->n)
		return 0;
	int ret = stub_run(&f->b, stub_main_lane(f->r->stub), &failed);
	size_t n = f->n;
	f->n = 0;
	f->begun = false;
	if (ret >= 0 || ret == -ESRCH)
		return ret;
	const struct rdesc *d = failed < n ? f->calls[failed].d : NULL;
	if (!d)
		return usnap_fail_errno(f->err, ret, "cannot complete the descriptors");
	usnap_fail_errno(f->err, ret, "cannot %s '%s' as descriptor %d", f->calls[failed].what,
			 d->path, d->fd);
	if (ret == -EAGAIN || ret == -EACCES)
		return usnap_hint(f->err, "another process holds it: lslocks shows which");
	return ret;
}

static void begin(struct finish *f)
{
	if (f->begun)
		return;
	stub_reset(f->r->stub);
	stub_begin(&f->b, f->r->stub, BATCH);
	f->begun = true;
}

uint64_t finish_data(struct finish *f, const void *data, size_t len)
{
	if (f->n > BATCH - ROOM_FOR_MORE && flush(f) < 0)
		return 0; /* the next call reports it: err is set */
	begin(f);
	return stub_data(&f->b, data, len);
}

static int note(struct finish *f, const struct rdesc *d, const char *what)
{
	if (f->err->code)
		return f->err->code;
	int ret = f->n == BATCH ? flush(f) : 0;
	if (ret < 0)
		return ret;
	begin(f);
	f->calls[f->n].d = d;
	f->calls[f->n++].what = what;
	return 0;
}

int finish_add(struct finish *f, const struct rdesc *d, const char *what, long nr, uint64_t a0,
	       uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5)
{
	int ret = note(f, d, what);

	if (ret == 0)
		stub_add(&f->b, nr, a0, a1, a2, a3, a4, a5);
	return ret;
}

int finish_try(struct finish *f, const struct rdesc *d, long nr, uint64_t a0, uint64_t a1,
	       uint64_t a2)
{
	int ret = note(f, d, NULL);

	if (ret == 0)
		stub_try(&f->b, nr, a0, a1, a2, 0, 0, 0);
	return ret;
}

/* ---- owners ------------------------------------------------------------------------ */

/* As the process counts: the image has the snapshotter's numbers. 0: somebody else. */
static pid_t own_number(const struct restore *r, int64_t type, int64_t pid)
{
	const json_t *threads = json_object_get(r->process, "threads"), *o;
	size_t i;

	if (type == F_OWNER_PGRP)
		return json_integer_value(json_object_get(r->process, "pgid")) == pid ? r->pgid : 0;
	if (type == F_OWNER_PID)
		return pid == r->files->image_pid ? r->pid : 0;
	json_array_foreach (threads, i, o) {
		pid_t tid;

		if (json_integer_value(json_object_get(o, "tid")) == pid &&
		    rjson_innermost(o, "tid_ns", pid, &tid, NULL) == 0)
			return tid;
	}
	return 0;
}

static int set_owner(struct finish *f, const struct rdesc *d)
{
	int64_t type, pid, signo;
	json_t *o;
	int ret;

	if ((ret = rjson_object(d->o, "owner", &o, f->err)) < 0 ||
	    (ret = rjson_int_or(o, "type", 0, 2, 0, &type, f->err)) < 0 ||
	    (ret = rjson_int_or(o, "pid", INT32_MIN, INT32_MAX, 0, &pid, f->err)) < 0 ||
	    (ret = rjson_int_or(o, "signo", 0, 64, 0, &signo, f->err)) < 0)
		return ret;
	struct f_owner_ex owner = {(enum __pid_type)type, own_number(f->r, type, pid)};
	uint64_t addr = owner.pid ? finish_data(f, &owner, sizeof(owner)) : 0;
	if (owner.pid)
		ret = finish_add(f, d, "set the owner of", SYS_fcntl, (uint64_t)d->fd, F_SETOWN_EX,
				 addr, 0, 0, 0);
	if (ret == 0 && signo)
		ret = finish_add(f, d, "set the signal of", SYS_fcntl, (uint64_t)d->fd, F_SETSIG,
				 (uint64_t)signo, 0, 0, 0);
	if (ret == 0 && d->async)
		ret = finish_add(f, d, "set the flags of", SYS_fcntl, (uint64_t)d->fd, F_SETFL,
				 (uint64_t)(d->flags | O_ASYNC), 0, 0, 0);
	return ret;
}

/* ---- all of it --------------------------------------------------------------------- */

static int finish_all(struct finish *f)
{
	struct rfiles *files = f->r->files;
	int ret = 0;

	for (size_t i = 0; i < files->nr_nodes && ret == 0; i++)
		ret = runlinked_finish(f, &files->nodes[i]);
	for (size_t i = 0; i < files->nr_descs && ret == 0; i++) {
		const struct rdesc *d = &files->descs[i];

		ret = rtty_finish(f, d);
		if (ret == 0 && d->how == RFILE_MADE && !(d->flags & O_PATH))
			ret = set_owner(f, d);
	}
	if (ret == 0)
		ret = rlocks_finish(f);
	for (size_t i = 0; i < files->nr_descs && ret == 0; i++)
		if (files->descs[i].kind == RFILE_TIMERFD && files->descs[i].how == RFILE_MADE)
			ret = rtimerfd_finish(f, &files->descs[i]);
	return ret < 0 ? ret : flush(f);
}

int rfiles_finish(struct restore *r, struct usnap_err *err)
{
	struct finish f = {.r = r, .err = err};

	return finish_all(&f);
}
