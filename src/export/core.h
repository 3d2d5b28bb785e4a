/*
 * An ELF core file of a process as it was at T0, for gdb and its kind.
 *
 * core_write() makes one from a description of the process and two functions
 * that give its memory; it knows nothing of how an image stores them (that
 * is coreimage.h). One thread. Memory: bounded by the number of regions,
 * threads and segments; contents pass through in pieces.
 *
 * What has contents is what the kernel dumps by default (core(5),
 * coredump_filter 0x33) as far as it is known: anonymous and shared memory;
 * private mappings of files where they were written, completed from the file
 * while it is unchanged; the first page of a mapped ELF file. The rest of a
 * mapped file debuggers read from the file itself, which NT_FILE names.
 */
#ifndef USNAP_EXPORT_CORE_H
#define USNAP_EXPORT_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "export/corenotes.h"

/* What a page is that is not stored. */
enum core_contents {
	CORE_ABSENT_ZERO, /* all zero */
	CORE_ABSENT_FILE, /* as in the file */
	CORE_ABSENT_UNKNOWN, /* a page of a device or of the kernel */
};

struct core_region {
	uint64_t start, end; /* page-aligned; regions ascend and do not overlap */
	uint64_t offset; /* in the file, bytes */
	uint64_t inode;
	uint32_t dev_major, dev_minor;
	uint32_t prot; /* PROT_* */
	enum core_contents contents;
	bool excluded; /* MADV_DONTDUMP */
	const char *path; /* of the file; NULL: none */
};

struct core_description {
	const char *name; /* of the image, for messages */
	uint32_t page_size; /* bytes, a power of two */
	uint64_t t0_ns; /* realtime */
	struct core_process process;
	const char *auxv; /* hexadecimal, NULL: unknown */
	const struct core_thread *threads;
	size_t nr_threads; /* at least 1 */
	const struct core_region *regions;
	size_t nr_regions;

	void *memory; /* handed to both */
	/* The first run of stored pages in [from, to): 1, 0 when there is
	 * none, negative errno with text in err. */
	int (*next_run)(void *memory, uint64_t from, uint64_t to, uint64_t *ret_start,
			uint64_t *ret_end, struct usnap_err *err);
	/* Bytes of stored pages. 0 or negative errno with text in err. */
	int (*read)(void *memory, uint64_t addr, void *buf, size_t len, struct usnap_err *err);
};

struct core_options {
	int fd; /* borrowed; an empty file or a stream */
	bool stream; /* no holes: zeros are written */
	const char *output; /* for messages */
	bool all; /* excluded regions too */
	void (*progress)(void *arg, uint64_t done_bytes, uint64_t total_bytes); /* may be NULL */
	void *progress_arg;
};

int core_write(const struct core_description *d, const struct core_options *options,
	       struct usnap_err *err);

#endif
