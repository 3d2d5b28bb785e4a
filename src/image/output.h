/*
 * The file that becomes the image: invisible until it is complete and
 * durable. Where the file system can, it has no name at all before that
 * (O_TMPFILE), so that a killed run leaves nothing behind; elsewhere it is a
 * hidden ".NAME.XXXXXX.part" in the same directory.
 */
#ifndef USNAP_IMAGE_OUTPUT_H
#define USNAP_IMAGE_OUTPUT_H

#include <stdbool.h>

#include "common/err.h"

struct output;

/* path "-": standard output, unnamed and never renamed; refused (-EINVAL)
 * when it is a terminal. An existing regular file is replaced at commit and
 * untouched until then. */
int output_open(struct output **ret, const char *path, struct usnap_err *err);
int output_fd(const struct output *o);
bool output_is_stream(const struct output *o);

/* Another name in the same directory, for one that is known only at the end. Not for a stream. */
int output_set_name(struct output *o, const char *name, struct usnap_err *err);

/* fsync, name it, fsync of the directory. */
int output_commit(struct output *o, struct usnap_err *err);

/* Closes; removes what was not committed. NULL is fine. */
void output_close(struct output *o);

#endif
