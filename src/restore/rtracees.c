/*
 * The end of a restore: threads under ptrace(2).
 *
 * DESIGN. All threads are seized while they still work for the stub, when
 * nothing about them forbids it yet; PTRACE_O_EXITKILL from then on ends them
 * with the restorer. In the end each is interrupted where it waits in the
 * stub. It then stops in the place where the kernel looks for signals
 * (get_signal()), and so do all stops that matter here: on its way from
 * there the kernel decides by rax and orig_rax whether a system call that was
 * interrupted is started again or has failed with EINTR, exactly as it would
 * have done in the process that was snapshotted.
 *
 * Calls under ptrace are made by the "syscall" of the stub: a syscall-entry
 * stop, and from there either the call's end or an interrupt that is sure to
 * find the thread in it.
 */
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "common/util.h"
#include "restore/rthreads_internal.h"

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#define SYSCALL_STOP (SIGTRAP | 0x80) /* with PTRACE_O_TRACESYSGOOD */

static int cannot(struct usnap_err *err, int code, const struct rthread *th, const char *verb)
{
	if (code == -ESRCH)
		return usnap_fail(err, code, "cannot restore: the new process was killed");
	return usnap_fail_errno(err, code, "cannot %s thread %d", verb, (int)th->tid);
}

int rtracees_seize(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	unsigned long options = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD;

	if (t->filtered)
		options |= PTRACE_O_SUSPEND_SECCOMP;
	for (size_t i = 0; i < t->n; i++) {
		struct rthread *th = &t->v[i];

		if (ptrace(PTRACE_SEIZE, th->tid, NULL, (void *)options) < 0)
			return cannot(err, -errno, th, "trace");
		th->seized = true;
	}
	return 0;
}

/* ---- stops
 * ------------------------------------------------------------------------------
 */

static int wait_for(const struct rthread *th, int *ret_status)
{
	pid_t p;

	do
		p = waitpid(th->tid, ret_status, __WALL);
	while (p < 0 && errno == EINTR);
	if (p < 0)
		return -errno;
	return WIFSTOPPED(*ret_status) ? 0 : -ESRCH;
}

/* Waits for a stop of this kind, letting the thread go on from others: a
 * SIGSTOP that somebody sends cannot be blocked; it shall hold in the end. */
static int wait_stop(struct restore *r, struct rthread *th, bool syscall_stop)
{
	int status;

	for (;;) {
		int e = wait_for(th, &status);
		if (e < 0)
			return e;
		int sig = WSTOPSIG(status);
		bool event = status >> 16 == PTRACE_EVENT_STOP;

		r->threads->stop |= sig == SIGSTOP;
		if (syscall_stop ? sig == SYSCALL_STOP : event)
			return 0;
		if (!event && sig != SIGSTOP)
			return -EPROTO; /* a fault in the stub */
		if (ptrace(syscall_stop ? PTRACE_SYSCALL : PTRACE_CONT, th->tid, NULL, NULL) < 0)
			return -errno;
	}
}

static int stop_all(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;

	for (size_t i = 0; i < t->n; i++)
		if (ptrace(PTRACE_INTERRUPT, t->v[i].tid, NULL, NULL) < 0)
			return cannot(err, -errno, &t->v[i], "stop");
	for (size_t i = 0; i < t->n; i++) {
		int e = wait_stop(r, &t->v[i], false);

		if (e < 0)
			return cannot(err, e, &t->v[i], "stop");
	}
	return 0;
}

/* ---- calls
 * ------------------------------------------------------------------------------
 */

/* To the syscall-entry stop of a call. */
int rtracee_enter(struct restore *r, struct rthread *th, const struct user_regs_struct *call,
		  struct usnap_err *err)
{
	struct user_regs_struct regs = *call;

	regs.rip = stub_syscall_insn(r->stub);
	regs.orig_rax = (uint64_t)-1; /* nothing to start again before it */
	if (ptrace(PTRACE_SETREGS, th->tid, NULL, &regs) < 0 ||
	    ptrace(PTRACE_SYSCALL, th->tid, NULL, NULL) < 0)
		return cannot(err, -errno, th, "steer");
	int e = wait_stop(r, th, true);
	return e < 0 ? cannot(err, e, th, "steer") : 0;
}

/* From the entry of a call to a stop right behind it, or in it when it waits:
 * rax of th->regs. */
int rtracee_interrupt(struct restore *r, struct rthread *th, struct usnap_err *err)
{
	struct user_regs_struct regs;

	if (ptrace(PTRACE_INTERRUPT, th->tid, NULL, NULL) < 0 ||
	    ptrace(PTRACE_CONT, th->tid, NULL, NULL) < 0)
		return cannot(err, -errno, th, "steer");
	int e = wait_stop(r, th, false);
	if (e == 0 && ptrace(PTRACE_GETREGS, th->tid, NULL, &regs) < 0)
		e = -errno;
	if (e < 0)
		return cannot(err, e, th, "steer");
	th->regs.rax = regs.rax;
	return 0;
}

/* The last call: from then on there is no code of the stub any more. */
static int unmap_stub(struct restore *r, struct rthread *th, struct usnap_err *err)
{
	struct user_regs_struct call = th->regs, regs;

	call.rax = SYS_munmap;
	call.rdi = stub_addr(r->stub);
	call.rsi = stub_len(r->stub);
	int e = rtracee_enter(r, th, &call, err);
	if (e < 0)
		return e;
	if (ptrace(PTRACE_SYSCALL, th->tid, NULL, NULL) < 0)
		return cannot(err, -errno, th, "steer");
	e = wait_stop(r, th, true);
	if (e == 0 && ptrace(PTRACE_GETREGS, th->tid, NULL, &regs) < 0)
		e = -errno;
	if (e == 0 && regs.rax != 0)
		return usnap_fail_errno(err, (int)regs.rax, "cannot take the stub away");
	/* To a stop where signals are looked for, before it returns to where nothing
   * is. */
	if (e == 0 && (ptrace(PTRACE_INTERRUPT, th->tid, NULL, NULL) < 0 ||
		       ptrace(PTRACE_CONT, th->tid, NULL, NULL) < 0))
		e = -errno;
	if (e == 0)
		e = wait_stop(r, th, false);
	return e < 0 ? cannot(err, e, th, "steer") : 0;
}

/* ---- the end
 * ----------------------------------------------------------------------------
 */

static int set_registers(const struct rthreads *t, struct rthread *th, struct usnap_err *err)
{
	struct iovec iov = {th->xstate, t->layout.size};

	if (ptrace(PTRACE_SETREGSET, th->tid, (void *)NT_X86_XSTATE, &iov) < 0)
		return cannot(err, -errno, th, "set the extended state of");
	if (ptrace(PTRACE_SETREGS, th->tid, NULL, &th->regs) < 0)
		return cannot(err, -errno, th, "set the registers of");
	if (ptrace(PTRACE_SETSIGMASK, th->tid, (void *)sizeof(th->sigmask), &th->sigmask) < 0)
		return cannot(err, -errno, th, "set the signal mask of");
	return 0;
}

int rthreads_finish(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	int e = stop_all(r, err);

	if (e == 0)
		e = rwaits_restore(r, err);
	if (e == 0)
		e = unmap_stub(r, &t->v[t->main], err);
	for (size_t i = 0; i < t->n && e == 0; i++)
		e = set_registers(t, &t->v[i], err);
	return e;
}

int rthreads_release(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;

	/* Whichever thread looks first stops them all, before it runs. */
	if (t->stop)
		syscall(SYS_pidfd_send_signal, r->builder_pidfd, SIGSTOP, NULL, 0);
	for (size_t i = 0; i < t->n; i++) {
		t->v[i].seized = ptrace(PTRACE_DETACH, t->v[i].tid, NULL, NULL) < 0;
		/* Those that run may have ended the process, and with it this thread. */
		if (t->v[i].seized && (errno != ESRCH || i == 0))
			return cannot(err, -errno, &t->v[i], "let go");
	}
	rthreads_reap(r);
	return 0;
}

void rthreads_reap(struct restore *r)
{
	struct rthreads *t = r->threads;

	for (size_t i = 0; t && i < t->n; i++) {
		struct rthread *th = &t->v[i];
		int status;

		if (!th->seized || i == t->main)
			continue;
		th->seized = false;
		for (;;) {
			pid_t p = waitpid(th->tid, &status, __WALL);

			if ((p < 0 && errno != EINTR) || (p > 0 && !WIFSTOPPED(status)))
				break;
		}
	}
}
