/*
 * Tar headers, read as strictly as our writer writes them: plain files with
 * names of a plain ustar header, preceded by a pax header where a size needs
 * one. Links, sparse files and the like are not in an image.
 */
#ifndef USNAP_IMAGE_USTAR_H
#define USNAP_IMAGE_USTAR_H

#include <stdint.h>

#include "image/format.h"

struct ustar_entry {
	char name[FORMAT_MAX_NAME + 1];
	uint64_t size; /* bytes of content */
	char type; /* '0' file, 'x' pax header of the entry that follows */
};

/* Parses one block. -EBADMSG when it is no header, or one that has no place
 * in an image; *ret_what says why. */
int ustar_parse(const unsigned char block[FORMAT_TAR_BLOCK], struct ustar_entry *ret,
		const char **ret_what);

/* The size that a pax header states, or 0 when it states none. -EBADMSG when
 * its records are malformed. */
int ustar_pax_size(const char *text, size_t len, uint64_t *ret);

static inline uint64_t ustar_padded(uint64_t size)
{
	return (size + FORMAT_TAR_BLOCK - 1) & ~(uint64_t)(FORMAT_TAR_BLOCK - 1);
}

#endif
