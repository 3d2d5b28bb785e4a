/*
 * How one snapshot went, and who is told: whoever waits at the terminal, a shell
 * command, a file of figures.
 */
#ifndef USNAP_CLI_SNAPSHOT_RUN_H
#define USNAP_CLI_SNAPSHOT_RUN_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "capture/capture.h"
#include "cli/snapshot_args.h"
#include "image/writer.h"

struct snapshot_run {
	pid_t pid; /* 0: none was found */
	const char *name; /* in the store; "" outside of it, or not known */
	const char *path; /* of the image; "" when there is none */
	const char *store; /* path; "" outside of one, or not known */
	struct capture_stats stats;
	struct image_writer_stats written;
	bool continues; /* another image */
	const char *full_because; /* why it does not though it was to; "" or NULL */
	uint64_t elapsed_ns;
	const char *error; /* NULL: it succeeded */
};

void snapshot_print(FILE *out, const struct snapshot_args *a, const struct snapshot_run *run);

/* --on-success, --on-failure: a process group of its own, which is ended when it takes longer than
 * --timeout, and gets the signals that we get. */
int snapshot_hook(const struct snapshot_args *a, const struct snapshot_run *run,
		  const volatile sig_atomic_t *interrupted, struct usnap_err *err);

/*
 * --metrics: a text file for node_exporter's textfile collector, replaced as a whole. Figures of
 * other names, and after a failure those of the last success, stay as they are in it.
 */
int snapshot_metrics(const struct snapshot_args *a, const struct snapshot_run *run,
		     struct usnap_err *err);

#endif
