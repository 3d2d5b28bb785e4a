/*
 * What was asked of "uffd-snap snapshot": parsed from the command line, read
 * by the files that carry it out.
 */
#ifndef USNAP_CLI_SNAPSHOT_ARGS_H
#define USNAP_CLI_SNAPSHOT_ARGS_H

#include <stdbool.h>
#include <stdint.h>

#include "cli/names.h"

enum {
	SNAPSHOT_MAX_IGNORE = 64
};

struct snapshot_args {
	struct names_query query; /* whom */
	bool all; /* every process that fits, not just the only one */

	const char *output; /* -o; NULL: into the store */
	const char *parent; /* with -o; NULL: none */
	const char *store; /* NULL: the usual one */
	const char *name; /* in the store; NULL: made of the target */
	uint64_t full_every; /* images; 0: no bound to a chain */

	int level;
	unsigned threads;
	size_t memory;
	uint64_t ghost_limit;
	uint64_t rate_bytes_s; /* 0: as fast as can be */
	bool no_hold, kill;
	const char *ignore[SNAPSHOT_MAX_IGNORE]; /* kinds that need not come back */
	size_t nr_ignore;

	bool json, quiet;
	int sync_fd; /* a socket; -1: nobody is asked */
	bool skip_if_busy;
	uint64_t timeout_s; /* 0: none */
	int nice; /* 0: as we are */
	bool idle;
	const char *on_success, *on_failure; /* shell commands */
	const char *metrics; /* file */
};

/* Returns -1, or the exit status to end with: usage errors are printed. */
int snapshot_args_parse(int argc, char **argv, struct snapshot_args *ret);

extern const char snapshot_args_help[]; /* of --help */

#endif
