/*
 * Seccomp filters that cannot be set aside, as in a container: what they do to
 * the system calls that are made in a target, and those made here.
 *
 * A filter may answer a call by ending the process, so none is tried in a
 * target. They are tried in a child of this process, which is as good where the
 * target is under the very filters that we are under ourselves.
 */
#ifndef USNAP_PROCESS_FILTERS_H
#define USNAP_PROCESS_FILTERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "process/target.h"

/* A system call with arguments that the kernel answers in one way, changing nothing. */
struct filter_call {
	const char *name;
	long nr;
	uint64_t args[5];
	int answer; /* the errno that is no filter's, or 0: it succeeds */
};

enum filter_result {
	FILTER_UNKNOWN, /* it could not be tried */
	FILTER_PASSED,
	FILTER_REFUSED, /* or this kernel does not have it */
	FILTER_KILLED,
};

/* Tries them in a child, which ends. Nothing may wait for any child meanwhile. */
void filters_try(const struct filter_call *calls, size_t n, enum filter_result *ret);

/* The calls that a snapshot makes in its target. */
size_t filters_target_calls(const struct filter_call **ret);

struct filters_seen {
	bool any; /* a thread of the target is under a filter */
	bool ours; /* every thread is under those that we are under, and no others */
};

/* 0, or -ESRCH. */
int filters_look(const struct target *t, struct filters_seen *ret);

/* Whether calls can be made in a target that is under our own filters without harm to it: they
 * may be refused, but do not end it. */
bool filters_are_harmless(void);

#endif
