/*
 * Waits with a timeout that the stop has interrupted: "interrupted_call".
 *
 * A call that ends with ERESTART_RESTARTBLOCK goes on where it was, for the
 * time that the kernel remembers and nobody can ask for. Where it was given
 * room for it, nanosleep(2) writes the rest there at every interruption.
 * Else the rest is the timeout less the time since the thread went to sleep
 * (waits.h), known before the freeze; it counts when the thread had not run
 * until it was woken to be stopped. Without that, the whole timeout is what
 * may be left at most: timers never fire early.
 */
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "common/util.h"
#include "process/pstate_internal.h"

enum {
	RETRIES = 20, /* of all threads together */
	RETRY_US = 500,
};
#define ERESTART_RESTARTBLOCK 516 /* include/linux/errno.h */

void wait_prepare(struct pstate *ps, struct thread_prep *p, struct wait_clocks *clocks)
{
	wait_look(ps->t, p->tid, clocks, &p->wait);
	/* It has been stopped a moment ago, and is on its way back to where it was. */
	for (; p->wait.tid && p->wait.nr == SYS_restart_syscall && clocks->retries < RETRIES;
	     clocks->retries++) {
		usleep(RETRY_US);
		wait_look(ps->t, p->tid, clocks, &p->wait);
	}
	if (p->wait.tid)
		p->blocks_fd = wait_open_status(ps->t, p->tid);
}

void pstate_know_wait(struct pstate *ps, const struct wait_note *w)
{
	for (size_t i = 0; i < ps->nr_preps && w->tid; i++) {
		struct thread_prep *p = &ps->preps[i];

		if (p->tid != w->tid || (p->wait.tid && !p->wait.restarted))
			continue;
		p->wait = *w;
		p->wait.restarted = true;
		/* Nobody else has stopped it: if it is that call still, it is that wait. */
		p->wait_known = w->since_ns;
	}
}

/* ---- in the freeze ------------------------------------------------------ */

static bool read_time(const struct pstate *ps, uint64_t addr, int64_t ret[2])
{
	struct iovec local = {ret, 16}, remote = {(void *)(uintptr_t)addr, 16};

	return addr && process_vm_readv(ps->t->pid, &local, 1, &remote, 1, 0) == 16 &&
	       ret[0] >= 0 && ret[0] < INT32_MAX && ret[1] >= 0 && ret[1] < 1000000000;
}

/* The wait of before the freeze is the one that was interrupted. */
static bool is_noted(const struct thread_prep *p, const struct user_regs_struct *r)
{
	return p && (!p->wait_known || r->orig_rax == SYS_restart_syscall) && wait_is(&p->wait, r);
}

static long number_of(const struct thread_prep *p, const struct user_regs_struct *r)
{
	return is_noted(p, r) ? p->wait.nr : (long)r->orig_rax;
}

void wait_collect(const struct pstate *ps, const struct thread_prep *p, struct thread_state *th,
		  const struct user_regs_struct *r)
{
	struct wait_raw *w = &th->wait;
	uint64_t blocks;

	*w = (struct wait_raw){0};
	if ((int64_t)r->rax != -ERESTART_RESTARTBLOCK)
		return;
	w->looked = is_noted(p, r);
	w->unbroken = w->looked && p->wait.since_ns &&
		      (p->wait_known ||
		       (wait_read_blocks(p->blocks_fd, &blocks) && blocks == p->wait.blocks + 1));
	w->nr = number_of(p, r);
	switch (w->nr) {
	case SYS_nanosleep:
		w->has_rest = read_time(ps, r->rsi, w->rest);
		w->has_total = read_time(ps, r->rdi, w->total);
		break;
	case SYS_clock_nanosleep:
		w->has_rest = read_time(ps, r->r10, w->rest);
		w->has_total = read_time(ps, r->rdx, w->total);
		break;
	case SYS_futex:
		w->has_total = read_time(ps, r->r10, w->total);
		break;
	case SYS_poll:
		w->has_total = (int32_t)r->rdx >= 0;
		w->total[0] = (int32_t)r->rdx / 1000;
		w->total[1] = (int32_t)r->rdx % 1000 * 1000000;
		break;
	default:
		break;
	}
}

long pstate_wait_nr(const struct pstate *ps, size_t i)
{
	return ps->threads[i].wait.nr;
}

/* ---- afterwards ---------------------------------------------------------- */

static int64_t nanoseconds(const int64_t t[2])
{
	return t[0] * 1000000000 + t[1];
}

/* The clocks by which relative timeouts count run alike; those of CPU time do not. */
static bool by_wall(long nr, const struct user_regs_struct *r)
{
	return nr != SYS_clock_nanosleep || (r->rdi <= 11 && r->rdi != 2 && r->rdi != 3);
}

static json_t *left_json(const struct pstate *ps, const struct thread_prep *p, long nr,
			 const struct thread_state *th)
{
	const struct wait_raw *w = &th->wait;

	if (w->has_rest)
		return json_integer(nanoseconds(w->rest));
	if (!w->has_total)
		return json_null();
	int64_t total = nanoseconds(w->total), waited = 0;
	if (w->unbroken && p->wait.since_ns && p->wait.since_ns < ps->stopped_ns &&
	    by_wall(nr, &th->regs))
		waited = (int64_t)(ps->stopped_ns - p->wait.since_ns);
	return json_integer(MAX(total - waited, (int64_t)0));
}

/* Calls that can be made again as they are: with an absolute end, or none at all. */
static bool is_absolute(long nr, const struct user_regs_struct *r)
{
	switch (nr) {
	case SYS_futex:
		return (r->rsi & FUTEX_CMD_MASK) != FUTEX_WAIT || !r->r10;
	case SYS_poll:
		return (int32_t)r->rdx < 0;
	default:
		return false;
	}
}

/* Whether and how the kernel would have started the call again. */
json_t *wait_json(const struct pstate *ps, const struct thread_prep *p,
		  const struct thread_state *th)
{
	static const char *const how[] = {[0] = "restart", /* ERESTARTSYS */
					  [1] = "restart", /* ERESTARTNOINTR */
					  [2] = "restart", /* ERESTARTNOHAND */
					  [4] = "restart-block"}; /* ERESTART_RESTARTBLOCK */
	int64_t result = (int64_t)th->regs.rax;

	if ((int64_t)th->regs.orig_rax < 0 || result > -512 || result < -516 || !how[-512 - result])
		return NULL;
	json_t *o = json_pack("{s:I,s:s}", "nr", (json_int_t)th->regs.orig_rax, "how",
			      how[-512 - result]);
	if (result != -ERESTART_RESTARTBLOCK)
		return o;
	long nr = th->wait.looked ? p->wait.nr : (long)th->regs.orig_rax;
	bool absolute = is_absolute(nr, &th->regs);
	json_object_set_new(o, "nr", json_integer(nr));
	json_object_set_new(o, "absolute", json_boolean(absolute));
	json_object_set_new(o, "left_ns", absolute ? json_null() : left_json(ps, p, nr, th));
	return o;
}
