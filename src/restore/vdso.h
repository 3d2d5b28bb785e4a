/*
 * The vdso: an ELF object of the kernel's in every process, read without
 * belief in any of its numbers, and changed so that its functions lead
 * elsewhere. x86-64.
 *
 * Any thread. 0 or a negative errno.
 */
#ifndef USNAP_RESTORE_VDSO_H
#define USNAP_RESTORE_VDSO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	VDSO_MAX_BYTES = 1 << 16,
	VDSO_MAX_SYMBOLS = 64,
	VDSO_MAX_BUILD_ID = 64,
	VDSO_JUMP_BYTES = 14, /* of an entry that leads elsewhere */
};

struct vdso_symbol {
	const char *name; /* in the bytes that were parsed */
	uint32_t offset; /* of the function, from the start */
	uint32_t room; /* bytes up to the next function or the end of the code */
};

struct vdso {
	struct vdso_symbol symbols[VDSO_MAX_SYMBOLS];
	size_t nr_symbols;
	unsigned char build_id[VDSO_MAX_BUILD_ID];
	size_t build_id_len; /* 0: none */
};

/* Fills v from an object of len bytes, as it lies in memory. -EBADMSG when it is none. */
int vdso_parse(struct vdso *v, const unsigned char *bytes, size_t len);

const struct vdso_symbol *vdso_find(const struct vdso *v, const char *name);

bool vdso_same_build(const struct vdso *a, const struct vdso *b);

/* Changes bytes, of which theirs was parsed, so that every function goes on at its counterpart in
 * ours, which lies at ours_addr. Functions without one make their system call. -EOPNOTSUPP when
 * one can do neither; *ret_name is its name. */
int vdso_redirect(unsigned char *bytes, size_t len, const struct vdso *theirs,
		  const struct vdso *ours, uint64_t ours_addr, const char **ret_name);

#endif
