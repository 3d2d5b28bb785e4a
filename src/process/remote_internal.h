/*
 * What the files of remote calls share; remote.h has the design.
 *
 *   remote.c         batches, and running them on many threads at once
 *   remote_find.c    what is looked up in the target: code, IDs, dispositions
 *   remote_frame.c   signal frames and the xstate they point at
 *   remote_build.c   a chain laid out below the stack
 *   remote_chain.c   a chain begun, run, waited for and undone
 *   remote_helper.c  the helper
 *
 * All on the thread that traces. 0 or negative errno; -ESRCH is a thread that was killed.
 */
#ifndef USNAP_PROCESS_REMOTE_INTERNAL_H
#define USNAP_PROCESS_REMOTE_INTERNAL_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "process/remote.h"

struct chain {
	struct tracee *t;
	const struct target *target;
	const struct remote_gadgets *g;
	const struct remote_known *known; /* or NULL */
	long wait_nr; /* as in remote_known */
	int sig; /* that stops the thread at the end */
	/* In a timed wait, see remote_is_slow(): */
	bool stepped; /* call by call */
	bool by_returns; /* chained by returns */
	bool running; /* has been let go */
	bool begun; /* its registers and stack are the chain's */
	bool tiles; /* AMX: xstate is kept whole */
	unsigned char *xstate;
	size_t xstate_full;
	/* Chains of the same run, begun before this one. */
	const struct chain *others;
	size_t nr_others;
	uint64_t own_mask; /* the thread's signal mask */
	uint64_t xstate_addr, data_addr, frames_addr;
	uint64_t xstate_len; /* with its trailing magic */
	uint64_t end; /* first byte above what is used */
	unsigned char *saved; /* [frames_addr, end) as it was */
	unsigned char *image; /* what is written there */
};

typedef int chain_event_fn(struct chain *c, void *arg);

/* ---- remote_find.c ---- */

/* All that there is to be found. */
bool gadgets_complete(const struct remote_gadgets *g);

/* ---- remote_frame.c ---- */

/* struct rt_sigframe without the siginfo, which rt_sigreturn does not read.
 * arch/x86/include/asm/sigframe.h, asm/ucontext.h. */
struct frame {
	uint64_t pretcode;
	uint64_t uc_flags;
	uint64_t uc_link;
	struct {
		uint64_t sp;
		int32_t flags, pad;
		uint64_t size;
	} uc_stack;
	struct sigcontext mcontext;
	uint64_t uc_sigmask;
} __attribute__((aligned(16)));

/* The thread's xstate, in the form in which a signal frame holds it. */
int load_xstate(struct chain *c, unsigned char *buf, size_t room);

/* A frame that makes a call with the stack pointer sp. */
void frame_call(const struct chain *c, struct frame *f, const struct remote_call *call, uint64_t sp,
		uint64_t mask);

/* The registers with which a call begins without its frame being restored. */
void frame_to_regs(const struct chain *c, const struct frame *f, struct user_regs_struct *ret);

/* The thread's own context, for the case that no tracer gives it back. */
void frame_own(const struct chain *c, struct frame *f);

/* A frame that ends a thread. */
void frame_exit(const struct remote_gadgets *g, struct frame *f);

/* ---- remote_build.c ---- */

/* Memory of the target, all of it or an error. */
int vm_read(pid_t pid, uint64_t addr, void *buf, size_t len);
int vm_write(pid_t pid, uint64_t addr, const void *buf, size_t len);

/* The signal mask under which the calls are made. */
uint64_t chain_mask(const struct chain *c, bool unblock_stop);

/* Builds the chain for a batch and writes it below the stack. */
int chain_build(struct chain *c, const struct remote_batch *b, struct user_regs_struct *ret_regs);

/* ---- remote_chain.c ---- */

/* Options of tracing for the run: returns those that were set. */
unsigned long trace_options(const struct remote_gadgets *g, pid_t tid, unsigned long options);
bool filter_in_the_way(const struct remote_gadgets *g, unsigned long options);
bool dispatches_calls(pid_t tid);

/* The report of a stop of a thread at work; interruptions do not count. -ESRCH: it has ended. */
int wait_tid(pid_t tid, int *ret_status);

/* What a thread at work has stopped for is a signal that is not ours: t is owed it. 0; -EFAULT: it
 * is a fault; -ESRCH. */
int owe_signal(struct tracee *t, pid_t tid);

/* In the order of life. chain_wait() and chain_step() tell on_event (or NULL) of a clone; unless
 * the thread was killed it is stopped afterwards, and chain_finish() is due. chain_run() is all
 * of it from begin to finish. */
int chain_init(struct chain *c, struct tracee *t, const struct target *target,
	       const struct remote_gadgets *g, bool step, bool helper);
int chain_begin(struct chain *c, struct remote_batch *b);
int chain_wait(struct chain *c, chain_event_fn *on_event, void *arg);
int chain_step(struct chain *c, const struct remote_batch *b, chain_event_fn *on_event, void *arg);
int chain_finish(struct chain *c, struct remote_batch *b);
int chain_run(struct chain *c, struct remote_batch *b, chain_event_fn *on_event, void *arg);
void chain_free(struct chain *c);

#endif
