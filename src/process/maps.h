/*
 * The mappings of a process, from /proc/PID/maps and /proc/PID/smaps.
 * Paths are the kernel's, unescaped (\012 becomes a newline).
 */
#ifndef USNAP_PROCESS_MAPS_H
#define USNAP_PROCESS_MAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum vma_kind {
	VMA_ANON, /* private anonymous: heap, stacks, mmaps */
	VMA_FILE, /* private mapping of a file */
	VMA_FILE_SHARED, /* MAP_SHARED of a file on a file system of its own */
	VMA_SHMEM, /* tmpfs, memfd, SysV or MAP_SHARED|MAP_ANONYMOUS, shared */
	VMA_SHMEM_PRIVATE, /* private mapping of a tmpfs file or memfd */
	VMA_HUGETLB, /* hugetlbfs, shared or private */
	VMA_SPECIAL, /* [vdso], [vvar], [vsyscall], [uprobes] */
	VMA_DEVICE, /* VM_IO, VM_PFNMAP: memory of a device */
};

/* Two letters of smaps' VmFlags as bits; names in maps.c, proc(5). */
enum vma_flag {
	VMF_RD,
	VMF_WR,
	VMF_EX,
	VMF_SH,
	VMF_MR,
	VMF_MW,
	VMF_ME,
	VMF_MS,
	VMF_GD,
	VMF_PF,
	VMF_LO,
	VMF_IO,
	VMF_SR,
	VMF_RR,
	VMF_DC,
	VMF_DE,
	VMF_AC,
	VMF_NR,
	VMF_HT,
	VMF_SF,
	VMF_WF,
	VMF_DD,
	VMF_SD,
	VMF_MM,
	VMF_HG,
	VMF_NH,
	VMF_MG,
	VMF_UM,
	VMF_UW,
	VMF_UI,
	VMF_SS,
	VMF_SL,
	VMF_DP,
	VMF_LF,
	VMF_NR_FLAGS,
};

struct vma {
	uint64_t start, end; /* bytes, page-aligned */
	uint64_t offset; /* into the file, bytes */
	uint64_t inode;
	uint32_t dev_major, dev_minor;
	uint32_t prot; /* PROT_* */
	bool shared;
	enum vma_kind kind;
	bool has_flags; /* flags and page_size are known (from smaps) */
	uint64_t flags; /* 1 << VMF_* */
	bool unprotectable; /* userfaultfd does not take it, as was found in the freeze */
	bool own_pages; /* a mapping of a file holds pages that are not the file's (from smaps) */
	uint64_t page_size; /* KernelPageSize in bytes; the base page size if unknown */
	char *path; /* "" when the kernel gives none */
};

/* Addresses, whole pages; the end is the first that does not belong to it. */
struct range {
	uint64_t start, end;
};

struct maps {
	struct vma *v; /* ascending */
	size_t n;
	struct range *guards; /* guard markers in them, ascending; from maps_set_guards() */
	size_t nr_guards;
};

/* Reads /proc/PID/maps (without flags: kind is a first guess that
 * maps_read_flags() or maps_inherit_flags() completes). */
int maps_read(int procfd, struct maps *ret);

/* Reads /proc/PID/smaps: maps with flags and page size. Slow: the kernel walks the page tables of
 * each mapping, under mmap_lock (some 20 ms a GiB): who maps memory waits for that, and faults wait
 * behind him. Never while the target is stopped, or its faults are to be answered. */
int maps_read_flags(int procfd, struct maps *ret);

/* Completes fresh maps with the flags of an earlier reading wherever the
 * same mapping lies in both. Returns the number of vmas left without. */
size_t maps_inherit_flags(struct maps *fresh, const struct maps *earlier);

/* The mapping that holds addr at this very moment; fd: /proc/PID/maps. -ENOENT: there is none;
 * -ENOTTY: the kernel cannot tell (Linux 6.11). */
int maps_query(int fd, uint64_t addr, struct range *ret);

/* The vma that holds addr, or NULL. */
const struct vma *maps_find(const struct maps *m, uint64_t addr);

/* Keeps a copy of n ranges, ascending: -ENOMEM. */
int maps_set_guards(struct maps *m, const struct range *guards, size_t n);

void maps_free(struct maps *m);

const char *vma_kind_name(enum vma_kind kind); /* "anonymous", "file" ... as in process.json */
/* "rd", "wr" ...: the kernel's two letters. */
const char *vma_flag_name(enum vma_flag flag);

#endif
