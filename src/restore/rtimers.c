/*
 * Interval timers and POSIX timers: made without running, then armed last of
 * all with the time that was left at T0.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include "common/util.h"
#include "restore/rjson.h"
#include "restore/rproc_internal.h"

#ifndef PR_TIMER_CREATE_RESTORE_IDS /* Linux 6.15 */
#define PR_TIMER_CREATE_RESTORE_IDS 77
#define PR_TIMER_CREATE_RESTORE_IDS_OFF 0
#define PR_TIMER_CREATE_RESTORE_IDS_ON 1
#endif

#define TIMERS_MAX 100000
#define AT_ONCE 256
/* Older kernels number timers in a row: to get to an ID, all below it are made.
 */
#define COUNTED_MAX (1 << 20)
#define NS_PER_S 1000000000u
#define NS_PER_US 1000u

/* ---- plan
 * -------------------------------------------------------------------------------
 */

static int parse_time(const json_t *o, const char *key, uint64_t *ret, struct usnap_err *err)
{
	int64_t v;
	int r = rjson_int_or(o, key, 0, INT64_MAX, 0, &v, err);

	if (r == 0)
		*ret = (uint64_t)v;
	return r;
}

static int plan_itimers(struct restore *r, struct rtimers *t, struct usnap_err *err)
{
	static const char *const which[] = {"real", "virtual", "prof"};
	json_t *list, *o;
	size_t i;
	int e = rjson_array(r->process, "itimers", 3, &list, err);

	if (e < 0)
		return e;
	json_array_foreach (list, i, o) {
		const char *name;
		struct ritimer it;

		if ((e = rjson_text(o, "which", &name, err)) < 0 ||
		    (e = parse_time(o, "value_ns", &it.value_ns, err)) < 0 ||
		    (e = parse_time(o, "interval_ns", &it.interval_ns, err)) < 0)
			return e;
		for (size_t k = 0; k < ARRAY_SIZE(which); k++)
			if (!strcmp(name, which[k]))
				t->itimers[k] = it;
	}
	return 0;
}

static int parse_timer(struct restore *r, struct rtimer *t, const json_t *o, struct usnap_err *err)
{
	int64_t id, clock, signo, notify, target;
	int e;

	if ((e = rjson_int(o, "id", 0, INT32_MAX, &id, err)) < 0 ||
	    (e = rjson_int(o, "clock", INT32_MIN, INT32_MAX, &clock, err)) < 0 ||
	    (e = rjson_int_or(o, "signo", 0, 64, 0, &signo, err)) < 0 ||
	    (e = rjson_int_or(o, "notify", 0, 7, 0, &notify, err)) < 0 ||
	    (e = rjson_int_or(o, "notify_id", 0, INT32_MAX, 0, &target, err)) < 0 ||
	    (e = rjson_word_or(o, "sigval", 0, &t->sigval, err)) < 0 ||
	    (e = parse_time(o, "value_ns", &t->value_ns, err)) < 0 ||
	    (e = parse_time(o, "interval_ns", &t->interval_ns, err)) < 0)
		return e;
	t->id = (int)id;
	t->clock = (int)clock;
	t->signo = (int)signo;
	t->notify = (int)notify;
	t->tid = (pid_t)target; /* as the snapshotter saw it, until the threads are known */
	return 0;
}

static int compare_ids(const void *a, const void *b)
{
	const struct rtimer *x = a, *y = b;

	return (x->id > y->id) - (x->id < y->id);
}

int rtimers_plan(struct restore *r, struct rtimers *t, struct usnap_err *err)
{
	json_t *list;
	int e = plan_itimers(r, t, err);

	if (e == 0)
		e = rjson_array(r->process, "posix_timers", TIMERS_MAX, &list, err);
	if (e < 0 || !list || !json_array_size(list))
		return e;
	t->v = calloc(json_array_size(list), sizeof(*t->v));
	if (!t->v)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	t->n = json_array_size(list);
	for (size_t i = 0; i < t->n; i++) {
		e = parse_timer(r, &t->v[i], json_array_get(list, i), err);
		if (e < 0)
			return e;
	}
	qsort(t->v, t->n, sizeof(*t->v), compare_ids);
	for (size_t i = 1; i < t->n; i++)
		if (t->v[i].id == t->v[i - 1].id)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: timer %d is twice in process.json",
					  t->v[i].id);
	return 0;
}

void rtimers_free(struct rtimers *t)
{
	free(t->v);
	t->v = NULL;
	t->n = 0;
}

/* ---- made
 * -------------------------------------------------------------------------------
 */

/* As the kernel reads it (include/uapi/asm-generic/siginfo.h). */
struct sigevent_raw {
	uint64_t value;
	int32_t signo, notify, tid;
	int32_t pad[11];
};

_Static_assert(sizeof(struct sigevent_raw) == 64, "SIGEV_MAX_SIZE");

static struct sigevent_raw event_of(const struct restore *r, const struct rtimer *t)
{
	struct sigevent_raw ev = {.value = t->sigval, .signo = t->signo, .notify = t->notify};

	if (!(t->notify & SIGEV_THREAD_ID))
		return ev;
	ev.tid = rthreads_own_tid(r, t->tid);
	/* A timer whose thread has ended goes on without telling anybody. */
	if (!ev.tid)
		ev.notify = SIGEV_NONE;
	return ev;
}

/* IDs are wanted and given in *id. */
static int create_wanted(struct restore *r, const struct rtimer *v, size_t n)
{
	struct stub_batch b;

	stub_reset(r->stub);
	stub_begin(&b, r->stub, n);
	for (size_t i = 0; i < n; i++) {
		struct sigevent_raw ev = event_of(r, &v[i]);

		stub_add(&b, SYS_timer_create, (uint64_t)(int64_t)v[i].clock,
			 stub_data(&b, &ev, sizeof(ev)), stub_data(&b, &v[i].id, 4), 0, 0, 0);
	}
	int e = stub_run(&b, stub_main_lane(r->stub), NULL);
	for (size_t i = 0; i < n && e == 0; i++)
		if (*(int *)stub_local(r->stub, b.calls[i].args[2]) != v[i].id)
			e = -EEXIST;
	return e;
}

/* Makes timers and deletes them until the next has the ID; *next: which the
 * next will be. */
static int count_up_to(struct restore *r, int id, int *next)
{
	while (*next < id) {
		size_t n = MIN((size_t)(id - *next), (size_t)AT_ONCE);
		struct sigevent_raw ev = {.notify = SIGEV_NONE};
		struct stub_batch b;

		stub_reset(r->stub);
		stub_begin(&b, r->stub, 2 * n);
		uint64_t event = stub_data(&b, &ev, sizeof(ev));
		for (size_t i = 0; i < n; i++) {
			stub_add(&b, SYS_timer_create, CLOCK_MONOTONIC, event,
				 stub_data(&b, NULL, 4), 0, 0, 0);
			stub_add(&b, SYS_timer_delete, (uint64_t)*next + i, 0, 0, 0, 0, 0);
		}
		int e = stub_run(&b, stub_main_lane(r->stub), NULL);
		if (e < 0)
			return e;
		*next += (int)n;
	}
	return 0;
}

static int create_counting(struct restore *r, const struct rtimers *t)
{
	int next = 0;

	if (t->v[t->n - 1].id >= COUNTED_MAX)
		return -EOPNOTSUPP;
	for (size_t i = 0; i < t->n; i++) {
		int e = count_up_to(r, t->v[i].id, &next);

		if (e == 0)
			e = create_wanted(r, &t->v[i], 1);
		if (e < 0)
			return e;
		next++;
	}
	return 0;
}

int rtimers_create(struct restore *r, const struct rtimers *t, struct usnap_err *err)
{
	int e = 0;

	if (!t->n)
		return 0;
	if (stub_call(r->stub, SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS,
		      PR_TIMER_CREATE_RESTORE_IDS_ON, 0, 0, 0, 0) < 0) {
		e = create_counting(r, t);
	} else {
		for (size_t i = 0; i < t->n && e == 0; i += AT_ONCE)
			e = create_wanted(r, t->v + i, MIN(t->n - i, (size_t)AT_ONCE));
		stub_call(r->stub, SYS_prctl, PR_TIMER_CREATE_RESTORE_IDS,
			  PR_TIMER_CREATE_RESTORE_IDS_OFF, 0, 0, 0, 0);
	}
	if (e < 0)
		usnap_fail_errno(err, e, "cannot make its %zu timers", t->n);
	if (e == -EOPNOTSUPP)
		usnap_hint(err,
			   "their IDs are beyond what a kernel before Linux 6.15 can be led to");
	if (e == -EAGAIN)
		usnap_hint(err, "'ulimit -i' bounds how many there may be");
	return e;
}

/* ---- armed
 * ------------------------------------------------------------------------------
 */

static void add_itimer(struct stub_batch *b, unsigned which, const struct ritimer *it)
{
	/* Rounded up: never early. */
	uint64_t value = it->value_ns / NS_PER_US + (it->value_ns % NS_PER_US != 0);
	uint64_t interval = it->interval_ns / NS_PER_US;
	struct itimerval v = {
		.it_interval = {(time_t)(interval / 1000000), (suseconds_t)(interval % 1000000)},
		.it_value = {(time_t)(value / 1000000), (suseconds_t)(value % 1000000)},
	};

	stub_add(b, SYS_setitimer, which, stub_data(b, &v, sizeof(v)), 0, 0, 0, 0);
}

static void add_timer(struct stub_batch *b, const struct rtimer *t)
{
	struct itimerspec v = {
		.it_interval = {(time_t)(t->interval_ns / NS_PER_S),
				(long)(t->interval_ns % NS_PER_S)},
		.it_value = {(time_t)(t->value_ns / NS_PER_S), (long)(t->value_ns % NS_PER_S)},
	};

	stub_add(b, SYS_timer_settime, (uint64_t)t->id, 0, stub_data(b, &v, sizeof(v)), 0, 0, 0);
}

int rtimers_arm(struct restore *r, const struct rtimers *t, struct usnap_err *err)
{
	struct stub_batch b;
	int e = 0;

	for (size_t from = 0; from < t->n && e == 0; from += AT_ONCE) {
		size_t n = MIN(t->n - from, (size_t)AT_ONCE);

		stub_reset(r->stub);
		stub_begin(&b, r->stub, n);
		/* One that does not run is armed with nothing, which notes its interval. */
		for (size_t i = 0; i < n; i++)
			add_timer(&b, &t->v[from + i]);
		e = stub_run(&b, stub_main_lane(r->stub), NULL);
	}
	if (e == 0) {
		stub_reset(r->stub);
		stub_begin(&b, r->stub, ARRAY_SIZE(t->itimers));
		for (unsigned i = 0; i < ARRAY_SIZE(t->itimers); i++)
			if (t->itimers[i].value_ns)
				add_itimer(&b, i, &t->itimers[i]);
		e = stub_run(&b, stub_main_lane(r->stub), NULL);
	}
	return e < 0 ? usnap_fail_errno(err, e, "cannot start the timers") : 0;
}
