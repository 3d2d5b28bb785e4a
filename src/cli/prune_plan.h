/*
 * What prune decides about the images of a name: which stay by the rules,
 * which for those, and which is to be merged so that others can go.
 *
 * A merged image takes the place of one that stays, and refers to none. That
 * saves room when what it refers to is kept for nothing else, and then it is
 * done; or always, with "strict", so that nothing stays but what the rules
 * want. The newest image is merged only with "strict": the next snapshot
 * would begin a new chain each time.
 */
#ifndef USNAP_CLI_PRUNE_PLAN_H
#define USNAP_CLI_PRUNE_PLAN_H

#include <stdbool.h>

#include "store/links.h"
#include "store/retention.h"
#include "store/store.h"

struct prune_plan {
	struct store_images images;
	struct store_link *links;
	unsigned *why; /* KEEP_..., 0: not by a rule */
	bool *keep, *remove; /* each is one or the other */
	size_t held; /* kept for others only */
	long merge; /* the image to be merged next, or -1 */
};

int prune_plan_make(struct prune_plan *p, struct store *s, const char *name,
		    const struct retention *rules, bool strict, struct usnap_err *err);
void prune_plan_free(struct prune_plan *p);

#endif
