/*
 * Processes found by what they are, for snapshots that nobody types: a PID
 * does not outlive a restart of the service.
 *
 * Of a process and its forked children that all fit, the parent is meant:
 * redis-server does not become ambiguous while it saves. Our own process
 * never fits, and by its command line none that runs uffd-snap does.
 */
#ifndef USNAP_CLI_NAMES_H
#define USNAP_CLI_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "store/store.h"

enum {
	NAMES_UNIT_MAX = 255 /* bytes that systemd allows */
};

/* What is given, all of it, must fit. */
struct names_query {
	/* The name of one that is ready for snapshots; when there is none, as ps -o comm shows it. */
	const char *comm;
	/* Path of the program, or its last part; when there is none of that, that of argv[0]. */
	const char *exe;
	const char *cgroup; /* path in the hierarchy: in it or below it */
	const char *unit; /* of systemd; ".service" can be left out */
	const char *pidfile;
	const char *match; /* extended regular expression for the command line */
	pid_t pid; /* or 0 */
	uint64_t start_ticks; /* of pid; 0: whatever it is now */
};

bool names_query_is_empty(const struct names_query *q);
bool names_query_is_pid(const struct names_query *q); /* and nothing else */

/* All that fit, ascending. -ESRCH when there is none. The caller frees *ret. */
int names_find(const struct names_query *q, pid_t **ret, size_t *ret_nr, struct usnap_err *err);

/* The name of a unit in full. */
void names_unit(const char *unit, char ret[NAMES_UNIT_MAX + 1]);
/* What is made of it for the store: "app@one.service" is "app-one". */
void names_of_unit(const char *unit, char ret[STORE_NAME_MAX + 1]);

/* Does a process with this in /proc/PID/cgroup, which is written into, belong to the unit, in full,
 * and is it in the control group or below? NULL: any. */
bool names_fit_cgroup(char *text, const char *unit, const char *cgroup);

/* The error for more than one: it lists them. */
int names_ambiguous(const struct names_query *q, const pid_t *pids, size_t nr,
		    struct usnap_err *err);

#endif
