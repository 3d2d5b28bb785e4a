/*
 * The sockets among the descriptors; rfiles.c calls.
 */
#ifndef USNAP_RESTORE_RSOCKETS_H
#define USNAP_RESTORE_RSOCKETS_H

#include "restore/restore_internal.h"

struct rsockets;

/* Parses those of files[] that are sockets; checks addresses; adds problems. */
int rsockets_plan(struct rsockets **ret, struct restore *r, const json_t *files,
		  struct usnap_err *err);
void rsockets_free(struct rsockets *s);

/* In the builder: makes the socket with this "description" (of process.json), with its options,
 * address, state and what is queued in it; *ret_fd is the caller's. Both ends of a pair are made
 * when the first is asked for. */
int rsockets_make(struct rsockets *s, struct restore *r, int64_t description, int *ret_fd,
		  struct usnap_err *err);
/* In the builder, when all were made: closes what was not asked for, undoes what making needed. */
int rsockets_made(struct rsockets *s, struct restore *r, struct usnap_err *err);
/* In the restorer after a failed build: removes what was made in the file system. */
void rsockets_undo(struct rsockets *s, struct restore *r);
/* Is any of them bound to a name in the file system? */
bool rsockets_make_files(const struct rsockets *s);

#endif
