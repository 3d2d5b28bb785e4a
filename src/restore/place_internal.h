/*
 * What the files of the placement share.
 *
 *	place.c         which numbers, which namespaces
 *	place_clocks.c  what the clocks of the process must show
 *	place_ns.c      namespaces made and furnished
 *	place_init.c    the inner process and the outer one
 */
#ifndef USNAP_RESTORE_PLACE_INTERNAL_H
#define USNAP_RESTORE_PLACE_INTERNAL_H

#include <sys/socket.h>

#include "restore/place.h"
#include "restore/place_ns.h"

/* ---- place_clocks.c ---- */

/* Sets *ret to the distances that the process needs, *ret_needed when they are not those of this
 * process. */
int place_plan_clocks(struct restore *r, struct timens_offsets *ret, bool *ret_needed,
		      struct usnap_err *err);

struct place {
	struct place_spaces spaces;
	char why[160]; /* why not under its numbers here; for people */

	/* Of the outer process: */
	pid_t init;
	int pidfd; /* of the restored process */

	/* Of both: */
	bool inside;
	int channel;
};

/* What the inner process sends when the build is over. Later it sends wait statuses (int). */
struct place_report {
	int code;
	struct usnap_err err;
};

#endif
