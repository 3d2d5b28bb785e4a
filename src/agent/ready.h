/* Inside the agent: what is asked of it by the environment. The manual describes the variables. */
#ifndef USNAP_AGENT_READY_H
#define USNAP_AGENT_READY_H

#define AGENT_ENV_NAME "UFFD_SNAP_NAME"
#define AGENT_ENV_INHERIT "UFFD_SNAP_INHERIT"
#define AGENT_ENV_ON_EXIT "UFFD_SNAP_ON_EXIT"
#define AGENT_ENV_EVERY "UFFD_SNAP_EVERY"
#define AGENT_ENV_KEEP "UFFD_SNAP_KEEP"
#define AGENT_ENV_SIGNAL "UFFD_SNAP_SIGNAL"
#define AGENT_ENV_COMMAND "UFFD_SNAP_COMMAND"
/* Set by "uffd-snap run": snapshots are its business. */
#define AGENT_ENV_SUPERVISED "UFFD_SNAP_SUPERVISED"

#endif
