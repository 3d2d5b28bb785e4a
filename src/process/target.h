/*
 * The process that is looked at: descriptors that keep meaning the same
 * process even when its PID is used again.
 *
 * Owned by one thread; the descriptors in it may be used by others.
 */
#ifndef USNAP_PROCESS_TARGET_H
#define USNAP_PROCESS_TARGET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

struct target {
	pid_t pid;
	int pidfd;
	int procfd; /* directory /proc/PID */
	int pagemap_fd; /* /proc/PID/pagemap: of the mm at the time of opening */
	uint64_t start_ticks; /* field 22 of /proc/PID/stat: tells a reused PID */
	char comm[64];
};

/* Opens a process and refuses, by name of the cause, what cannot be a
 * target: no such process, zombie, kernel thread, self, an ancestor's
 * tracer, 32-bit or foreign personality, traced by somebody, no permission. */
int target_open(struct target *ret, pid_t pid, struct usnap_err *err);
void target_close(struct target *t);

/* True while the process exists and is not a zombie. */
bool target_alive(const struct target *t);

/* Thread, as we see it, that traces a thread of the target; 0: none, or it is gone. */
pid_t target_tracer_of(const struct target *t, pid_t tid);
/* -EBUSY: it cannot be a target, for that thread of all the threads there are traces it. */
int target_refuse_traced(const struct target *t, pid_t tracer, struct usnap_err *err);

#endif
