/*
 * What stands in the way of bringing a process back, as its state tells
 * (limits_of_restore[] of process.json) before anything is tried.
 */
#ifndef USNAP_CLI_OBSTACLE_H
#define USNAP_CLI_OBSTACLE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* The first one of nr. */
struct obstacle {
	char kind[64], detail[256];
	size_t nr;
};

/* Those that a restore would refuse, wherever it is, and that ignored() does not hold; it may be
 * NULL. False: there is none, or process is no state. */
bool obstacle_find(const json_t *process, bool (*ignored)(const void *arg, const char *kind),
		   const void *arg, struct obstacle *ret);

/* Of a kind that --ignore is given: EXIT_DONE, or EXIT_USAGE, and a message that lists all. */
int obstacle_check_kind(const char *kind);

#endif
