/*
 * Real-time priority for a thread while another process waits for it.
 * Without the right to it (CAP_SYS_NICE, RLIMIT_RTPRIO) nothing changes, nor
 * where the user has given the process one of the real-time classes.
 * For moments only: what the kernel has queued behind such a thread, a new
 * process of the target's for one, may wait for as long as that is busy.
 *
 * A thread in a hurry must not spin on one that is not: on the same CPU the
 * other would never run.
 */
#ifndef USNAP_COMMON_HURRY_H
#define USNAP_COMMON_HURRY_H

#include <pthread.h>
#include <stdbool.h>

void thread_hurry(pthread_t thread, bool on);

/* For as long as it likes: the calling thread goes before others of the normal
 * class, which keep a share of its CPU. Without the right to it (CAP_SYS_NICE,
 * RLIMIT_NICE) it is as any other; so it is to other sessions where the kernel
 * groups tasks by these (sched(7), autogroups). */
void thread_prefer(void);

#endif
