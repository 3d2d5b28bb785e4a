/*
 * Processes that share the target's memory without being threads of it
 * (CLONE_VM without CLONE_THREAD). They do not stop with it: what they write
 * while it stands still would be in the image or not as chance has it.
 *
 * A child of vfork() or posix_spawn() is one, too, but its parent cannot be
 * stopped until it is none any more: so one that was there before the freeze
 * and still is after it is of the other kind. One that begins between the look
 * and the freeze is not seen.
 */
#ifndef USNAP_CAPTURE_SHARERS_H
#define USNAP_CAPTURE_SHARERS_H

#include <stddef.h>
#include <sys/types.h>

#include "common/err.h"

struct sharers {
	pid_t *pid;
	size_t nr;
};

/* Before the freeze: looks at every process that we see, as long as the kernel
 * tells us. 0, or -ENOMEM. */
int sharers_note(struct sharers *s, pid_t target);
/* After a freeze: 0, or -ENOTSUP and words. */
int sharers_check(const struct sharers *s, pid_t target, struct usnap_err *err);
void sharers_free(struct sharers *s);

#endif
