/*
 * The functions that the agent exports in the place of libc's. Where libc's
 * own calls go through the gate, and where somebody else has put a function
 * of his in that place as well (a sanitizer, an allocator that counts), they
 * do nothing but call the next one; else they make the call, through the gate.
 */
#ifndef USNAP_AGENT_EXPORTS_H
#define USNAP_AGENT_EXPORTS_H

enum export {
	EXPORT_MUNMAP,
	EXPORT_MADVISE,
	EXPORT_MREMAP,
	EXPORT_MMAP,
	EXPORT_MMAP64,
	NR_EXPORTS,
};

extern const char export_names[NR_EXPORTS][8] __attribute__((visibility("hidden")));

/* The functions to be called; NULL: none. */
extern void *export_next[NR_EXPORTS] __attribute__((visibility("hidden")));

#endif
