/*
 * What prune decides about the images of a name: which stay by the rules,
 * which only for those, and which is to be merged so that others can go.
 *
 * An image that no rule wants and others refer to goes once these are written
 * anew without it: what they need of it becomes theirs. The oldest comes
 * first, and becomes a full image; the next ones continue it, so that
 * together they take no more than before. Each has the same time and a new
 * id, and takes the place of its original when nothing refers to that any
 * more; until then both are there, and the original counts for no rule.
 *
 * That writes up to as much as stays. Those who want it more seldom let some
 * images stay for others ("spare"), and all are merged when there are more.
 *
 * Not merged is what could not go anyway: what cannot be read, all that is
 * older than that, and what lacks an image and all that it needs; nor what
 * turned out to be damaged when it was to be merged ("pinned").
 */
#ifndef USNAP_CLI_PRUNE_PLAN_H
#define USNAP_CLI_PRUNE_PLAN_H

#include <stdbool.h>

#include "store/links.h"
#include "store/retention.h"
#include "store/store.h"

/* Images that may stay for others, if not told: an hourly rule that is full drops one each hour,
 * and merging all that stays each time would write a multiple of the snapshots. */
#define PRUNE_SPARE 24

struct prune_rules {
	struct retention keep;
	uint64_t spare; /* images that may stay for others only */
	uint64_t since_ms; /* no rule wants what is older: it was given up for its size */
	const char (*unfit)[STORE_ID_LEN + 1]; /* borrowed: ids of what could not be merged */
	size_t nr_unfit;
};

struct prune_plan {
	struct store_images images;
	struct store_link *links;
	unsigned *why; /* KEEP_..., 0: not by a rule */
	bool *pinned; /* stays whatever the rules say */
	bool *unfit; /* cannot be merged, as was found out */
	bool *keep, *remove; /* now: each is one or the other */
	bool *must; /* to be merged, sooner or later */
	bool *stays; /* when all is done */
	size_t held; /* of those that stay: for others only */
	size_t mergeable; /* of these: could go if all were merged */
	uint64_t bytes_after; /* of what stays; a guess while there is something to merge */
	uint64_t now_ms; /* what is of later is from the future */
	long merge; /* the image to be merged next, or -1 */
	long parent; /* what it is to continue, or -1 */
	bool *scratch;
};

int prune_plan_make(struct prune_plan *p, struct store *s, const char *name,
		    const struct prune_rules *rules, struct usnap_err *err);
void prune_plan_free(struct prune_plan *p);

#endif
