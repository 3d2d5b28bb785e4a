/*
 * Inside the agent: snapshots that the process is to have by itself, as the
 * environment says (UFFD_SNAP_EVERY, UFFD_SNAP_SIGNAL).
 */
#ifndef USNAP_AGENT_SERVICE_H
#define USNAP_AGENT_SERVICE_H

#include "agent/surroundings.h"

/* By the constructor, of a process that is ready. */
void agent_service_start(const struct around *self);

/* The command: UFFD_SNAP_COMMAND, or the one installed with this library, or in PATH. In buf; NULL
 * when there is none. */
const char *agent_command(char *buf, size_t room);

/* The environment without what would change the command's work: at most room entries, and the NULL.
 * They point into the program's. */
void agent_command_env(char **ret, size_t room);

#endif
