/*
 * A core file of an image: what image and core file have in common, brought
 * from one's terms into the other's.
 */
#ifndef USNAP_EXPORT_COREIMAGE_H
#define USNAP_EXPORT_COREIMAGE_H

#include "common/err.h"
#include "export/core.h"
#include "uffd-snap.h"

/* The process ID that the image is of, for naming the core file as gcore(1) does. */
int core_image_pid(struct usnap_image *img, int32_t *ret, struct usnap_err *err);

/* img: open; name: of the image, for messages. */
int core_image_write(struct usnap_image *img, const char *name, const struct core_options *options,
		     struct usnap_err *err);

#endif
