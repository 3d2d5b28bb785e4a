/*
 * Threads of the target, stopped by ptrace.
 *
 * Every call comes from the one thread that seized them (the kernel's rule).
 * Should the tracer die, the kernel lets every tracee go on from where it
 * was: nothing here may leave a tracee in a state from which it could not.
 * That goes for a signal, too, for which one has stopped: the kernel delivers
 * it then, unless the report of the stop has been taken (wait_task_stopped()
 * in kernel/exit.c clears what the thread would go on with).
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
	int sig; /* signal that the stop has kept from the thread, delivered at release; 0: none */
	siginfo_t siginfo; /* of sig */
	uint64_t more; /* bit n: signal n + 1 was taken as well, and is sent again at release */
	bool in_signal_stop; /* where sig can be handed to the kernel with the release */
	int group_stop; /* the stop signal when the process is stopped (SIGSTOP...) */
	bool gone; /* only while tracee.c waits */
	struct user_regs_struct regs; /* as at the stop */
};

struct tracees {
	struct tracee *t;
	size_t n, room;
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

/* Seizes one thread. */
int tracees_seize_one(struct tracees *ts, const struct target *target, pid_t tid,
		      struct usnap_err *err);

/* Interrupts all seized threads, waits for all and reads their registers;
 * with all set, seizes what has appeared until no thread runs. A thread that
 * does not stop before deadline_ns (it sits in vfork, in D state): -EAGAIN;
 * release and try again. */
int tracees_stop(struct tracees *ts, const struct target *target, bool all, uint64_t deadline_ns,
		 struct usnap_err *err);

/* Detaches every thread, delivering what signal it owes. Also undoes a
 * partial stop: a thread that has not stopped yet is waited for, since only
 * then it can be detached. Returns how many did not stop for that either
 * (the kernel detaches them when the tracer ends); else 0. */
size_t tracees_release(struct tracees *ts, const struct target *target);

#endif
