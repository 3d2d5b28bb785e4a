/*
 * The threads of a restored process, as the files that make them share them.
 *
 *	rthreads.c       the plan; threads made under their numbers
 *	rthread_json.c   threads[] of process.json, parsed
 *	rnotes.c         registers out of threads/TID.notes
 *	rxstate.c        the extended state, laid out for this machine
 *	rattrs.c         what each thread sets by itself; scheduling
 *	rseccomp.c       filters
 *	rtracees.c       the end: seized, registers set, the stub gone, let go
 *	rrseq.c          restartable sequences that threads were in
 *	rwaits.c         timed waits that go on with the time that was left
 *
 * Everything comes from the image and is hostile until parsed.
 */
#ifndef USNAP_RESTORE_RTHREADS_INTERNAL_H
#define USNAP_RESTORE_RTHREADS_INTERNAL_H

#include <signal.h>
#include <sys/user.h>

#include "restore/rcreds.h"
#include "restore/rsignals.h"
#include "restore/rthreads.h"
#include "restore/rxstate.h"

/* struct sched_attr (sched_setattr(2)), which headers have in different places.
 */
struct rsched {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
	uint32_t util_min, util_max;
};

/* A system call that the stop of the snapshot has interrupted. */
struct rwait {
	int64_t nr; /* -1: not known */
	int64_t left_ns; /* -1: not known */
};

struct rthread {
	pid_t tid; /* for the process itself: of the innermost namespace */
	pid_t image_tid; /* in the image */
	char name[16];
	uint64_t sigmask;
	bool has_altstack, has_rseq, has_sched, has_util;
	stack_t altstack;
	uint64_t tid_address, robust_head; /* 0: none */
	uint64_t rseq_addr;
	uint32_t rseq_len, rseq_sig;
	struct rsched sched;
	unsigned char *affinity; /* CPU 0 is the lowest bit; NULL: not known */
	size_t affinity_len;
	int ioprio; /* -1: not known */
	uint64_t timerslack_ns; /* 0: not known */
	int pdeathsig;
	struct rsignals pending;
	bool stopped; /* by job control */
	struct rwait wait;
	struct rcreds creds;
	uint32_t *filters; /* numbers of programs, the one installed last first */
	size_t nr_filters;
	struct user_regs_struct regs;
	unsigned char *xstate; /* laid out for this machine */

	struct stub_lane *lane;
	bool seized;
};

struct rprogram {
	unsigned char *p; /* struct sock_filter */
	size_t bytes;
};

struct rthreads {
	struct rthread *v;
	size_t n, main; /* main: which is the main thread */
	struct xlayout layout; /* of this machine's extended state */
	struct rprogram *programs;
	size_t nr_programs;
	uint64_t personality;
	bool has_personality;
	bool filtered; /* some thread has filters, and they shall come back */
	bool stop; /* left as after SIGSTOP */
};

/* ---- rthread_json.c ---- */

int rthread_parse(struct rthread *th, const json_t *o, struct usnap_err *err);
void rthread_free(struct rthread *th);

/* ---- rnotes.c ---- */

/* Registers and extended state of th, checked. */
int rnotes_parse(struct rthread *th, const struct xlayout *here, const void *notes, size_t len,
		 struct xmissing *missing, struct usnap_err *err);

/* ---- rattrs.c ---- */

int rattrs_judge(struct restore *r, struct usnap_err *err);
/* Names, stacks, lists ...: by all threads at the same time. */
int rattrs_restore(struct restore *r, struct usnap_err *err);
/* Scheduling, affinity, I/O priority: from here. */
int rattrs_schedule(struct restore *r, struct usnap_err *err);
/* Credentials and what a change of them would undo. */
int rattrs_credentials(struct restore *r, struct usnap_err *err);

/* ---- rseccomp.c ---- */

int rseccomp_plan(struct restore *r, struct usnap_err *err);
int rseccomp_restore(struct restore *r, struct usnap_err *err);

/* ---- rtracees.c ---- */

/* Threads go on in the stub; filters do not hold while they are seized. */
int rtracees_seize(struct restore *r, struct usnap_err *err);
/* A call made by a stopped thread. Returns what it returned, or -ESRCH with
 * *ret_ended set. */
int rtracee_enter(struct restore *r, struct rthread *th, const struct user_regs_struct *call,
		  struct usnap_err *err);
int rtracee_interrupt(struct restore *r, struct rthread *th, struct usnap_err *err);

/* ---- rrseq.c ---- */

/* Before threads register theirs: those that were in one go on at its abort handler. */
void rrseq_abort(struct restore *r);

/* ---- rwaits.c ---- */

/* The call that a thread was in when its registers say -ERESTART_RESTARTBLOCK,
 * by its registers and the instruction before; -1: cannot be told. code: the
 * bytes before regs->rip. */
int64_t rwait_guess(const struct user_regs_struct *regs, const unsigned char *code, size_t len);
/* The registers of the call that waits for what was left: one of its arguments
 * replaced by a time, which goes to slot (address; *ret_time holds what belongs
 * there). False: no such call. */
bool rwait_prepare(const struct user_regs_struct *regs, const struct rwait *w, uint64_t slot,
		   struct user_regs_struct *ret, struct timespec *ret_time);
/* All threads stand still. Those that were in a timed wait go into it again,
 * for as long as was left, and are interrupted in it; their regs then say how
 * it ended. */
int rwaits_restore(struct restore *r, struct usnap_err *err);

#endif
