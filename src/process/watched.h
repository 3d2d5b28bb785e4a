/*
 * The path of a file of which the kernel told the device, the inode and a
 * file handle: what an inotify watch is for.
 *
 * With the handle the file is found wherever it is; without the privilege for
 * that (CAP_DAC_READ_SEARCH), the places that the process is known to use are
 * looked through. All paths are those of one root directory. A path is only
 * given when device and inode agree.
 */
#ifndef USNAP_PROCESS_WATCHED_H
#define USNAP_PROCESS_WATCHED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WATCHED_HANDLE_MAX 128 /* MAX_HANDLE_SZ */

struct watched {
	int procfd; /* of a process with the same root and mounts: /proc/PID */
	int root; /* its root directory */
	uint32_t dev_major, dev_minor;
	uint64_t inode;
	int handle_type;
	size_t handle_len; /* 0: no handle */
	unsigned char handle[WATCHED_HANDLE_MAX];
};

bool watched_is(const struct watched *w, const char *path);

/* Each: a fresh string, or NULL. budget: paths that may be looked at yet, by all calls together. */
char *watched_by_handle(const struct watched *w);
/* start, or a directory above it. */
char *watched_above(const struct watched *w, const char *start, unsigned *budget);
/* An entry of a directory. */
char *watched_in(const struct watched *w, const char *dir, unsigned *budget);
char *watched_beside(const struct watched *w, const char *file, unsigned *budget);

#endif
