/*
 * The helper: a thread of the target with a descriptor table of its own, made
 * by a batch of one call and driven call by call; remote.h has the design.
 */
#include "process/remote_internal.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/util.h"

struct helper_start {
	struct remote_helper h;
	remote_helper_fn *fn;
	void *arg;
	unsigned data_offset, frame_offset;
	struct usnap_err *err;
	int result;
	bool started;
};

static bool is_call_stop(int status)
{
	return !(status >> 16) && WSTOPSIG(status) == (SIGTRAP | 0x80);
}

int64_t remote_helper_call(struct remote_helper *h, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
			   uint64_t a3, uint64_t a4)
{
	struct user_regs_struct r = h->regs;

	r.orig_rax = (uint64_t)-1;
	r.rip = h->g->syscall_ret;
	r.rsp = h->stack;
	r.rax = (uint64_t)nr;
	r.rdi = a0;
	r.rsi = a1;
	r.rdx = a2;
	r.r10 = a3;
	r.r8 = a4;
	r.r9 = 0;
	if (ptrace(PTRACE_SETREGS, h->tid, NULL, &r) < 0)
		return -ESRCH;
	/* One stop on the way in, one on the way out. */
	for (int i = 0, others = 0; i < 2; i++) {
		int status;

		if (ptrace(PTRACE_SYSCALL, h->tid, NULL, NULL) < 0)
			return -ESRCH;
		if (wait_tid(h->tid, &status) < 0)
			return -ESRCH;
		if (is_call_stop(status))
			continue;
		/* A group stop passes by: it concerns the threads that stay. So do signals. */
		int e = status >> 16 ? 0 : owe_signal(h->beside, h->tid);
		if (e < 0 || others++ > 100)
			return e < 0 ? e : -EFAULT;
		i--;
	}
	if (ptrace(PTRACE_GETREGS, h->tid, NULL, &r) < 0)
		return -ESRCH;
	return (int64_t)r.rax;
}

/* The clone event: the helper exists and is about to stop. */
static int helper_started(struct chain *c, void *arg)
{
	struct helper_start *s = arg;
	unsigned long tid = 0;
	int status;

	if (s->started || ptrace(PTRACE_GETEVENTMSG, c->t->tid, NULL, &tid) < 0)
		return 0;
	s->started = true;
	s->h.tid = (pid_t)tid;
	s->h.data = c->data_addr + s->data_offset;
	s->h.stack = c->data_addr + s->frame_offset;
	if (wait_tid(s->h.tid, &status) == 0 &&
	    ptrace(PTRACE_GETREGS, s->h.tid, NULL, &s->h.regs) == 0)
		s->result = s->fn(&s->h, s->arg, s->err);
	else
		s->result = usnap_fail(s->err, -ESRCH,
				       "cannot snapshot process %d: its helper thread was killed",
				       c->target->pid);

	/* Not let go to find its own way out: while the process is stopped (SIGSTOP) it would
	 * join that stop, and the thread that waits for its end with it. */
	struct user_regs_struct r = s->h.regs;
	r.orig_rax = (uint64_t)-1;
	r.rip = c->g->syscall_ret;
	r.rsp = s->h.stack;
	r.rax = SYS_exit;
	r.rdi = 0;
	ptrace(PTRACE_SETREGS, s->h.tid, NULL, &r);
	/* Also one that was killed is there until it has been waited for. */
	for (;;) {
		ptrace(PTRACE_CONT, s->h.tid, NULL, NULL);
		if (wait_tid(s->h.tid, &status) < 0)
			return 0;
		if (!(status >> 16) && !is_call_stop(status))
			owe_signal(c->t, s->h.tid);
	}
}

static bool have_pidfd_thread(void)
{
	cleanup_fd int fd = (int)syscall(SYS_pidfd_open, gettid(), PIDFD_THREAD);

	return fd >= 0;
}

static int fail_remote(struct usnap_err *err, int r, const struct target *target,
		       const struct tracee *t)
{
	switch (r) {
	case -ENOSPC:
		return usnap_fail(err, r,
				  "cannot make system calls in thread %d: it has no room below its "
				  "stack pointer",
				  t->tid);
	case -ESRCH:
		return usnap_fail(err, r, "cannot snapshot process %d: its thread %d was killed",
				  target->pid, t->tid);
	default:
		return usnap_fail_errno(err, r, "cannot make system calls in thread %d", t->tid);
	}
}

int remote_with_helper(struct tracee *t, const struct target *target,
		       const struct remote_gadgets *g, long wait_nr, remote_helper_fn *fn,
		       void *arg, struct usnap_err *err)
{
	enum {
		HELPER_DATA = 1024
	};
	struct chain c;
	struct helper_start s = {.fn = fn, .arg = arg, .err = err, .result = -ECHILD};
	cleanup_free struct remote_batch *b = malloc(sizeof(*b));
	if (!b)
		return usnap_fail_errno(err, -ENOMEM, "cannot start a helper");

	if (dispatches_calls(t->tid)) {
		usnap_fail(err, -EPERM,
			   "cannot make system calls in thread %d: it dispatches its own", t->tid);
		return usnap_hint(err, "programs under Wine or another emulator do that");
	}
	if (chain_init(&c, t, target, g, true, true) < 0)
		return usnap_fail(
			err, -EBUSY,
			"cannot make system calls in thread %d: it has too many signals pending",
			t->tid);

	c.wait_nr = wait_nr;

	/* A table of its own can only be reached through a descriptor for the thread. */
	s.h = (struct remote_helper){
		.g = g, .beside = t, .own_files = have_pidfd_thread(), .data_len = HELPER_DATA};
	remote_batch_init(b);
	s.data_offset = (unsigned)remote_batch_data(b, NULL, HELPER_DATA);

	/* Its return address: a frame that calls exit(0). */
	struct frame end;
	frame_exit(g, &end);
	int off = remote_batch_data(b, &end, sizeof(end));
	s.frame_offset = (unsigned)off;

	uint64_t flags = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_VFORK | CLONE_SYSVSEM |
			 (s.h.own_files ? 0 : CLONE_FILES);
	remote_batch_call(b, SYS_clone, 1u << 1, flags, (uint64_t)off, 0, 0, 0);

	unsigned long options = trace_options(
		g, t->tid, PTRACE_O_TRACECLONE | PTRACE_O_TRACEVFORK | PTRACE_O_TRACESYSGOOD);
	if (filter_in_the_way(g, options)) {
		ptrace(PTRACE_SETOPTIONS, t->tid, NULL, NULL);
		usnap_fail(err, -EPERM,
			   "cannot make system calls in process %d: it is under a seccomp filter, "
			   "which might end it for that",
			   target->pid);
		return usnap_hint(err,
				  "as root (CAP_SYS_ADMIN) and under no filter oneself, as on the "
				  "host of a container, it can be suspended");
	}
	int r = chain_run(&c, b, helper_started, &s);
	ptrace(PTRACE_SETOPTIONS, t->tid, NULL, NULL);
	chain_free(&c);
	if (r < 0)
		return fail_remote(err, r, target, t);
	if (!s.started) {
		usnap_fail(err, -EAGAIN, "cannot start a helper thread in process %d", target->pid);
		return usnap_hint(err, "it may have reached its limit of threads (pids cgroup, "
				       "ulimit -u), or a seccomp filter forbids clone");
	}
	return s.result;
}
