/*
 * The agent in another process: where its beacon and its block of memory lie
 * (agent/control.h).
 *
 * What is found there is the other process's to write: of the block's content
 * nothing is checked but what says that it is one.
 */
#ifndef USNAP_PROCESS_AGENT_FIND_H
#define USNAP_PROCESS_AGENT_FIND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/control.h"
#include "process/maps.h"

struct agent_found {
	uint64_t beacon, control; /* addresses in the process */
	struct agent_control block; /* as it was when it was looked at */
};

/* Whether a mapping looks like a beacon from outside: a read-only private anonymous one of its size. */
bool agent_beacon_fits(const struct vma *v);

/* Looks at a mapping that does. 1: there is an agent; 0: there is none. */
int agent_look(pid_t pid, uint64_t beacon, struct agent_found *ret);

/* The agent among mappings. Of several, one to which libc's own calls go. 1 or 0. */
int agent_find(pid_t pid, const struct maps *maps, struct agent_found *ret);

#endif
