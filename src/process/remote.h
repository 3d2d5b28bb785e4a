/*
 * System calls made by a thread of the target.
 *
 * DESIGN. Nothing is mapped and no code is written. A batch of calls is a
 * chain of signal frames below the thread's red zone (where the kernel would
 * put one itself): each frame is what rt_sigreturn(2) restores, its context
 * points at a "syscall; ret" of the target's own text with the registers of
 * one call, and its return address is the target's own signal restorer,
 * which restores the next frame. The last frame is the thread's own context.
 * So from the instant the thread is let go the chain runs to its end by
 * itself: a tracer killed at any point leaves a thread that finishes the
 * batch and goes on where it was. The bytes used are put back afterwards.
 *
 * The last call but the return is a signal that a tracer sees and that is
 * ignored without one: it stops the thread where the kernel still decides
 * how an interrupted system call goes on (restart, EINTR), so that the
 * thread's own registers can be given back as they were.
 *
 * Return values are lost on the way; what a call writes is not. Make calls
 * that write their result, and compare with REMOTE_FILL to see whether it did.
 *
 * A helper is for calls whose result must be known or that must leave
 * nothing behind: a thread with a descriptor table of its own, made by a
 * batch in vfork fashion, driven call by call by the tracer, with exit(2) as
 * its return address: without a tracer it ends, and its descriptors with it.
 */
#ifndef USNAP_PROCESS_REMOTE_H
#define USNAP_PROCESS_REMOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "process/target.h"
#include "process/tracee.h"

enum {
	REMOTE_MAX_CALLS = 128,
	REMOTE_MAX_DATA = 8192,
	REMOTE_FILL = 0xA5
};

struct remote_call {
	uint64_t nr;
	uint64_t args[6];
	uint8_t data_args; /* bit i: args[i] is an offset into data */
};

struct remote_batch {
	struct remote_call calls[REMOTE_MAX_CALLS];
	unsigned nr_calls;
	/* Lies in the target while the batch runs: what calls read, and what
	 * they write. After the run it holds what they wrote. */
	unsigned char data[REMOTE_MAX_DATA];
	unsigned data_len;
};

void remote_batch_init(struct remote_batch *b);

/* Reserves len bytes of data, 8-aligned, filled with REMOTE_FILL (or copied
 * from init when not NULL). Returns the offset. -ENOSPC when it is full. */
int remote_batch_data(struct remote_batch *b, const void *init, size_t len);

/* Adds a call. Returns its number or -ENOSPC. */
int remote_batch_call(struct remote_batch *b, long nr, unsigned data_args, uint64_t a0, uint64_t a1,
		      uint64_t a2, uint64_t a3, uint64_t a4);

/* True when [offset, offset+len) of data still holds nothing but REMOTE_FILL. */
int remote_batch_untouched(const struct remote_batch *b, unsigned offset, size_t len);

/* What is known of the target beforehand, found without stopping it. */
struct remote_gadgets {
	uint64_t syscall_ret; /* address of "syscall; ret" in its text */
	uint64_t restorer; /* "mov $__NR_rt_sigreturn, %eax; syscall" */
	/* "pop; ret" of the registers of a call, 0 where there is none; rdx: with rdx_junk more
	 * words taken from the stack. */
	uint64_t pop_rax, pop_rdi, pop_rsi, pop_rdx;
	unsigned rdx_junk;
	int stop_signal; /* ignored by the target when there is no tracer */
	bool other_pidns; /* the target sees other thread IDs than we do */
	bool seccomp; /* a filter judges its system calls */
	bool seccomp_harmless; /* it is our own, and may refuse them but does no more */
};

struct maps;
int remote_find_gadgets(struct remote_gadgets *ret, const struct target *t, const struct maps *maps,
			struct usnap_err *err);

/* What has been asked of a stopped thread already, so that it need not be asked again. */
struct remote_known {
	const void *xstate; /* as PTRACE_GETREGSET gave it */
	size_t xstate_len;
	uint64_t sigmask;
	uint64_t rseq; /* address of its struct rseq, 0: none */
	long wait_nr; /* the timed wait it is in, by the number of the call; 0: not known */
};

/* A batch and the stopped thread that is to run it. */
struct remote_job {
	struct tracee *t;
	const struct remote_known *known; /* or NULL */
	struct remote_batch *b;
	/* 0, or why the batch was not run: -ENOSPC no room below the stack pointer, -EPERM a seccomp
	 * filter that cannot be suspended, -EBUSY too many signals pending, -ESRCH killed. Only the
	 * last one is of consequence to the thread. */
	int result;
};

/* True for a thread that is in a timed wait, which signal frames would cut short: its calls are
 * chained by returns instead, or, where the target's text does not hold what that takes, made one
 * by one, for some 15 us a call. */
bool remote_is_slow(const struct tracee *t);

/* Something to do while they run, or a NULL function. */
struct remote_meanwhile {
	void (*fn)(void *arg);
	void *arg;
};

/* Runs all batches, on all threads at once; afterwards each is stopped again, its registers and
 * memory as before. Fails only when a thread was killed (-ESRCH) or for want of memory. */
int remote_run_all(struct remote_job *jobs, size_t n, const struct target *target,
		   const struct remote_gadgets *g, struct remote_meanwhile meanwhile,
		   struct usnap_err *err);

/* The helper, while its function runs. */
struct remote_helper {
	const struct remote_gadgets *g;
	struct tracee *beside; /* the thread that waits for it */
	pid_t tid; /* as we see it */
	bool own_files; /* its descriptors are its own; else it must close what it opens */
	uint64_t data; /* address in the target of data_len bytes of scratch */
	size_t data_len;
	uint64_t stack; /* its stack pointer: return address of every call */
	struct user_regs_struct regs;
};

/* Makes a call in the helper. Returns what the call returned (negative
 * errno), or -ESRCH when the helper has died. */
int64_t remote_helper_call(struct remote_helper *h, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
			   uint64_t a3, uint64_t a4);

typedef int remote_helper_fn(struct remote_helper *h, void *arg, struct usnap_err *err);

/* Starts a helper beside a stopped thread, calls fn, ends the helper. The
 * thread is stopped again afterwards, as before; wait_nr as in remote_known.
 * Returns what fn returned. */
int remote_with_helper(struct tracee *t, const struct target *target,
		       const struct remote_gadgets *g, long wait_nr, remote_helper_fn *fn,
		       void *arg, struct usnap_err *err);

/* Process and thread ID as the target itself knows them. */
int ids_inside(const struct target *t, pid_t tid, const struct remote_gadgets *g, pid_t *ret_tgid,
	       pid_t *ret_tid);

#endif
