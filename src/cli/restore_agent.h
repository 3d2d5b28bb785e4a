/*
 * What the agent does when a program starts it does not do in a process that
 * was restored: that is entered in the registry here, and gets the snapshots
 * that its environment asks for.
 */
#ifndef USNAP_CLI_RESTORE_AGENT_H
#define USNAP_CLI_RESTORE_AGENT_H

#include <stdbool.h>
#include <sys/types.h>

/* Nothing of it is a failure of the restore. */
void restore_agent(pid_t pid, const char *image);

#endif
