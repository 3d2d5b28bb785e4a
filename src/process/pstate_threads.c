/*
 * What belongs to one thread. The remote batches run here, one per thread;
 * the first also asks what concerns the whole process.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/io.h"
#include "common/util.h"
#include "process/pstate_internal.h"

#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif

#define IOPRIO_WHO_PROCESS 1
/* AVX-512 and AMX together take 11 KiB; ptrace says how much it gave. */
#define XSTATE_MAX KIB(16)
/* Of the descriptors that may be open, those that other things need. */
#define STATUS_FDS_MAX 256
/* A look at a wait takes some 30 us. */
#define WAITS_MAX 256

/* ---- before the freeze -------------------------------------------------- */

static int compare_tid(const void *a, const void *b)
{
	pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;

	return (x > y) - (x < y);
}

static void prepare_thread(struct pstate *ps, pid_t tid, struct wait_clocks *clocks,
			   struct thread_prep *p)
{
	char path[64];
	cleanup_free char *text = NULL;

	*p = (struct thread_prep){.tid = tid, .status_fd = -1, .blocks_fd = -1};
	if (ps->nr_preps < WAITS_MAX)
		wait_prepare(ps, p, clocks);
	snprintf(path, sizeof(path), "%d/status", (int)tid);
	if (ps->nr_preps < STATUS_FDS_MAX)
		p->status_fd = openat(ps->task_fd, path, O_RDONLY | O_CLOEXEC);

	/* Not under task/: /proc/TID answers though it is not listed. */
	snprintf(path, sizeof(path), "/proc/%d/timerslack_ns", (int)tid);
	if (io_read_file_at(AT_FDCWD, path, 64, &text, NULL) == 0) {
		p->timerslack_ns = strtoull(text, NULL, 10);
		p->has_timerslack = true;
	}
}

/* The children a thread has forked, appended to ps->children. */
static int prepare_children(struct pstate *ps, pid_t tid)
{
	char path[64];
	cleanup_free char *text = NULL;

	snprintf(path, sizeof(path), "%d/children", (int)tid);
	if (io_read_file_at(ps->task_fd, path, MIB(4), &text, NULL) < 0 || !text[0])
		return 0;
	char *all = NULL;
	if (asprintf(&all, "%s%s", ps->children ? ps->children : "", text) < 0)
		return -ENOMEM;
	free(ps->children);
	ps->children = all;
	return 0;
}

void pstate_disown(struct pstate *ps, pid_t child)
{
	for (char *s = ps->children, *end; s && *s; s = end) {
		long pid = strtol(s, &end, 10);

		if (end == s)
			break;
		if (pid == child)
			memset(s, ' ', (size_t)(end - s));
	}
}

int threads_prepare(struct pstate *ps)
{
	int fd = openat(ps->task_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	struct wait_clocks clocks = {0};
	size_t room = 0;

	if (!dir) {
		int r = -errno;

		if (fd >= 0)
			close(fd);
		return r;
	}
	for (const struct dirent *e; (e = readdir(dir));) {
		pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);

		if (tid <= 0)
			continue;
		if (ps->nr_preps == room) {
			room = room ? room * 2 : 16;
			struct thread_prep *bigger = realloc(ps->preps, room * sizeof(*bigger));
			if (!bigger)
				return -ENOMEM;
			ps->preps = bigger;
		}
		prepare_thread(ps, tid, &clocks, &ps->preps[ps->nr_preps]);
		ps->nr_preps++;
		int r = prepare_children(ps, tid);
		if (r < 0)
			return r;
	}
	qsort(ps->preps, ps->nr_preps, sizeof(*ps->preps), compare_tid); /* tid comes first */
	apart_prepare(ps);
	return 0;
}

const struct thread_prep *threads_find_prep(const struct pstate *ps, pid_t tid)
{
	if (!ps->nr_preps)
		return NULL;
	return bsearch(&tid, ps->preps, ps->nr_preps, sizeof(*ps->preps), compare_tid);
}

/* ---- in the freeze ------------------------------------------------------ */

int thread_collect_status(struct pstate *ps, struct arena *a, size_t i)
{
	struct thread_state *th = &ps->threads[i];
	const struct thread_prep *p = threads_find_prep(ps, th->tid);
	char path[64];

	if (p && p->status_fd >= 0)
		return arena_pread(a, p->status_fd, &th->status);
	snprintf(path, sizeof(path), "%d/status", (int)th->tid);
	return arena_read_at(a, ps->task_fd, path, &th->status);
}

static int collect_xstate(struct thread_state *th)
{
	static const size_t fpregs = sizeof(struct user_fpregs_struct);
	struct iovec iov = {th->xstate, XSTATE_MAX};

	/* A machine without XSAVE has the fxsave area only; it begins alike. */
	if (ptrace(PTRACE_GETREGSET, th->tid, (void *)NT_X86_XSTATE, &iov) < 0) {
		iov.iov_len = fpregs;
		if (ptrace(PTRACE_GETREGSET, th->tid, (void *)NT_PRFPREG, &iov) < 0)
			return -errno;
	}
	th->xstate_len = iov.iov_len;
	return 0;
}

static void collect_scheduling(struct thread_state *th)
{
	void *head = NULL;
	size_t len = 0;

	th->has_sched = syscall(SYS_sched_getattr, th->tid, &th->sched, sizeof(th->sched), 0) == 0;
	th->has_affinity = sched_getaffinity(th->tid, sizeof(th->affinity), &th->affinity) == 0;
	th->ioprio = (int)syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, th->tid);
	th->has_ioprio = th->ioprio >= 0;
	th->has_robust = syscall(SYS_get_robust_list, th->tid, &head, &len) == 0;
	th->robust_head = (uintptr_t)head;
	th->robust_len = len;
}

static int collect_thread(const struct pstate *ps, const struct tracee *t, struct thread_state *th)
{
	th->group_stop = t->group_stop;
	int r = collect_xstate(th);
	if (r < 0)
		return r;
	if (ptrace(PTRACE_GETSIGMASK, t->tid, (void *)sizeof(th->sigmask), &th->sigmask) < 0)
		return -errno;
	signals_peek(t->tid, false, &th->pending);
	th->has_rseq = ptrace(PTRACE_GET_RSEQ_CONFIGURATION, t->tid, (void *)sizeof(th->rseq),
			      &th->rseq) == (long)sizeof(th->rseq);
	collect_scheduling(th);
	wait_collect(ps, threads_find_prep(ps, t->tid), th, &t->regs);
	return 0;
}

/* What only the thread itself can ask. Offsets of the answers. */
struct own_calls {
	int altstack, tid_address, pdeathsig;
};

static void own_add(struct remote_batch *b, struct own_calls *c)
{
	c->altstack = remote_batch_data(b, NULL, sizeof(stack_t));
	c->tid_address = remote_batch_data(b, NULL, 8);
	c->pdeathsig = remote_batch_data(b, NULL, 4);
	remote_batch_call(b, SYS_sigaltstack, 1u << 1, 0, (uint64_t)c->altstack, 0, 0, 0);
	remote_batch_call(b, SYS_prctl, 1u << 1, PR_GET_TID_ADDRESS, (uint64_t)c->tid_address, 0, 0,
			  0);
	remote_batch_call(b, SYS_prctl, 1u << 1, PR_GET_PDEATHSIG, (uint64_t)c->pdeathsig, 0, 0, 0);
}

static void own_take(const struct remote_batch *b, const struct own_calls *c,
		     struct thread_state *th)
{
	stack_t ss;

	th->has_altstack = !remote_batch_untouched(b, (unsigned)c->altstack, sizeof(ss));
	memcpy(&ss, b->data + c->altstack, sizeof(ss));
	th->altstack_sp = (uintptr_t)ss.ss_sp;
	th->altstack_size = ss.ss_size;
	th->altstack_flags = (uint32_t)ss.ss_flags;
	th->has_tid_address = !remote_batch_untouched(b, (unsigned)c->tid_address, 8);
	memcpy(&th->tid_address, b->data + c->tid_address, 8);
	th->has_pdeathsig = !remote_batch_untouched(b, (unsigned)c->pdeathsig, 4);
	memcpy(&th->pdeathsig, b->data + c->pdeathsig, 4);
}

/* Batches that run at the same time. */
enum {
	THREADS_AT_ONCE = 64
};

/* What the batch of a thread asks for. */
struct thread_calls {
	struct own_calls own;
	struct remote_known known;
	struct signal_calls process; /* of the thread that asks for the whole process */
	struct remote_batch batch;
};

/* More timers than fit into one batch. */
static int ask_for_timers(struct pstate *ps, struct remote_job *job, struct signal_calls *calls,
			  struct usnap_err *err)
{
	while (calls->timer_to < ps->signals.nr_timers) {
		remote_batch_init(job->b);
		signals_add(ps, job->b, calls, calls->timer_to);
		int r = remote_run_all(job, 1, ps->t, &ps->gadgets, (struct remote_meanwhile){0},
				       err);
		if (r < 0)
			return r;
		if (job->result < 0)
			return 0; /* unknown, and told so */
		signals_take(ps, job->b, calls);
	}
	return 0;
}

/* Asks every thread at once for what only it can tell; thread number first also for the process. */
static int ask(struct pstate *ps, struct tracees *ts, size_t from, size_t n, size_t first,
	       struct thread_calls *calls, struct remote_job *jobs, struct usnap_err *err)
{
	for (size_t i = 0; i < n; i++) {
		remote_batch_init(&calls[i].batch);
		const struct thread_state *th = &ps->threads[from + i];
		calls[i].known = (struct remote_known){
			.xstate = th->xstate,
			.xstate_len = th->xstate_len,
			.sigmask = th->sigmask,
			.rseq = th->has_rseq ? th->rseq.addr : 0,
			.wait_nr = th->wait.nr,
		};
		jobs[i] = (struct remote_job){
			.t = &ts->t[from + i], .known = &calls[i].known, .b = &calls[i].batch};
		own_add(&calls[i].batch, &calls[i].own);
		if (from + i == first)
			signals_add(ps, &calls[i].batch, &calls[i].process, 0);
	}
	int r = remote_run_all(jobs, n, ps->t, &ps->gadgets, ps->meanwhile, err);
	ps->meanwhile.fn = NULL; /* done */
	for (size_t i = 0; i < n && r == 0; i++) {
		struct thread_state *th = &ps->threads[from + i];

		/* Only now: a restartable sequence that was underway has been
		 * aborted, as the kernel does when it gives the CPU away. */
		th->regs = ts->t[from + i].regs;
		if (jobs[i].result < 0)
			continue; /* what it would have told stays unknown */
		own_take(&calls[i].batch, &calls[i].own, th);
		if (from + i != first)
			continue;
		signals_take(ps, &calls[i].batch, &calls[i].process);
		ps->signals_known = true;
		r = ask_for_timers(ps, &jobs[i], &calls[i].process, err);
	}
	return r;
}

/* As many as there are now and some more, with memory that is there: a page
 * fault of ours in the freeze costs as much as a system call. */
int threads_reserve(struct pstate *ps, size_t n)
{
	if (!ps->calls) {
		ps->calls = calloc(THREADS_AT_ONCE, sizeof(*ps->calls));
		if (!ps->calls)
			return -ENOMEM;
		memset(ps->calls, 1, MIN(n, (size_t)THREADS_AT_ONCE) * sizeof(*ps->calls));
	}
	if (n > ps->thread_room) {
		struct thread_state *bigger = realloc(ps->threads, n * sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		ps->threads = bigger;
		for (; ps->thread_room < n; ps->thread_room++) {
			struct thread_state *th = &bigger[ps->thread_room];

			*th = (struct thread_state){.xstate = malloc(XSTATE_MAX)};
			if (!th->xstate)
				return -ENOMEM;
			memset(th->xstate, 0, KIB(4)); /* seldom more is used */
		}
	}
	return 0;
}

int threads_collect(struct pstate *ps, struct tracees *ts, struct usnap_err *err)
{
	struct remote_job jobs[THREADS_AT_ONCE];

	ps->stopped_ns = now_ns();
	for (size_t i = 0; i < ts->n; i++) {
		int r = collect_thread(ps, &ts->t[i], &ps->threads[i]);
		if (r < 0)
			return usnap_fail_errno(err, r, "cannot read the state of thread %d",
						(int)ts->t[i].tid);
	}
	int r = crew_finish_first(ps);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot read the state of process %d",
					(int)ps->t->pid);
	r = signals_begin(ps, err);
	/* Any thread can ask for the whole process; one in a timed wait takes longer over it. */
	size_t first = 0;
	while (first + 1 < ts->n && remote_is_slow(&ts->t[first]))
		first++;
	for (size_t from = 0; from < ts->n && r == 0; from += THREADS_AT_ONCE)
		r = ask(ps, ts, from, MIN(ts->n - from, (size_t)THREADS_AT_ONCE), first, ps->calls,
			jobs, err);
	/* The first may have had no room on its stack: then any other. */
	for (size_t i = 0; i < ts->n && r == 0 && !ps->signals_known; i++)
		r = ask(ps, ts, i, 1, i, ps->calls, jobs, err);
	if (r == 0)
		signals_end(ps);
	return r;
}

/* ---- afterwards ---------------------------------------------------------- */

void threads_forget(struct pstate *ps)
{
	for (size_t i = 0; i < ps->nr_threads; i++) {
		struct thread_state *th = &ps->threads[i];
		unsigned char *xstate = th->xstate;

		free(th->pending.v);
		free(th->notes);
		seccomp_forget(th);
		*th = (struct thread_state){.xstate = xstate};
	}
	ps->nr_threads = 0;
}

void threads_free(struct pstate *ps)
{
	for (size_t i = 0; i < ps->nr_preps; i++) {
		if (ps->preps[i].status_fd >= 0)
			close(ps->preps[i].status_fd);
		if (ps->preps[i].blocks_fd >= 0)
			close(ps->preps[i].blocks_fd);
	}
	free(ps->preps);
	threads_forget(ps);
	for (size_t i = 0; i < ps->thread_room; i++)
		free(ps->threads[i].xstate);
	free(ps->threads);
	free(ps->calls);
}
