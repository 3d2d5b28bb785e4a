/*
 * Real-time priority for the calling thread while another process waits for
 * it. Without the right to it (CAP_SYS_NICE, RLIMIT_RTPRIO) nothing changes.
 * For moments only: what the kernel has queued behind such a thread, a new
 * process of the target's for one, may wait for as long as that is busy.
 *
 * A thread in a hurry must not spin on one that is not: on the same CPU the
 * other would never run.
 */
#ifndef USNAP_COMMON_HURRY_H
#define USNAP_COMMON_HURRY_H

#include <stdbool.h>

void thread_hurry(bool on);

/* For as long as it likes: the calling thread goes before others of the normal
 * class, which keep a share of its CPU. Without the right to it (CAP_SYS_NICE,
 * RLIMIT_NICE) nothing changes. */
void thread_prefer(void);

#endif
