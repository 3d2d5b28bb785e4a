/*
 * rclone, which speaks to remotes of all kinds: found in PATH when it is
 * wanted, and run without a shell. A remote is what rclone takes as such,
 * "REMOTE:PATH" or a local path. What it answers is not believed.
 *
 * It ends with us, by SIGTERM, so that nothing goes on after a run that was
 * killed. Returns 0 or negative errno with text in err, which quotes rclone;
 * -ECANCELED when the flag was set, -ENOSPC when there was no room.
 */
#ifndef USNAP_STORE_RCLONE_H
#define USNAP_STORE_RCLONE_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum {
	RCLONE_HASH_LEN = 128,
	RCLONE_TYPE_LEN = 31
};

struct rclone {
	char *program;
	const volatile sig_atomic_t *cancel; /* or NULL */
};

/* -ENOENT with a hint when there is none. */
int rclone_find(struct rclone *ret, struct usnap_err *err);
void rclone_free(struct rclone *r);

/* "REMOTE:PATH/FILE". The caller frees; NULL without memory. */
char *rclone_join(const char *dir, const char *file);

struct rclone_files {
	struct rclone_file {
		char *name;
		uint64_t bytes;
	} * file; /* sorted by name */
	size_t nr;
};

/* The files in a directory. -ENOENT when it does not exist. */
int rclone_list(const struct rclone *r, const char *dir, struct rclone_files *ret,
		struct usnap_err *err);
const struct rclone_file *rclone_files_find(const struct rclone_files *files, const char *name);
void rclone_files_free(struct rclone_files *files);

/* The best kind of hash that a remote tells of its files; "" when it tells none. */
int rclone_hash_type(const struct rclone *r, const char *dir, char ret[RCLONE_TYPE_LEN + 1],
		     struct usnap_err *err);

/* download: reads the file and does not ask the remote. "" when the remote does not know it. */
int rclone_hash(const struct rclone *r, const char *path, const char *type, bool download,
		char ret[RCLONE_HASH_LEN + 1], struct usnap_err *err);

int rclone_put(const struct rclone *r, const char *local, const char *path, struct usnap_err *err);
/* Writes the content of a file to fd: bytes, or what shows that it has not so many. */
int rclone_get(const struct rclone *r, const char *path, int fd, uint64_t bytes,
	       struct usnap_err *err);
int rclone_rename(const struct rclone *r, const char *from, const char *to, struct usnap_err *err);
int rclone_remove(const struct rclone *r, const char *path, struct usnap_err *err);

#endif
