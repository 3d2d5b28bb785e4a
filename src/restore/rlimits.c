/* Resource limits. */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#include "common/util.h"
#include "restore/rcreds.h"
#include "restore/rjson.h"
#include "restore/rproc_internal.h"

static const char *const names[RLIM_NLIMITS] = {
	[RLIMIT_CPU] = "cpu",		[RLIMIT_FSIZE] = "fsize",
	[RLIMIT_DATA] = "data",		[RLIMIT_STACK] = "stack",
	[RLIMIT_CORE] = "core",		[RLIMIT_RSS] = "rss",
	[RLIMIT_NPROC] = "nproc",	[RLIMIT_NOFILE] = "nofile",
	[RLIMIT_MEMLOCK] = "memlock",	[RLIMIT_AS] = "as",
	[RLIMIT_LOCKS] = "locks",	[RLIMIT_SIGPENDING] = "sigpending",
	[RLIMIT_MSGQUEUE] = "msgqueue", [RLIMIT_NICE] = "nice",
	[RLIMIT_RTPRIO] = "rtprio",	[RLIMIT_RTTIME] = "rttime",
};

static int parse_value(const json_t *o, const char *key, rlim_t *ret, struct usnap_err *err)
{
	int64_t v;
	int r = rjson_int(o, key, -1, INT64_MAX, &v, err);

	if (r == 0)
		*ret = v < 0 ? RLIM_INFINITY : (rlim_t)v;
	return r;
}

static int parse_limit(struct rlimits *l, const json_t *o, struct usnap_err *err)
{
	struct rlimit v = {0};
	const char *name;
	int r;

	if ((r = rjson_text(o, "resource", &name, err)) < 0 ||
	    (r = parse_value(o, "soft", &v.rlim_cur, err)) < 0 ||
	    (r = parse_value(o, "hard", &v.rlim_max, err)) < 0)
		return r;
	if (v.rlim_cur > v.rlim_max)
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: limits of process.json: %s is above itself",
				  name);
	for (unsigned i = 0; i < RLIM_NLIMITS; i++)
		if (names[i] && !strcmp(name, names[i])) {
			l->v[i].known = true;
			l->v[i].v = v;
		}
	return 0; /* one that this kernel does not know limits nothing here */
}

int rlimits_plan(struct restore *r, struct rlimits *l, struct usnap_err *err)
{
	json_t *list, *o;
	size_t i;

	int e = rjson_array(r->process, "limits", 64, &list, err);
	if (e < 0)
		return e;
	json_array_foreach (list, i, o) {
		e = parse_limit(l, o, err);
		if (e < 0)
			return e;
	}

	bool may_raise = false;
	struct rcreds own;
	if (rcreds_own(&own) == 0)
		may_raise = own.effective >> 24 & 1; /* CAP_SYS_RESOURCE */
	rcreds_free(&own);
	for (unsigned k = 0; k < RLIM_NLIMITS && !may_raise; k++) {
		struct rlimit have;

		if (!l->v[k].known || getrlimit((__rlimit_resource_t)k, &have) < 0 ||
		    l->v[k].v.rlim_max <= have.rlim_max)
			continue;
		e = restore_problem(r, RESTORE_NOTE, "limits",
				    "its hard limit of '%s' was above the restorer's, which may "
				    "not raise it (CAP_SYS_RESOURCE): it gets the restorer's",
				    names[k]);
		if (e < 0)
			return usnap_fail_errno(err, e, "cannot restore");
	}
	return 0;
}

/* Made by us, for the process: both have the same user still. */
int rlimits_raise(struct restore *r, struct rlimits *l, struct usnap_err *err)
{
	for (unsigned i = 0; i < RLIM_NLIMITS; i++) {
		__rlimit_resource_t which = (__rlimit_resource_t)i;
		struct rlimit have, more;

		if (!l->v[i].known)
			continue;
		if (prlimit(r->builder, which, NULL, &have) < 0)
			return usnap_fail_errno(err, -errno, "cannot read the limit of '%s'",
						names[i]);
		more = have;
		more.rlim_max = MAX(have.rlim_max, l->v[i].v.rlim_max);
		if (more.rlim_max != have.rlim_max && prlimit(r->builder, which, &more, NULL) < 0)
			l->v[i].v.rlim_max = have.rlim_max;
		l->v[i].v.rlim_cur = MIN(l->v[i].v.rlim_cur, l->v[i].v.rlim_max);
	}
	return 0;
}

int rlimits_restore(struct restore *r, const struct rlimits *l, struct usnap_err *err)
{
	struct stub_batch b;
	size_t failed = 0;

	stub_reset(r->stub);
	stub_begin(&b, r->stub, RLIM_NLIMITS);
	for (unsigned i = 0; i < RLIM_NLIMITS; i++)
		if (l->v[i].known)
			stub_add(&b, SYS_prlimit64, 0, i,
				 stub_data(&b, &l->v[i].v, sizeof(l->v[i].v)), 0, 0, 0);
	int e = stub_run(&b, stub_main_lane(r->stub), &failed);
	return e < 0 ? usnap_fail_errno(err, e, "cannot set the limit of '%s'",
					names[b.calls[failed].args[1]])
		     : 0;
}
