/*
 * Which ancestors an image refers to: the beginning of its page index, which
 * is read without the rest, so that a store of thousands of images can be
 * looked through. Nothing is compared with the hash of the index: an answer
 * that is wrong for that comes of an image that could not be read anyway.
 */
#ifndef USNAP_IMAGE_IMGREFERS_H
#define USNAP_IMAGE_IMGREFERS_H

#include <stddef.h>
#include <stdint.h>
#include <uffd-snap.h>

/* The ids, of 16 bytes each, back to back, without its own. The caller frees *ret, which is
 * NULL when there are none. Errors as of any function of uffd-snap.h. */
int img_read_refers(struct usnap_image *img, unsigned char **ret, size_t *ret_nr);

/* Also about how many bytes an image would take up that had what it refers to itself, for each of
 * them: of frames of which not all is used, the share that is used on average. */
int img_read_refers_sized(struct usnap_image *img, unsigned char **ret, size_t *ret_nr,
			  uint64_t **ret_bytes);

#endif
