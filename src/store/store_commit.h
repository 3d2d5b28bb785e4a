/* An image that is complete gets its place in the store. */
#ifndef USNAP_STORE_STORE_COMMIT_H
#define USNAP_STORE_STORE_COMMIT_H

#include "image/output.h"
#include "store/store.h"

/* Where an image for a name is written until it is known what it is called: DIR/NAME/image.usnap,
 * for output_open(). The caller frees *ret. .lock of the name is held. */
int store_new_path(struct store *s, const char *name, char **ret, struct usnap_err *err);

/* Reads back what output has, names it by its time and id, and makes it durable. */
int store_commit(struct output *output, char ret_file[STORE_FILE_LEN + 1], struct usnap_err *err);

#endif
