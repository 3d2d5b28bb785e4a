/*
 * Where a core file goes: a fresh regular file, in which zero pages become
 * holes, or a stream, in which they have to be written.
 *
 * Bytes are collected and written in large pieces. Errors: negative errno.
 */
#ifndef USNAP_EXPORT_CORESINK_H
#define USNAP_EXPORT_CORESINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct core_sink {
	int fd; /* borrowed */
	bool stream;
	uint64_t at; /* bytes put so far, holes included */
	unsigned char *buf;
	size_t len; /* bytes in buf, the last ones before at */
};

/* A file must be empty. */
int core_sink_init(struct core_sink *s, int fd, bool stream);
int core_sink_put(struct core_sink *s, const void *data, size_t len);
/* Zeros. */
int core_sink_skip(struct core_sink *s, uint64_t len);
/* Writes what is left and gives a file its length. */
int core_sink_finish(struct core_sink *s);
void core_sink_free(struct core_sink *s);

#endif
