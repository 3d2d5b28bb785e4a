/*
 * The credentials of a thread: parsed, compared with our own, set.
 *
 * What is equal already is not touched, so that ordinary users can restore
 * processes of their own.
 */
#ifndef USNAP_RESTORE_RCREDS_H
#define USNAP_RESTORE_RCREDS_H

#include <jansson.h>

#include "restore/rcalls.h"
#include "restore/restore_internal.h"

struct rcreds {
	bool known;
	uint32_t uid[4], gid[4]; /* real, effective, saved, file system */
	uint32_t *groups; /* ascending */
	size_t nr_groups;
	uint64_t inheritable, permitted, effective, bounding, ambient;
	bool no_new_privs;
	int64_t securebits; /* -1: not known */
};

/* creds of process.json, a thread's or the process's; no object: not known. */
int rcreds_parse(struct rcreds *ret, const json_t *o, struct usnap_err *err);
void rcreds_free(struct rcreds *c);

/* Of the calling thread. */
int rcreds_own(struct rcreds *ret);
bool rcreds_equal(const struct rcreds *a, const struct rcreds *b);

/* What of want a process with have cannot get: a sentence in buf, or false. */
bool rcreds_beyond(const struct rcreds *want, const struct rcreds *have, char *buf, size_t size);

/* Calls that turn have into want. lenient: what fails is left. */
void rcreds_add(struct rcalls *c, const struct rcreds *want, const struct rcreds *have,
		bool lenient);

#endif
