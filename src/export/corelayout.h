/*
 * The layout of an ELF core file: which PT_LOAD segments there are and where
 * their bytes lie in the file.
 *
 * Regions are given in ascending order, each with the runs of it that have
 * contents. A region becomes one segment where it can; a gap between runs
 * longer than max_gap ends the segment, so that the size of the file follows
 * what is populated and not what is reserved:
 *
 *   region   |....xxx.xxxxx..................................xx....|
 *   segments |----contents----memsz only---------------------|contents--|
 *
 * A segment is contents (p_filesz) followed by addresses without (up to
 * p_memsz). For those debuggers look into the file that NT_FILE names and
 * otherwise read zeros, which is what both kinds of gap mean.
 *
 *   file: | ehdr | phdr: PT_NOTE, PT_LOAD ... | notes | pad | contents ... | shdr 0 |
 *
 * shdr 0 only beyond 65534 program headers (elf(5), PN_XNUM).
 *
 * Pure: no I/O. Errors: negative errno.
 */
#ifndef USNAP_EXPORT_CORELAYOUT_H
#define USNAP_EXPORT_CORELAYOUT_H

#include <stddef.h>
#include <stdint.h>

struct core_segment {
	uint64_t vaddr, memsz, filesz; /* bytes */
	uint64_t offset; /* in the core file, set by core_layout_finish() */
	uint32_t flags; /* PF_R, PF_W, PF_X */
	uint32_t region; /* the caller's number of the region */
};

struct core_layout {
	struct core_segment *seg;
	size_t n, room;
	uint32_t page_size;

	/* the region under construction */
	uint64_t start, end; /* of the region */
	uint64_t seg_start, seg_end; /* of the segment's contents so far */
	uint64_t max_gap;
	uint32_t flags, region;

	/* after core_layout_finish() */
	uint64_t headers_len; /* ehdr and phdrs */
	uint64_t notes_offset, data_offset; /* in the file */
	uint64_t shdr_offset; /* 0: none */
	uint64_t file_len;
};

void core_layout_init(struct core_layout *l, uint32_t page_size);
void core_layout_free(struct core_layout *l);

/* Regions ascend and do not overlap; start < end; prot: PROT_*. */
int core_layout_begin(struct core_layout *l, uint64_t start, uint64_t end, uint32_t prot,
		      uint64_t max_gap, uint32_t region);
/* Pages with contents, inside the region, ascending. */
int core_layout_run(struct core_layout *l, uint64_t start, uint64_t end);
int core_layout_end(struct core_layout *l);

/* All regions are in: assigns file offsets. -EFBIG when they do not fit. */
int core_layout_finish(struct core_layout *l, uint64_t notes_len);

/* ELF header and program headers, headers_len bytes, freed by the caller. */
int core_layout_headers(const struct core_layout *l, uint64_t notes_len, unsigned char **ret);

/* Section header 0 when shdr_offset is set. */
enum {
	CORE_SHDR_BYTES = 64
};
void core_layout_shdr(const struct core_layout *l, unsigned char ret[CORE_SHDR_BYTES]);

#endif
