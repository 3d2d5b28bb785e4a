/*
 * How long a thread has been waiting in a system call with a timeout, as seen
 * from outside while it waits: once it is interrupted, nothing of the target
 * tells, since the kernel keeps the end of the wait to itself (restart blocks).
 */
#ifndef USNAP_PROCESS_WAITS_H
#define USNAP_PROCESS_WAITS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "process/target.h"

struct wait_note {
	pid_t tid; /* 0: the thread does not wait so */
	long nr; /* nanosleep, clock_nanosleep, poll, futex, or restart_syscall: not known which */
	bool restarted; /* it was interrupted before: since is when it went on */
	uint64_t args[6], sp, pc;
	uint64_t since_ns; /* CLOCK_MONOTONIC, not too early; 0: not known */
	uint64_t blocks; /* how often the thread gave up a CPU of itself until then */
};

/* What the clocks of CPUs said, for several looks in a row. Zeros to begin with. */
struct wait_clocks {
	unsigned n, retries;
	struct {
		int cpu;
		int64_t ahead_ns;
	} v[64];
};

/* Looks at a thread that runs free. */
void wait_look(const struct target *t, pid_t tid, struct wait_clocks *clocks,
	       struct wait_note *ret);

/* How often a thread gave up a CPU of itself: a descriptor to ask, and the answer. */
int wait_open_status(const struct target *t, pid_t tid);
bool wait_read_blocks(int fd, uint64_t *ret);

/* Whether the registers of a stopped thread are those of this wait. */
bool wait_is(const struct wait_note *w, const struct user_regs_struct *regs);

/* Whether a thread that has just been stopped had not run since. */
bool wait_unbroken(const struct target *t, const struct wait_note *w);

#endif
