/*
 * Whole reads and writes, and small files read in one piece.
 * Returns: 0 or the stated length on success, negative errno on failure.
 */
#ifndef USNAP_COMMON_IO_H
#define USNAP_COMMON_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Writes all len bytes, going on after short writes and EINTR. */
int io_write_full(int fd, const void *buf, size_t len);

/* Reads exactly len bytes. -ENODATA when the file ends before. */
int io_read_full(int fd, void *buf, size_t len);
int io_pread_full(int fd, void *buf, size_t len, uint64_t offset);

/* Reads a whole file (as under /proc, where st_size is 0) of at most max
 * bytes, relative to dirfd. *ret is NUL-terminated and freed by the caller;
 * ret_len (may be NULL) does not count the NUL. -EFBIG beyond max. */
int io_read_file_at(int dirfd, const char *path, size_t max, char **ret, size_t *ret_len);

/* readlinkat() into a fresh string. */
int io_readlink_at(int dirfd, const char *path, char **ret);

#endif
