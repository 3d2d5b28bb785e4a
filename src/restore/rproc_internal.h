/*
 * What belongs to the process as a whole, as the files that restore it share
 * it.
 *
 *	rproc.c      the plan; session, directories and the like, made in the
 *builder rlimits.c    resource limits rtimers.c    interval and POSIX timers
 *	rspaces.c    namespaces and cgroup: told, not made
 */
#ifndef USNAP_RESTORE_RPROC_INTERNAL_H
#define USNAP_RESTORE_RPROC_INTERNAL_H

#include <sys/resource.h>

#include "restore/rproc.h"
#include "restore/rsignals.h"

struct rlimits {
	struct {
		bool known;
		struct rlimit v;
	} v[RLIM_NLIMITS];
};

struct rtimer {
	int id, clock, signo, notify;
	pid_t tid; /* SIGEV_THREAD_ID */
	uint64_t sigval;
	uint64_t value_ns, interval_ns; /* value 0: does not run */
};

struct ritimer {
	uint64_t value_ns, interval_ns;
};

struct rtimers {
	struct ritimer itimers[3]; /* ITIMER_* */
	struct rtimer *v; /* ascending by ID */
	size_t n;
};

struct rproc {
	char *cwd, *root;
	bool cwd_deleted;
	int umask; /* -1: not known, as below */
	int dumpable, thp_disable, child_subreaper, mdwe, memory_merge, io_flusher;
	uint64_t membarrier; /* commands that register */
	bool has_oom, has_filter;
	int oom_score_adj;
	uint64_t coredump_filter;
	bool leads_session, leads_group;
	struct ractions actions;
	struct rsignals pending;
	struct rlimits limits;
	struct rtimers timers;
};

/* rattrs.c: whether the user said so. */
bool restore_ignores(const struct restore *r, const char *kind);

/* rthreads.c: the number that a thread has for itself, 0 when there is none
 * such; image_tid: as the snapshotter saw it. */
pid_t rthreads_own_tid(const struct restore *r, int64_t image_tid);

/* rproc.c: what a change of credentials would undo; after it. */
int rproc_settle(struct restore *r, struct usnap_err *err);

int rlimits_plan(struct restore *r, struct rlimits *l, struct usnap_err *err);
/* Raises those that must be raised, while that is still allowed. */
int rlimits_raise(struct restore *r, struct rlimits *l, struct usnap_err *err);
/* As they were. */
int rlimits_restore(struct restore *r, const struct rlimits *l, struct usnap_err *err);

int rtimers_plan(struct restore *r, struct rtimers *t, struct usnap_err *err);
void rtimers_free(struct rtimers *t);
/* With their IDs; none runs. */
int rtimers_create(struct restore *r, const struct rtimers *t, struct usnap_err *err);
int rtimers_arm(struct restore *r, const struct rtimers *t, struct usnap_err *err);

int rspaces_judge(struct restore *r, struct usnap_err *err);

#endif
