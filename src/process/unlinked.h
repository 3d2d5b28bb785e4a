/*
 * Regular files that have no name any more, memfds and shared anonymous
 * memory: what the descriptors and mappings of a process refer to and no path
 * leads to. Their bytes are in the image, at addresses that are none
 * (uffd-snap-image(5)). Whoever copies fills these records; pstate writes
 * them into process.json and says what is missing.
 */
#ifndef USNAP_PROCESS_UNLINKED_H
#define USNAP_PROCESS_UNLINKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "process/maps.h"
#include "process/target.h"

enum unlinked_kind {
	UNLINKED_FILE,
	UNLINKED_MEMFD,
	UNLINKED_ANON, /* MAP_SHARED | MAP_ANONYMOUS */
	UNLINKED_SYSV,
};

struct unlinked_file {
	enum unlinked_kind kind;
	char *path; /* the kernel's words */
	int fd; /* ours, for reading, or -1 */
	uint64_t map_dev, map_inode; /* as maps has them, 0: not mapped; some file systems have two
					device numbers */
	struct stat st; /* of T0, once it is used */
	int seals; /* -1: has none */
	uint64_t page_size; /* of huge pages, or 0 */
	bool used; /* by a descriptor or mapping at T0 */
	bool has_content;
	uint64_t address, size; /* of the content, bytes */
	const char *missing; /* why there is none */
};

struct unlinked_files {
	struct unlinked_file *v;
	size_t n, room;
};

/* A device number as maps has it: major and minor in one. */
static inline uint64_t unlinked_map_dev(const struct vma *v)
{
	return (uint64_t)v->dev_major << 32 | v->dev_minor;
}

/* Whether a mapping may be one of such a file. */
bool unlinked_maybe(const struct vma *v);

/* The record of a file, by what stat(2) says, or NULL. */
struct unlinked_file *unlinked_find(const struct unlinked_files *u, const struct stat *st);
struct unlinked_file *unlinked_find_mapped(const struct unlinked_files *u, const struct vma *v);

/* Opens descriptor nr of a process, or the file behind a mapping, for reading, and adds it when it
 * has no name and is not known yet. ret (or NULL): the record. Returns 1, 0 when it has a name or
 * has gone, or -ENOMEM. A file that cannot be opened has missing set. */
int unlinked_add_fd(struct unlinked_files *u, const struct target *t, int nr,
		    struct unlinked_file **ret);
int unlinked_add_mapped(struct unlinked_files *u, const struct target *t, const struct vma *v,
			struct unlinked_file **ret);

/* Adds what the process holds now. */
int unlinked_scan(struct unlinked_files *u, const struct target *t, const struct maps *maps);

/* Closes our descriptors: they keep the files in being. */
void unlinked_close(struct unlinked_files *u);
void unlinked_free(struct unlinked_files *u);

#endif
