/*
 * What threads set by themselves, all at the same time, and what is set from
 * outside: scheduling.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rproc_internal.h"
#include "restore/rthreads_internal.h"

#define ROBUST_HEAD_BYTES 24 /* sizeof(struct robust_list_head) */
#define IOPRIO_WHO_PROCESS 1
#define IOPRIO_CLASS_SHIFT 13
#define SCHED_UTIL_CLAMPS 0x60u /* SCHED_FLAG_UTIL_CLAMP_MIN | _MAX */
#define CPU_BYTES 1024 /* 8192 CPUs: more than any kernel has */

/* SCHED_FIFO, SCHED_RR, SCHED_DEADLINE */
static bool is_realtime(uint32_t policy)
{
	return policy == 1 || policy == 2 || policy == 6;
}

/* ---- what can be had here --------------------------------------------------------------------- */

static int own_sched(pid_t tid, struct rsched *ret)
{
	*ret = (struct rsched){0};
	return syscall(SYS_sched_getattr, tid, ret, sizeof(*ret), 0) < 0 ? -errno : 0;
}

/* Without CAP_SYS_NICE as the kernel's checks have it
 * (kernel/sched/syscalls.c). */
static bool may_schedule(const struct rthread *th, const struct rcreds *own)
{
	struct rlimit nice = {0}, rt = {0};

	if (own->permitted >> 23 & 1) /* CAP_SYS_NICE */
		return true;
	getrlimit(RLIMIT_NICE, &nice);
	getrlimit(RLIMIT_RTPRIO, &rt);
	if (th->sched.policy == 6)
		return false;
	if (is_realtime(th->sched.policy))
		return th->sched.priority <= rt.rlim_cur;
	struct rsched have;
	return own_sched(0, &have) < 0 || th->sched.nice >= have.nice ||
	       (rlim_t)(20 - th->sched.nice) <= nice.rlim_cur;
}

/* CPUs of the mask that this machine has not (or that are not ours). */
static size_t missing_cpus(const struct rthread *th, const unsigned char *have, size_t *ret_nr)
{
	size_t missing = 0;

	*ret_nr = 0;
	for (size_t i = 0; i < th->affinity_len * 8; i++)
		if (th->affinity[i / 8] >> i % 8 & 1) {
			++*ret_nr;
			missing += !(have[i / 8] >> i % 8 & 1);
		}
	return missing;
}

static int judge_scheduling(struct restore *r, const struct rcreds *own)
{
	struct rthreads *t = r->threads;
	unsigned char have[CPU_BYTES] = {0};
	size_t unable = 0, fewer = 0, none = 0;
	long n = syscall(SYS_sched_getaffinity, 0, sizeof(have), have);

	for (size_t i = 0; i < t->n; i++) {
		size_t nr, missing = n > 0 ? missing_cpus(&t->v[i], have, &nr) : 0;

		unable += t->v[i].has_sched && !may_schedule(&t->v[i], own);
		fewer += missing && missing < nr;
		none += missing && missing == nr;
	}
	int e = 0;
	if (unable)
		e = restore_problem(r, RESTORE_REFUSE, "scheduling",
				    "%zu threads had a priority that the restorer may not give "
				    "(CAP_SYS_NICE)",
				    unable);
	if (e == 0 && fewer)
		e = restore_problem(r, RESTORE_NOTE, "affinity",
				    "%zu threads may run on CPUs that the restorer has not; on "
				    "the others only",
				    fewer);
	if (e == 0 && none)
		e = restore_problem(r, RESTORE_NOTE, "affinity",
				    "%zu threads were bound to CPUs that the restorer has not; on "
				    "all that there are",
				    none);
	return e;
}

static int judge_creds(struct restore *r, const struct rcreds *own)
{
	struct rthreads *t = r->threads;
	char why[128];

	for (size_t i = 0; i < t->n; i++)
		if (t->v[i].creds.known && rcreds_beyond(&t->v[i].creds, own, why, sizeof(why)))
			return restore_problem(r, RESTORE_REFUSE, "credentials", "thread %d: %s",
					       (int)t->v[i].image_tid, why);
	return 0;
}

int rattrs_judge(struct restore *r, struct usnap_err *err)
{
	struct rcreds own;
	int e = rcreds_own(&own);

	if (e == 0)
		e = judge_creds(r, &own);
	if (e == 0)
		e = judge_scheduling(r, &own);
	for (size_t i = 0; i < r->threads->n && e == 0 && r->o->detach; i++)
		if (r->threads->v[i].pdeathsig)
			e = restore_problem(r, RESTORE_NOTE, "parent-death-signal",
					    "thread %d was to get signal %d when its parent ends; "
					    "detached, it has none that could",
					    (int)r->threads->v[i].image_tid,
					    r->threads->v[i].pdeathsig);
	rcreds_free(&own);
	return e < 0 ? usnap_fail_errno(err, e, "cannot restore") : 0;
}

bool restore_ignores(const struct restore *r, const char *kind)
{
	for (size_t i = 0; i < r->o->nr_ignore; i++)
		if (!strcmp(r->o->ignore[i], kind))
			return true;
	return false;
}

/* ---- by the threads themselves ---------------------------------------------------------------- */

static void add_attributes(struct rcalls *c, const struct rthreads *t, const struct rthread *th)
{
	rcalls_add(c, "set its name", SYS_prctl, PR_SET_NAME,
		   stub_data(&c->b, th->name, sizeof(th->name)), 0, 0, 0);
	if (th->has_altstack && !(th->altstack.ss_flags & SS_DISABLE))
		rcalls_add(c, "set its alternate signal stack", SYS_sigaltstack,
			   stub_data(&c->b, &th->altstack, sizeof(th->altstack)), 0, 0, 0, 0);
	if (th->robust_head)
		rcalls_add(c, "set its list of robust futexes", SYS_set_robust_list,
			   th->robust_head, ROBUST_HEAD_BYTES, 0, 0, 0);
	if (th->tid_address)
		rcalls_add(c, "set its tid address", SYS_set_tid_address, th->tid_address, 0, 0, 0,
			   0);
	if (th->has_rseq)
		rcalls_add(c, "register its restartable sequences", SYS_rseq, th->rseq_addr,
			   th->rseq_len, 0, th->rseq_sig, 0);
	/* 0, of threads under a real-time policy, would mean the default. */
	if (th->timerslack_ns)
		rcalls_add(c, "set its timer slack", SYS_prctl, PR_SET_TIMERSLACK,
			   th->timerslack_ns, 0, 0, 0);
	if (t->has_personality)
		rcalls_add(c, "set its personality", SYS_personality, t->personality, 0, 0, 0, 0);
}

typedef void add_calls_fn(struct rcalls *c, struct restore *r, const struct rthread *th,
			  const void *arg);

/* One batch for each thread that has something to do; many threads, many rounds. */
static int all_threads(struct restore *r, add_calls_fn *add, const void *arg, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	cleanup_free struct rcalls *c = calloc(RCALLS_AT_ONCE, sizeof(*c));
	int e = 0;

	if (!c)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore");
	for (size_t from = 0; from < t->n && e == 0; from += RCALLS_AT_ONCE) {
		size_t end = MIN(t->n, from + RCALLS_AT_ONCE), n = 0;

		stub_reset(r->stub);
		for (size_t i = from; i < end; i++) {
			const struct rthread *th = &t->v[i];

			rcalls_begin(&c[n], r->stub, th->lane, th->tid);
			add(&c[n], r, th, arg);
			n += c[n].b.nr_calls > 0;
		}
		e = rcalls_run(c, n, err);
	}
	return e;
}

static void add_own(struct rcalls *c, struct restore *r, const struct rthread *th, const void *arg)
{
	add_attributes(c, r->threads, th);
}

int rattrs_restore(struct restore *r, struct usnap_err *err)
{
	return all_threads(r, add_own, NULL, err);
}

struct creds_arg {
	struct rcreds have;
	bool lenient;
	bool orphan; /* its parent, this program, ends when it runs */
};

static void add_creds(struct rcalls *c, struct restore *r, const struct rthread *th,
		      const void *arg)
{
	const struct creds_arg *a = arg;

	if (th->creds.known && !rcreds_equal(&th->creds, &a->have))
		rcreds_add(c, &th->creds, &a->have, a->lenient);
	/* A change of credentials clears it. The main thread's has been SIGKILL until now, so that
	 * the process would end with the restorer; PTRACE_O_EXITKILL sees to that from here on. */
	int signo = a->orphan ? 0 : th->pdeathsig;
	if (signo || th == &r->threads->v[r->threads->main])
		rcalls_add(c, "set its parent-death signal", SYS_prctl, PR_SET_PDEATHSIG,
			   (uint64_t)signo, 0, 0, 0);
}

int rattrs_credentials(struct restore *r, struct usnap_err *err)
{
	struct creds_arg a = {
		.lenient = restore_ignores(r, "credentials"),
		/* The init of a PID namespace stays. */
		.orphan = r->o->detach && getpid() != 1,
	};
	/* The new threads have the restorer's. */
	int e = rcreds_own(&a.have);

	if (e < 0)
		return usnap_fail_errno(err, e, "cannot restore the credentials");
	e = all_threads(r, add_creds, &a, err);
	rcreds_free(&a.have);
	return e;
}

/* ---- from outside ----------------------------------------------------------------------------- */

static int set_policy(const struct rthread *th)
{
	struct rsched want = th->sched, have;

	if (own_sched(th->tid, &have) < 0)
		return -errno;
	bool same_util =
		!th->has_util || (have.util_min == want.util_min && have.util_max == want.util_max);
	bool same = have.policy == want.policy && have.nice == want.nice &&
		    have.priority == want.priority && have.flags == want.flags && want.policy != 6;
	if (same && same_util)
		return 0;
	if (!same_util)
		want.flags |= SCHED_UTIL_CLAMPS;
	if (syscall(SYS_sched_setattr, th->tid, &want, 0) == 0)
		return 0;
	/* Kernels without clamps show 0 and 0, or nothing. */
	if (errno != EOPNOTSUPP && errno != EINVAL)
		return -errno;
	want.flags &= ~(uint64_t)SCHED_UTIL_CLAMPS;
	return syscall(SYS_sched_setattr, th->tid, &want, 0) < 0 ? -errno : 0;
}

static int set_affinity(const struct rthread *th)
{
	unsigned char have[CPU_BYTES] = {0}, mask[CPU_BYTES] = {0};
	bool any = false;

	long n = syscall(SYS_sched_getaffinity, th->tid, sizeof(have), have);
	if (n < 0)
		return -errno;
	for (size_t i = 0; i < MIN((size_t)n, th->affinity_len); i++) {
		mask[i] = th->affinity[i] & have[i];
		any |= mask[i];
	}
	if (!any || !memcmp(mask, have, (size_t)n))
		return 0;
	return syscall(SYS_sched_setaffinity, th->tid, (size_t)n, mask) < 0 ? -errno : 0;
}

static int set_ioprio(const struct rthread *th)
{
	int want = th->ioprio >> IOPRIO_CLASS_SHIFT ? th->ioprio : 0;
	long have = syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, th->tid);

	if (have < 0 || have == want || (!(have >> IOPRIO_CLASS_SHIFT) && !want))
		return 0;
	return syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, th->tid, want) < 0 ? -errno : 0;
}

int rattrs_schedule(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	bool lenient = restore_ignores(r, "scheduling");

	for (size_t i = 0; i < t->n; i++) {
		struct rthread *th = &t->v[i];
		/* A thread under SCHED_DEADLINE may not be bound to fewer CPUs than there
     * are. */
		int e = th->affinity ? set_affinity(th) : 0;

		if (e < 0)
			return usnap_fail_errno(err, e, "cannot bind thread %d to its CPUs",
						(int)th->tid);
		e = th->ioprio >= 0 ? set_ioprio(th) : 0;
		if (e == 0 && th->has_sched)
			e = set_policy(th);
		if (e < 0 && !lenient) {
			usnap_fail_errno(err, e, "cannot schedule thread %d as it was",
					 (int)th->tid);
			return usnap_hint(err, "--ignore scheduling goes on without");
		}
	}
	return 0;
}
