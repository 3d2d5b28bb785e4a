/*
 * The file behind a private mapping, as it was at T0.
 *
 * An image leaves out pages that were as in the file. They can be taken from
 * the file itself only while it is the same one: device and inode of the
 * mapping, and neither contents nor inode changed since T0.
 */
#ifndef USNAP_EXPORT_CORESOURCE_H
#define USNAP_EXPORT_CORESOURCE_H

#include <stddef.h>
#include <stdint.h>

struct core_source {
	int fd; /* -1: not available */
	uint64_t inode;
	uint32_t dev_major, dev_minor;
	uint64_t t0_ns; /* realtime */
};

/* -ENOENT and the like when it is not there, -ESTALE when it is another or
 * has changed. Never opens what is not a regular file. */
int core_source_open(struct core_source *ret, const char *path, uint64_t inode, uint32_t dev_major,
		     uint32_t dev_minor, uint64_t t0_ns);

/* Reads len bytes at offset; what lies beyond the end of the file is zero,
 * as in a mapping. */
int core_source_read(const struct core_source *s, void *buf, size_t len, uint64_t offset);

/* 0 while the file is still what it was; -ESTALE: what was read is worthless. */
int core_source_check(const struct core_source *s);

void core_source_close(struct core_source *s);

#endif
