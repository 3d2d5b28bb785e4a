/*
 * Runs that nobody watches: bounded in time, and modest.
 *
 * Signals end a run by setting the flag that this returns: waits are cut
 * short, what was begun is undone. The time limit is such a signal, and comes
 * again each second until the run has seen it.
 */
#ifndef USNAP_CLI_UNATTENDED_H
#define USNAP_CLI_UNATTENDED_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

/* SIGINT, SIGTERM, SIGHUP and SIGQUIT, and SIGALRM for the limit. SIGPIPE is ignored. */
const volatile sig_atomic_t *unattended_catch_signals(void);

/* How many of them there have been, but for SIGALRM. */
unsigned unattended_ends(void);

void unattended_limit_time(uint64_t seconds);

/* The calling thread and those that it starts. nice: 0: as it is. idle: the niceness is 19, and
 * the disk is used when nobody else wants it. */
int unattended_be_modest(int nice, bool idle, struct usnap_err *err);

#endif
