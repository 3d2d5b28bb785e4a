/*
 * Times and durations as people write them, and as files are named.
 *
 * Without a zone a time is local. A time means the whole of what it says:
 * "2026-11-22" is that day to its end, "10:15" that minute of today.
 */
#ifndef USNAP_STORE_STORETIME_H
#define USNAP_STORE_STORETIME_H

#include <stdbool.h>
#include <stdint.h>

enum {
	STORETIME_STAMP = 20, /* 20261122T101500.123Z */
	STORETIME_LOCAL = 19 /* 2026-11-22T10:15:00 */
};

/* -ERANGE before 1970 and after 9999. */
int storetime_stamp(uint64_t ms, char ret[STORETIME_STAMP + 1]);

/* Reads the first STORETIME_STAMP bytes of text. -EINVAL. */
int storetime_parse_stamp(const char *text, uint64_t *ret_ms);

/* To the second, in local time. */
void storetime_local(uint64_t ms, char ret[STORETIME_LOCAL + 1]);

/*
 * The end (exclusive) of the time that text says, in milliseconds:
 * YYYY-MM-DD[(T| )HH:MM[:SS[.mmm]][Z|+HH:MM]], YYYYMMDD[THHMM[SS[.mmm]][Z]], HH:MM[:SS] (today),
 * "today", "yesterday", -DURATION (ago). -EINVAL for anything else.
 */
int storetime_parse(const char *text, int64_t now_s, uint64_t *ret_ms);

/* The same, and what it says begins at ret_from_ms: with a duration, that second. */
int storetime_parse_span(const char *text, int64_t now_s, uint64_t *ret_from_ms,
			 uint64_t *ret_until_ms);

/*
 * Seconds ("90"), or numbers with units from large to small ("1d12h"): y, M (of 30 days), w, d, h,
 * m (minutes), s. -EINVAL for anything else, and beyond a thousand years.
 */
int storetime_duration(const char *text, uint64_t *ret_s);

#endif
