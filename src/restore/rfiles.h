/*
 * The descriptors of the process: files[] of process.json.
 */
#ifndef USNAP_RESTORE_RFILES_H
#define USNAP_RESTORE_RFILES_H

#include "restore/restore_internal.h"

int rfiles_plan(struct restore *r, struct usnap_err *err);
void rfiles_free(struct rfiles *f);

/* In the builder: every descriptor at its number, and no other open. Before: moves what it needs
 * out of the way. */
int rfiles_build(struct restore *r, struct usnap_err *err);

/* After rfiles_build(): the number of a descriptor of the process that refers to this file (dev as
 * in maps: major, minor) and may be mapped with prot (PROT_*) shared, or -1. For mappings of memfds
 * and of files that have no name any more. Called in the restorer: planned, not looked up. */
int rfiles_find(const struct restore *r, uint32_t dev_major, uint32_t dev_minor, uint64_t inode,
		uint32_t prot);

/* When all else is in place, by remote calls: seals of memfds, what must come last. */
int rfiles_finish(struct restore *r, struct usnap_err *err);

/* In the restorer after a failed build: what was made in the file system goes again. */
void rfiles_undo(struct restore *r);
/* Is there anything that it could have to undo? */
bool rfiles_makes_files(const struct restore *r);

void rfiles_describe(const struct restore *r, json_t *o);

#endif
