/*
 * Which images stay, as restic and borg users expect. A pure function of its
 * arguments and the time zone of the process (TZ), in which days begin.
 *
 * A rule with a number keeps the newest image of each of the last N hours
 * (days, ISO weeks, months) that have any; as long as there are fewer, the
 * oldest image stays for it as well. The rules are independent, and an image
 * stays when any of them wants it. "within" counts back from the newest
 * image, not from now: on a machine that was off for a month it removes nothing.
 * The newest image always stays. Images from the future, of days when the clock
 * was wrong, take nobody's place: they are counted by themselves.
 */
#ifndef USNAP_STORE_RETENTION_H
#define USNAP_STORE_RETENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum {
	KEEP_LAST = 1,
	KEEP_HOURLY = 2,
	KEEP_DAILY = 4,
	KEEP_WEEKLY = 8,
	KEEP_MONTHLY = 16,
	KEEP_WITHIN = 32,
	KEEP_ALL = 64, /* no rule but the size */
};

struct retention {
	uint64_t last, hourly, daily, weekly, monthly; /* images; 0: no such rule */
	uint64_t within_s; /* 0: no such rule */
	uint64_t max_bytes; /* of all together, oldest go first; 0: no limit */
	uint64_t now_ms; /* 0: no image is from the future */
};

struct retention_item {
	uint64_t t0_ms, bytes;
	unsigned keep; /* result: KEEP_...; 0: goes */
};

bool retention_is_empty(const struct retention *r);

/* items: oldest first. */
void retention_apply(const struct retention *r, struct retention_item *items, size_t n);

/* "last", "daily, weekly" ... into buf. Returns buf. */
const char *retention_reasons(unsigned keep, char *buf, size_t room);

#endif
