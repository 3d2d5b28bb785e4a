/*
 * Which processes are ready for snapshots, and what they are called: by the
 * registry, or, where that is not to be seen from here, by the agent in them.
 */
#ifndef USNAP_CLI_READINESS_H
#define USNAP_CLI_READINESS_H

#include "process/agent_find.h"
#include "store/registry.h"

/* The agent in a process. beacon: where it is believed to be, or 0. False: there is none, or it
 * was not loaded for this process but is a copy of its parent's. */
bool readiness_agent(pid_t pid, uint64_t beacon, struct agent_found *ret);

/* By all its user IDs: nobody but us could write to its memory. */
bool readiness_is_ours(pid_t pid);

/* Is it ready? r: may be NULL. look_inside: of the process too, when the registry does not tell. name:
 * "" when it has none. */
bool readiness_of(const struct registry *r, pid_t pid, bool look_inside,
		  char name[RUNDIR_NAME_MAX + 1]);

#endif
