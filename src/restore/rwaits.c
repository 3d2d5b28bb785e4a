/*
 * Timed waits that go on with the time that was left.
 *
 * DESIGN. A signal interrupts nanosleep(2), poll(2) and a futex wait with
 * -ERESTART_RESTARTBLOCK: the kernel keeps the end of the wait in the
 * thread's restart block, and restart_syscall(2) goes on with it. A new
 * thread has no such block, and nobody can write one from outside. So the
 * thread goes into the same wait once more, with a time argument that is what
 * was left, and is interrupted in it: now it has the block. Then it gets its
 * own registers back and never knows; a handler that runs first makes of it
 * EINTR, with the rest of the time where the program wants it, as it always
 * does.
 *
 * When the wait was over already (no time left, the descriptor is ready, the
 * futex has changed) its result is what the thread finds.
 *
 * A wait whose rest is not known goes on for the whole time that was asked
 * for: late, but never early. One that names its end, or has none, needs none of
 * this: it is made again with its own arguments.
 */
#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "common/util.h"
#include "restore/rthreads_internal.h"

#define ERESTARTNOHAND 514
#define ERESTART_RESTARTBLOCK 516

#define NS_PER_S 1000000000
#define NS_PER_MS 1000000

static bool is_timed_wait(int64_t nr)
{
	return nr == SYS_nanosleep || nr == SYS_clock_nanosleep || nr == SYS_poll ||
	       nr == SYS_futex;
}

static unsigned futex_op(const struct user_regs_struct *g)
{
	return (unsigned)g->rsi & (unsigned)FUTEX_CMD_MASK;
}

/* Whether the registers can be those of this call. */
static bool fits(const struct user_regs_struct *g, int64_t nr)
{
	switch (nr) {
	case SYS_nanosleep:
		return g->rdi >= 4096;
	case SYS_clock_nanosleep:
		return g->rdi < 16 && g->rsi == 0 && g->rdx >= 4096;
	case SYS_poll:
		return g->rsi < 1 << 20 && (int)g->rdx > 0;
	case SYS_futex:
		return g->rdi >= 4096 && g->r10 >= 4096 &&
		       (futex_op(g) == FUTEX_WAIT || futex_op(g) == FUTEX_WAIT_BITSET);
	}
	return false;
}

/* "mov $NR, %eax", which comes a little before the call in most libraries. */
int64_t rwait_guess(const struct user_regs_struct *regs, const unsigned char *code, size_t len)
{
	/* Two bytes of "syscall" itself are last. */
	for (size_t at = len < 7 ? 0 : len - 6; at > 0; at--) {
		uint32_t nr;

		if (code[at - 1] != 0xb8)
			continue;
		memcpy(&nr, code + at, sizeof(nr));
		if (is_timed_wait(nr) && fits(regs, nr))
			return nr;
	}
	return -1;
}

bool rwait_prepare(const struct user_regs_struct *regs, const struct rwait *w, uint64_t slot,
		   struct user_regs_struct *ret, struct timespec *ret_time)
{
	int64_t ms = w->left_ns < 0 ? -1 : w->left_ns / NS_PER_MS + (w->left_ns % NS_PER_MS != 0);

	*ret = *regs;
	*ret_time = (struct timespec){0};
	if (!is_timed_wait(w->nr))
		return false;
	ret->rax = (uint64_t)w->nr;
	if (w->left_ns < 0)
		return true; /* all of it again */
	*ret_time = (struct timespec){.tv_sec = w->left_ns / NS_PER_S,
				      .tv_nsec = w->left_ns % NS_PER_S};
	switch (w->nr) {
	case SYS_nanosleep:
		ret->rdi = slot;
		break;
	case SYS_clock_nanosleep:
		if (!((unsigned)regs->rsi & TIMER_ABSTIME))
			ret->rdx = slot;
		break;
	case SYS_poll:
		ret->rdx = (uint64_t)MIN(ms, (int64_t)INT32_MAX);
		break;
	case SYS_futex:
		/* The others wait until a time, not for one. */
		if (futex_op(regs) == FUTEX_WAIT)
			ret->r10 = slot;
		break;
	}
	return true;
}

/* Made again, it ends when it would have ended. */
static bool is_absolute(const struct user_regs_struct *g, int64_t nr)
{
	return (nr == SYS_poll && (int)g->rdx < 0) ||
	       (nr == SYS_futex && (futex_op(g) != FUTEX_WAIT || !g->r10));
}

/* At every interruption the kernel writes the rest where the program has room for it. */
static int64_t read_rest(const struct restore *r, const struct user_regs_struct *g, int64_t nr)
{
	struct timespec rest;
	uint64_t at = nr == SYS_nanosleep ? g->rsi : nr == SYS_clock_nanosleep ? g->r10 : 0;
	struct iovec to = {&rest, sizeof(rest)};
	struct iovec from = {(void *)(uintptr_t)at, sizeof(rest)};

	if (!at || process_vm_readv(r->builder, &to, 1, &from, 1, 0) != (ssize_t)sizeof(rest) ||
	    rest.tv_sec < 0 || rest.tv_sec >= INT32_MAX || rest.tv_nsec < 0 ||
	    rest.tv_nsec >= NS_PER_S)
		return -1;
	return (int64_t)rest.tv_sec * NS_PER_S + rest.tv_nsec;
}

static bool was_waiting(const struct user_regs_struct *g)
{
	return (int64_t)g->orig_rax >= 0 && (int64_t)g->rax == -ERESTART_RESTARTBLOCK;
}

/* A wait that had been interrupted before is in restart_syscall(2). */
static int64_t which_call(const struct restore *r, const struct rthread *th)
{
	unsigned char code[48];
	struct iovec to = {code, sizeof(code)};
	struct iovec from = {(void *)(uintptr_t)(th->regs.rip - sizeof(code)), sizeof(code)};

	if (th->regs.orig_rax != SYS_restart_syscall)
		return (int64_t)th->regs.orig_rax;
	if (th->wait.nr >= 0 && th->wait.nr != SYS_restart_syscall)
		return th->wait.nr;
	if (process_vm_readv(r->builder, &to, 1, &from, 1, 0) != (ssize_t)sizeof(code))
		return -1;
	return rwait_guess(&th->regs, code, sizeof(code));
}

static int restore_one(struct restore *r, struct rthread *th, uint64_t slot, struct usnap_err *err)
{
	struct rwait w = {.nr = which_call(r, th), .left_ns = th->wait.left_ns};
	struct user_regs_struct call;
	struct timespec time;

	if (w.nr >= 0)
		th->regs.orig_rax = (uint64_t)w.nr;
	if (w.left_ns < 0)
		w.left_ns = read_rest(r, &th->regs, w.nr);
	if (is_absolute(&th->regs, w.nr) || !rwait_prepare(&th->regs, &w, slot, &call, &time)) {
		/* Programs expect EINTR of every such call. */
		th->regs.rax = (uint64_t)(w.nr < 0 ? -EINTR : -ERESTARTNOHAND);
		return 0;
	}
	memcpy(stub_local(r->stub, slot), &time, sizeof(time));
	int e = rtracee_enter(r, th, &call, err);
	if (e == 0)
		e = rtracee_interrupt(r, th, err);
	return e;
}

int rwaits_restore(struct restore *r, struct usnap_err *err)
{
	struct rthreads *t = r->threads;
	struct stub_batch b;

	stub_reset(r->stub);
	stub_begin(&b, r->stub, 0);
	uint64_t slot = stub_data(&b, NULL, sizeof(struct timespec));
	for (size_t i = 0; i < t->n; i++) {
		int e = was_waiting(&t->v[i].regs) ? restore_one(r, &t->v[i], slot, err) : 0;

		if (e < 0)
			return e;
	}
	return 0;
}
