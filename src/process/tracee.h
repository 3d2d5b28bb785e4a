/*
 * Threads of the target, stopped by ptrace.
 *
 * Every call comes from the one thread that seized them (the kernel's rule).
 * Should the tracer die, the kernel lets every tracee go on from where it
 * was: nothing here may leave a tracee in a state from which it could not.
 * That goes for signals, too: none is kept from the thread that it came to.
 */
#ifndef USNAP_PROCESS_TRACEE_H
#define USNAP_PROCESS_TRACEE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "common/err.h"
#include "process/target.h"

struct tracee {
	pid_t tid;
	bool stopped;
	/* Bit n: signal n + 1, which cannot wait, came while the thread made calls (remote.h), and is
	 * sent again at release. */
	uint64_t owed;
	int group_stop; /* the stop signal when the process is stopped (SIGSTOP...) */
	bool gone, let_go; /* only in tracee.c: ended or detached, detached */
	struct user_regs_struct regs; /* as at the stop */
	/* As the last signal delivered on the way to it found them; zeros without one. */
	struct user_regs_struct before;
};

struct tracees {
	struct tracee *t;
	size_t n, room;
	bool lost; /* some have ended, or run under other IDs since an execve(2) */
	/* State letter, as in /proc/TID/stat, of the thread for which tracees_stop() answered -EAGAIN:
	 * R waits for a processor, D sits in vfork or worse. */
	char straggler;
};

/* Seizes every thread without stopping any. Threads created meanwhile are
 * found by tracees_stop(). */
int tracees_seize(struct tracees *ts, const struct target *target, struct usnap_err *err);

/*
 * Waits for the next stop of one thread: *ret_status is what waitpid(2) would
 * tell. flags are waitid(2)'s: WNOWAIT leaves the report where it is, WNOHANG
 * does not wait (-EAGAIN). -ESRCH: it has ended, and has been reaped where the
 * kernel lets it, which for a leader it does last; -EINTR.
 */
int tracee_wait(pid_t tid, int flags, int *ret_status);

/* Whether a signal is in the queue of a stopped thread, or in that of its process. */
bool tracee_is_pending(pid_t tid, bool shared, int sig);

/* Seizes one thread. */
int tracees_seize_one(struct tracees *ts, const struct target *target, pid_t tid,
		      struct usnap_err *err);

/* Interrupts all seized threads, waits for all and reads their registers;
 * with all set, seizes what has appeared until no thread runs. A signal on its
 * way is delivered first: the thread stops where its handler begins. One that
 * does not stop before deadline_ns (it sits in vfork, in D state): -EAGAIN;
 * release and try again. */
int tracees_stop(struct tracees *ts, const struct target *target, bool all, uint64_t deadline_ns,
		 struct usnap_err *err);

/* Detaches every thread, sending what signals it owes. Also undoes a
 * partial stop: a thread that has not stopped yet is waited for, since only
 * then it can be detached. Returns how many did not stop for that either
 * (the kernel detaches them when the tracer ends); else 0. */
size_t tracees_release(struct tracees *ts, const struct target *target);

#endif
