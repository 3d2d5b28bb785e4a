/*
 * The notes of a core file: what debuggers know of a process besides its
 * memory (core(5), elf(5); the kernel writes them in fs/binfmt_elf.c).
 *
 * Pure functions on memory. Threads' notes come from an image, which may be
 * hostile: they are checked before a byte of them is passed on.
 * Errors: negative errno; -EBADMSG for notes that are no notes, -E2BIG for
 * what does not fit into the format.
 */
#ifndef USNAP_EXPORT_CORENOTES_H
#define USNAP_EXPORT_CORENOTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Notes back to back, growing. */
struct core_notes {
	unsigned char *data;
	size_t len, room;
};

void core_notes_free(struct core_notes *n);

/* Appends one note; desc is padded to 4 bytes. */
int core_notes_add(struct core_notes *n, const char *name, uint32_t type, const void *desc,
		   size_t len);

/* The notes of one thread, as found in an image. */
struct core_thread {
	uint32_t tid;
	const unsigned char *notes; /* borrowed */
	size_t len;
	size_t first_len; /* bytes of the first note, NT_PRSTATUS, padding included */
	int signo; /* the signal it was stopped with; 0: none */
	bool has_layout; /* NT_X86_XSAVE_LAYOUT says where the xstate has what */
};

/* Checks the notes of thread tid: complete, of known types and sizes, each
 * once, NT_PRSTATUS first and of this thread. -EBADMSG: *ret_offset is where
 * and *ret_why (static) what is wrong. */
int core_thread_check(struct core_thread *ret, uint32_t tid, const void *notes, size_t len,
		      size_t *ret_offset, const char **ret_why);

/* Appends the notes of a checked thread, as they are but for the layout of
 * the extended state (corexsave.h): the first one, or all the others. */
int core_notes_first(struct core_notes *n, const struct core_thread *t);
int core_notes_rest(struct core_notes *n, const struct core_thread *t);

/* The thread that a debugger shall show first: one that a fault or an abort
 * ended, else the leader, else the first. n must not be 0. */
size_t core_first_thread(const struct core_thread *threads, size_t n, uint32_t pid);

/* What NT_PRPSINFO says of a process. */
struct core_process {
	int32_t pid, ppid, pgid, sid;
	uint32_t uid, gid;
	int nice;
	const char *comm;
	const char *args; /* separated by blanks; longer than 79 bytes: cut */
};

int core_notes_prpsinfo(struct core_notes *n, const struct core_process *p);

/* hex: the auxiliary vector in hexadecimal, whole entries of 16 bytes. */
int core_notes_auxv(struct core_notes *n, const char *hex);

/* One mapping of a file for NT_FILE. offset in bytes. */
struct core_mapping {
	uint64_t start, end, offset;
	const char *path;
};

/* Adds nothing when nr is 0. */
int core_notes_file(struct core_notes *n, const struct core_mapping *m, size_t nr,
		    uint32_t page_size);

#endif
