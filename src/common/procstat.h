/*
 * /proc/PID/stat, which is the one file that tells whether a PID still means
 * the same process.
 */
#ifndef USNAP_COMMON_PROCSTAT_H
#define USNAP_COMMON_PROCSTAT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct procstat {
	pid_t pid, ppid;
	char comm[64];
	char state; /* 'Z', 'X': it has ended */
	bool ends; /* it has, or nothing keeps it from it any more */
	uint64_t start_ticks; /* since the machine was started, whatever our clocks show */
};

/* Negative errno; -ESRCH when there is no such process. */
int procstat_read(pid_t pid, struct procstat *ret);

/* Of one process: read in a time namespace, the start may be told a tick later. A number does not get a new
 * process so soon. */
bool procstat_same_start(uint64_t a, uint64_t b);

/* It exists, has not ended, and is the one that was started then. */
bool procstat_is(pid_t pid, uint64_t start_ticks);

#endif
