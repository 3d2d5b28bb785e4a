/*
 * What push and pull share: options, the other side, and what is told of each
 * image.
 *
 * A remote directory has the images of one name, called as in the store, and
 * ".FILE.XXXXXXXX.part": what is not complete, or a leftover.
 */
#ifndef USNAP_CLI_CARRY_H
#define USNAP_CLI_CARRY_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>

#include "cli/cli.h"
#include "cli/progress.h"
#include "store/rclone.h"
#include "store/store.h"

/* What became of an image. */
enum carry_state {
	CARRY_PENDING,
	CARRY_DONE, /* carried, or with --dry-run it would be */
	CARRY_PRESENT, /* it was there */
	CARRY_BAD, /* it is named in a message */
};

struct carry {
	const struct cli_command *command;
	const char *past; /* "pushed", "pulled" */
	const char *store; /* of --store, or NULL */
	const char *remote;
	char name[STORE_NAME_MAX + 1];
	bool dry_run, quiet, json, skip_if_busy, check;
	const volatile sig_atomic_t *interrupted;

	struct rclone rclone;
	struct rclone_files there;
	struct progress progress;
	json_t *rows;
	size_t nr_done, nr_present, nr_leftovers;
	uint64_t bytes_done, bytes_wanted;
	int worst;
};

/* Parses options, up to and without optind. -1 to go on, or the exit status. */
int carry_options(struct carry *c, int argc, char **argv);

/* remote is set: looks whether it can be one, and catches signals. -1 to go on, or the exit
 * status. */
int carry_begin(struct carry *c);

/* Finds rclone and lists what is there. -ENOENT: the remote directory does not exist. */
int carry_open(struct carry *c, struct usnap_err *err);

/* Says what became of an image, which is one of the states but CARRY_PENDING. */
void carry_tell(struct carry *c, const struct store_image *image, enum carry_state state);

/* An image is no good; the others can be. Returns CARRY_BAD. */
enum carry_state carry_bad(struct carry *c, const struct store_image *image, int code,
			   const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* The end of a run that got as far as r says. Prints, frees, returns the exit status. */
int carry_finish(struct carry *c, int r, const struct usnap_err *err);

#endif
