/*
 * The life of a chain: whether it can be had, begun, run to its end or stepped
 * through call by call, and undone.
 *
 * The order of what is written to the thread matters at every step: killed at
 * any point, we must leave a thread that goes on where it was by itself.
 */
#include "process/remote_internal.h"

#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "common/util.h"

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#ifndef PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG /* Linux 6.4 */
#define PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211
#endif
#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

unsigned long trace_options(const struct remote_gadgets *g, pid_t tid, unsigned long options)
{
	/* Filters judge our calls as if they were the thread's own. */
	if (g->seccomp &&
	    ptrace(PTRACE_SETOPTIONS, tid, NULL, (void *)(options | PTRACE_O_SUSPEND_SECCOMP)) == 0)
		return options | PTRACE_O_SUSPEND_SECCOMP;
	ptrace(PTRACE_SETOPTIONS, tid, NULL, (void *)options);
	return options;
}

/* A filter that cannot be suspended may answer an unknown call by killing the process: unless it
 * is known not to (filters.h). */
bool filter_in_the_way(const struct remote_gadgets *g, unsigned long options)
{
	return g->seccomp && !g->seccomp_harmless && !(options & PTRACE_O_SUSPEND_SECCOMP);
}

/* Its system calls are dispatched to a handler of its own (as by Wine): ours would be, too. */
bool dispatches_calls(pid_t tid)
{
	struct {
		uint64_t mode, selector, offset, len;
	} config = {0};

	return ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, (void *)sizeof(config),
		      &config) == 0 &&
	       config.mode;
}

/* A signal that is pending for the thread already would merge with ours. (One that is pending for
 * the process would not: it comes second, and by then it is blocked again.) */
static int pick_signal(const struct remote_gadgets *g, pid_t tid)
{
	static const int candidates[] = {SIGURG, SIGWINCH, SIGCHLD};

	if (!tracee_is_pending(tid, false, g->stop_signal))
		return g->stop_signal;
	for (size_t i = 0; i < ARRAY_SIZE(candidates); i++)
		if (!tracee_is_pending(tid, false, candidates[i]))
			return candidates[i];
	return 0;
}

int chain_init(struct chain *c, struct tracee *t, const struct target *target,
	       const struct remote_gadgets *g, bool step, bool helper)
{
	*c = (struct chain){
		.t = t, .target = target, .g = g, .sig = pick_signal(g, t->tid), .stepped = step};
	if (c->stepped && !helper && gadgets_complete(g)) {
		c->stepped = false;
		c->by_returns = true;
	}
	return c->sig ? 0 : -EBUSY;
}

void chain_free(struct chain *c)
{
	free(c->saved);
	free(c->image);
	free(c->xstate);
}

int wait_tid(pid_t tid, int *ret_status)
{
	int r;

	do
		r = tracee_wait(tid, 0, ret_status);
	while (r == -EINTR);
	return r;
}

/* SIGSTOP cannot be blocked, and those that a fault forces on a thread are not: sent by somebody,
 * they are sent again at the release. A fault: the chain broke (a filter, text that is not what it
 * was). */
int owe_signal(struct tracee *t, pid_t tid)
{
	siginfo_t info;

	if (ptrace(PTRACE_GETSIGINFO, tid, NULL, &info) < 0)
		return -ESRCH;
	if (info.si_code > 0)
		return -EFAULT;
	t->owed |= 1ull << (info.si_signo - 1);
	return 0;
}

/* Up to the point where the thread can be let go: from then on it would complete by itself. */
int chain_begin(struct chain *c, struct remote_batch *b)
{
	struct user_regs_struct regs;
	uint64_t mask;
	int r = chain_build(c, b, &regs);

	if (r < 0)
		return r;
	mask = chain_mask(c, false);
	c->begun = true;
	/* In this order: whatever is done when we die, the thread is either as it was or on a way
	 * that gives its mask back. */
	if (ptrace(PTRACE_SETREGS, c->t->tid, NULL, &regs) < 0 ||
	    ptrace(PTRACE_SETSIGMASK, c->t->tid, (void *)sizeof(mask), &mask) < 0)
		return -ESRCH;
	return 0;
}

static int wait_stop(struct tracee *t, int *ret_status)
{
	int r = wait_tid(t->tid, ret_status);

	t->stopped = r == 0;
	return r;
}

/* Lets the thread go on, by a request of ptrace, to its next stop that is no event: for a signal
 * or a system call. */
static int next_stop(struct chain *c, int request, chain_event_fn *on_event, void *arg,
		     int *ret_status)
{
	for (;;) {
		if (!c->running && ptrace(request, c->t->tid, NULL, NULL) < 0)
			return -ESRCH;
		c->running = false;
		int r = wait_stop(c->t, ret_status);
		if (r < 0)
			return r;
		int event = *ret_status >> 16;
		if (!event)
			return 0;
		/* The others are a group stop, or an interrupt that was still due. */
		if ((event == PTRACE_EVENT_CLONE || event == PTRACE_EVENT_VFORK) && on_event) {
			r = on_event(c, arg);
			if (r < 0)
				return r;
		}
	}
}

/* Lets the thread run until the chain's last call stops it. */
int chain_wait(struct chain *c, chain_event_fn *on_event, void *arg)
{
	for (;;) {
		int status, r = next_stop(c, PTRACE_CONT, on_event, arg, &status);

		if (r < 0)
			return r;
		if (WSTOPSIG(status) == c->sig) {
			siginfo_t info;

			/* One of the same number that was for the process came first: it is
			 * unblocked at the end only, and the stop is as good. */
			if (ptrace(PTRACE_GETSIGINFO, c->t->tid, NULL, &info) < 0)
				return -ESRCH;
			if (info.si_code != SI_TKILL)
				c->t->owed |= 1ull << (c->sig - 1);
			return 0;
		}
		r = owe_signal(c->t, c->t->tid);
		if (r < 0)
			return r;
	}
}

/*
 * rt_sigreturn ends a timed wait for good: a thread that was in one would
 * find it interrupted (EINTR) instead of going on with the time that is left
 * (the restart block; arch/x86/kernel/signal_64.c). Such a thread makes its
 * calls one by one, each stopped at its end before it can return to a frame;
 * the frames are there only for the death of the tracer, and make the wait anew.
 */
bool remote_is_slow(const struct tracee *t)
{
	return (int64_t)t->regs.orig_rax >= 0 && (int64_t)t->regs.rax == -516;
}

/* Steps over one system call of the thread: in, events, out. */
static int step_call(struct chain *c, chain_event_fn *on_event, void *arg)
{
	for (bool inside = false;;) {
		int status, r = next_stop(c, PTRACE_SYSCALL, on_event, arg, &status);

		if (r < 0)
			return r;
		if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
			if (inside)
				return 0;
			inside = true;
			continue;
		}
		r = owe_signal(c->t, c->t->tid);
		if (r < 0)
			return r;
	}
}

/* To a stop inside the kernel's signal handling, where an interrupted call is restarted. */
static int stop_again(struct tracee *t)
{
	int status;

	if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) < 0)
		return -ESRCH;
	do {
		if (ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0 || wait_stop(t, &status) < 0)
			return -ESRCH;
	} while (status >> 16 != PTRACE_EVENT_STOP);
	return 0;
}

/* As chain_wait() after chain_begin(), call by call. */
int chain_step(struct chain *c, const struct remote_batch *b, chain_event_fn *on_event, void *arg)
{
	struct user_regs_struct regs;
	uint64_t own_frame = c->frames_addr + b->nr_calls * sizeof(struct frame);
	int r = 0;

	for (unsigned i = 0; i < b->nr_calls && r == 0; i++) {
		struct frame f;

		/* Its return address: the thread's own context, without the stop. */
		frame_call(c, &f, &b->calls[i], own_frame, 0);
		frame_to_regs(c, &f, &regs);
		r = ptrace(PTRACE_SETREGS, c->t->tid, NULL, &regs) < 0
			    ? -ESRCH
			    : step_call(c, on_event, arg);
	}
	return r == -ESRCH ? r : stop_again(c->t) < 0 ? -ESRCH : r;
}

/* Gives back what was borrowed: memory, registers, signal mask. The xstate needs nothing: every
 * frame restored it. */
int chain_finish(struct chain *c, struct remote_batch *b)
{
	int r = 0;

	if (b && b->data_len)
		r = vm_read(c->target->pid, c->data_addr, b->data, b->data_len);
	/* Tiles may have kept a frame from restoring the rest: give it back whole. */
	if (c->tiles) {
		struct iovec iov = {c->xstate, c->xstate_full};
		ptrace(PTRACE_SETREGSET, c->t->tid, (void *)NT_X86_XSTATE, &iov);
	}
	/* The stack last: until the registers are back they point into it, should we die here. */
	struct user_regs_struct regs = c->t->regs;
	if (ptrace(PTRACE_SETSIGMASK, c->t->tid, (void *)sizeof(c->own_mask), &c->own_mask) < 0 ||
	    ptrace(PTRACE_SETREGS, c->t->tid, NULL, &regs) < 0)
		r = -ESRCH;
	if (vm_write(c->target->pid, c->frames_addr, c->saved, c->end - c->frames_addr) < 0 &&
	    r == 0)
		r = -EFAULT;
	return r;
}

int chain_run(struct chain *c, struct remote_batch *b, chain_event_fn *on_event, void *arg)
{
	int r = chain_begin(c, b);

	if (r < 0)
		return r;
	r = c->stepped ? chain_step(c, b, on_event, arg) : chain_wait(c, on_event, arg);
	if (r == -ESRCH)
		return r;
	int f = chain_finish(c, b);
	return r < 0 ? r : f;
}
