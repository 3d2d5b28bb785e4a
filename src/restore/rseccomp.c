/*
 * Seccomp filters. They would hold for the calls that the stub makes: the
 * threads are seized with PTRACE_O_SUSPEND_SECCOMP, which takes CAP_SYS_ADMIN.
 * Under it they can be installed early, when the thread may still do so.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "common/util.h"
#include "restore/rjson.h"
#include "restore/rproc_internal.h"
#include "restore/rthreads_internal.h"

#define PROGRAMS_MAX 8192
#define CAP_SYS_ADMIN_BIT 21

static int parse_programs(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	json_t *list, *one;
	size_t i;

	int e = rjson_array(r->process, "seccomp_filters", PROGRAMS_MAX, &list, err);
	if (e < 0 || !list || !json_array_size(list))
		return e;
	t->programs = calloc(json_array_size(list), sizeof(*t->programs));
	if (!t->programs)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	json_array_foreach (list, i, one) {
		/* rjson_hex() wants an object. */
		json_t *o = json_object();
		struct rprogram *p = &t->programs[i];

		json_object_set(o, "seccomp_filters", one);
		e = rjson_hex(o, "seccomp_filters", BPF_MAXINSNS * sizeof(struct sock_filter),
			      &p->p, &p->bytes, err);
		json_decref(o);
		if (e < 0)
			return e;
		t->nr_programs = i + 1;
		if (!p->bytes || p->bytes % sizeof(struct sock_filter))
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: seccomp_filters of process.json holds "
					  "no program");
	}
	return 0;
}

int rseccomp_plan(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	size_t filtered = 0;

	int e = parse_programs(r, err);
	if (e < 0)
		return e;
	for (size_t i = 0; i < t->n; i++) {
		for (size_t k = 0; k < t->v[i].nr_filters; k++)
			if (t->v[i].filters[k] >= t->nr_programs)
				return usnap_fail(err, -EBADMSG,
						  "cannot restore: thread %d of process.json has "
						  "a seccomp filter that is not there",
						  (int)t->v[i].image_tid);
		filtered += t->v[i].nr_filters > 0;
	}
	if (!filtered)
		return 0;
	struct rcreds own;
	e = rcreds_own(&own);
	bool may = e == 0 && own.effective >> CAP_SYS_ADMIN_BIT & 1;
	rcreds_free(&own);
	t->filtered = may;
	if (e == 0 && !may)
		e = restore_problem(r, RESTORE_REFUSE, "seccomp-filter",
				    "%zu threads run under seccomp filters, which only root can "
				    "put back (CAP_SYS_ADMIN)",
				    filtered);
	return e < 0 ? usnap_fail_errno(err, e, "cannot restore") : 0;
}

static int install(struct restore *r, const struct rthread *th, const struct rprogram *p,
		   struct usnap_err *err)
{
	struct stub_batch b;

	stub_reset(r->stub);
	stub_begin(&b, r->stub, 1);
	struct sock_fprog prog = {
		.len = (unsigned short)(p->bytes / sizeof(struct sock_filter)),
		.filter = (void *)(uintptr_t)stub_data(&b, p->p, p->bytes),
	};
	stub_add(&b, SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, stub_data(&b, &prog, sizeof(prog)), 0,
		 0, 0);
	int e = stub_run(&b, th->lane, NULL);
	return e < 0 ? usnap_fail_errno(err, e, "cannot install a seccomp filter in thread %d",
					(int)th->tid)
		     : 0;
}

int rseccomp_restore(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;

	if (!t->filtered)
		return 0;
	for (size_t i = 0; i < t->n; i++)
		for (size_t k = t->v[i].nr_filters; k > 0; k--) {
			int e = install(r, &t->v[i], &t->programs[t->v[i].filters[k - 1]], err);

			if (e < 0)
				return e;
		}
	return 0;
}
