/*
 * A progress line on a terminal; nothing at all when stderr is not one.
 * Redraws at most ten times a second. Single thread.
 */
#ifndef USNAP_CLI_PROGRESS_H
#define USNAP_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
	bool shown;
	uint64_t start_ns, last_ns;
	unsigned width;
};

void progress_start(struct progress *p, bool quiet);
/* done and total in bytes; total 0: unknown. what: "sweeping", "verifying" ... */
void progress_update(struct progress *p, const char *what, uint64_t done, uint64_t total);
/* Wipes the line. */
void progress_end(struct progress *p);

#endif
