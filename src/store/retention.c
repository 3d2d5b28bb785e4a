#include "store/retention.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/util.h"

bool retention_is_empty(const struct retention *r)
{
	return !r->last && !r->hourly && !r->daily && !r->weekly && !r->monthly && !r->within_s &&
	       !r->max_bytes;
}

/* What two images have in common that belong to one hour, day, week or month. In local time, with
 * the offset: the hour that comes twice in autumn is two hours. */
static uint64_t period(unsigned rule, uint64_t t0_ms)
{
	time_t t = (time_t)(t0_ms / 1000);
	struct tm tm;
	char week[16];

	if (!localtime_r(&t, &tm))
		return t0_ms;
	uint64_t year = (uint64_t)(tm.tm_year + 1900);

	switch (rule) {
	case KEEP_HOURLY:
		return (uint64_t)(t + tm.tm_gmtoff) / 3600 << 20 |
		       (uint64_t)((tm.tm_gmtoff + 86400) & 0xfffff);
	case KEEP_DAILY:
		return year * 1000 + (uint64_t)tm.tm_yday;
	case KEEP_WEEKLY: /* the ISO year, which is not always that of the date */
		strftime(week, sizeof(week), "%G%V", &tm);
		return strtoull(week, NULL, 10);
	default:
		return year * 100 + (uint64_t)tm.tm_mon;
	}
}

static void keep_periods(unsigned rule, uint64_t count, struct retention_item *items, size_t n)
{
	uint64_t last = 0;
	bool any = false;

	for (size_t i = n; i-- > 0 && count;) {
		uint64_t p = period(rule, items[i].t0_ms);

		/* The oldest stands in for the periods that there are not yet. */
		if (any && p == last && i != 0)
			continue;
		items[i].keep |= rule;
		last = p;
		any = true;
		count--;
	}
}

/* From the oldest on, until what stays fits. The newest stays, be it from the future or not: which of the
 * two it is in truth is not known here. */
static void fit(uint64_t max_bytes, struct retention_item *items, size_t n, size_t past)
{
	uint64_t total = 0;

	for (size_t i = 0; i < n; i++)
		if (items[i].keep)
			total += items[i].bytes;
	for (size_t i = 0; i + 1 < n && total > max_bytes; i++) {
		if (!items[i].keep || i + 1 == past)
			continue;
		items[i].keep = 0;
		total -= items[i].bytes;
	}
}

static void apply_rules(const struct retention *r, struct retention_item *items, size_t n)
{
	struct retention rules = *r;

	rules.max_bytes = 0;
	for (size_t i = 0; i < n; i++)
		items[i].keep = retention_is_empty(&rules) ? KEEP_ALL : 0;
	if (!n)
		return;
	items[n - 1].keep |= KEEP_LAST;
	for (size_t i = n; i-- > 0;) {
		if (n - i <= r->last)
			items[i].keep |= KEEP_LAST;
		if (r->within_s && items[i].t0_ms + r->within_s * 1000 >= items[n - 1].t0_ms)
			items[i].keep |= KEEP_WITHIN;
	}
	keep_periods(KEEP_HOURLY, r->hourly, items, n);
	keep_periods(KEEP_DAILY, r->daily, items, n);
	keep_periods(KEEP_WEEKLY, r->weekly, items, n);
	keep_periods(KEEP_MONTHLY, r->monthly, items, n);
}

void retention_apply(const struct retention *r, struct retention_item *items, size_t n)
{
	size_t past = n;

	while (r->now_ms && past && items[past - 1].t0_ms > r->now_ms)
		past--;
	apply_rules(r, items, past);
	apply_rules(r, items + past, n - past);
	if (r->max_bytes)
		fit(r->max_bytes, items, n, past);
}

const char *retention_reasons(unsigned keep, char *buf, size_t room)
{
	static const char *const names[] = {"last",    "hourly", "daily", "weekly",
					    "monthly", "within", "all"};
	size_t len = 0;

	buf[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (keep & 1u << i && len < room)
			len += (size_t)snprintf(buf + len, room - len, "%s%s", len ? ", " : "",
						names[i]);
	return buf;
}
