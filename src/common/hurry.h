/*
 * Real-time priority for the calling thread while another process waits for
 * it. Without the right to it (CAP_SYS_NICE, RLIMIT_RTPRIO) nothing changes.
 *
 * A thread in a hurry must not spin on one that is not: on the same CPU the
 * other would never run.
 */
#ifndef USNAP_COMMON_HURRY_H
#define USNAP_COMMON_HURRY_H

#include <stdbool.h>

void thread_hurry(bool on);

#endif
