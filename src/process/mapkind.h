/*
 * What kind of memory a mapping is: enum vma_kind from what /proc says of it
 * and, where that leaves it open, from the file system the file lies on.
 * Called by maps.c, on the thread that reads the maps.
 */
#ifndef USNAP_PROCESS_MAPKIND_H
#define USNAP_PROCESS_MAPKIND_H

#include "process/maps.h"

enum fs_kind {
	FS_OTHER,
	FS_SHMEM,
	FS_HUGETLB
};

/* What the devices met in one reading turned out to be. Starts zeroed. */
struct fs_cache {
	struct {
		uint32_t minor;
		enum fs_kind kind;
	} known[16];
	unsigned n;
};

enum vma_kind mapkind_classify(struct fs_cache *cache, int procfd, const struct vma *v);

#endif
