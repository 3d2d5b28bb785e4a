#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/util.h"
#include "store/retention.h"
#include "store/storetime.h"

enum {
	MAX_ITEMS = 8192
};

static struct retention_item items[MAX_ITEMS];
static size_t nr;

static void zone(const char *tz)
{
	setenv("TZ", tz, 1);
	tzset();
}

static void begin(void)
{
	zone("UTC");
	nr = 0;
}

TestSuite(retention, .init = begin);

static uint64_t at(const char *stamp)
{
	uint64_t ms;

	cr_assert_eq(storetime_parse_stamp(stamp, &ms), 0, "%s", stamp);
	return ms;
}

static void add(uint64_t ms)
{
	items[nr++] = (struct retention_item){.t0_ms = ms, .bytes = 100};
}

static size_t kept(void)
{
	size_t n = 0;

	for (size_t i = 0; i < nr; i++)
		n += items[i].keep != 0;
	return n;
}

static void apply(struct retention r)
{
	retention_apply(&r, items, nr);
}

Test(retention, keeps_the_last_images)
{
	for (unsigned i = 0; i < 10; i++)
		add(1000000 + i);
	apply((struct retention){.last = 3});
	cr_assert_eq(kept(), 3);
	for (size_t i = 7; i < 10; i++)
		cr_assert_eq(items[i].keep, KEEP_LAST);
}

Test(retention, always_keeps_the_newest)
{
	for (unsigned i = 0; i < 10; i++)
		add(at("20260101T000000.000Z") + i * 60000);
	apply((struct retention){.max_bytes = 1});
	cr_assert_eq(kept(), 1);
	cr_assert(items[9].keep);
	nr = 0;
	apply((struct retention){.last = 1});
}

Test(retention, keeps_the_newest_image_of_each_hour)
{
	for (unsigned i = 0; i < 12 * 5; i++)
		add(at("20260310T100000.000Z") + i * UINT64_C(300000));
	apply((struct retention){.hourly = 3});
	cr_assert_eq(kept(), 3);
	cr_assert_eq(items[59].keep, KEEP_LAST | KEEP_HOURLY); /* 14:55 */
	cr_assert_eq(items[47].keep, KEEP_HOURLY); /* 13:55 */
	cr_assert_eq(items[35].keep, KEEP_HOURLY);
}

Test(retention, counts_only_hours_with_images)
{
	add(at("20260301T080000.000Z"));
	add(at("20260301T081000.000Z"));
	add(at("20260305T080000.000Z"));
	add(at("20260309T080000.000Z"));
	apply((struct retention){.hourly = 3});
	cr_assert_eq(kept(), 3);
	cr_assert_eq(items[0].keep, 0);
	cr_assert(items[1].keep);
}

Test(retention, lets_the_oldest_stand_in_for_what_there_is_not_yet)
{
	for (unsigned i = 0; i < 10; i++)
		add(at("20260310T100000.000Z") + i * UINT64_C(300000));
	apply((struct retention){.daily = 7});
	cr_assert_eq(kept(), 2);
	cr_assert(items[0].keep);
	cr_assert(items[9].keep);
}

Test(retention, rules_are_independent)
{
	for (unsigned i = 0; i < 60; i++)
		add(at("20260101T230000.000Z") + i * UINT64_C(86400000));
	apply((struct retention){.last = 2, .daily = 5, .weekly = 2, .monthly = 2});
	cr_assert(items[59].keep & KEEP_DAILY && items[59].keep & KEEP_WEEKLY &&
		  items[59].keep & KEEP_MONTHLY);
	/* The 31st of January and 1st of March. */
	cr_assert(items[58].keep & KEEP_MONTHLY);
	cr_assert_eq(kept(),
		     6); /* 5 days; the Sunday before; the end of February is one of the days */
}

Test(retention, weeks_are_those_of_iso)
{
	/* A Sunday, and the Monday after it, at the turn of a year: 2027-W01 begins on January 4th. */
	add(at("20261231T120000.000Z"));
	add(at("20270103T120000.000Z"));
	add(at("20270104T120000.000Z"));
	apply((struct retention){.weekly = 2});
	cr_assert_eq(items[0].keep, 0);
	cr_assert(items[1].keep);
	cr_assert(items[2].keep);
}

Test(retention, days_begin_at_local_midnight)
{
	add(at("20260610T213000.000Z")); /* 23:30 in Berlin */
	add(at("20260610T223000.000Z")); /* 0:30 of the next day */
	add(at("20260611T100000.000Z"));
	apply((struct retention){.daily = 2});
	cr_assert_eq(items[0].keep, 0);
	cr_assert_eq(items[1].keep, KEEP_DAILY);
	zone("Europe/Berlin");
	apply((struct retention){.daily = 2});
	cr_assert(items[0].keep & KEEP_DAILY);
	cr_assert_eq(items[1].keep, 0);
}

Test(retention, hour_that_comes_twice_is_two_hours)
{
	zone("Europe/Berlin");
	add(at("20261025T003000.000Z")); /* 2:30 summer time */
	add(at("20261025T013000.000Z")); /* 2:30 winter time */
	add(at("20261025T023000.000Z"));
	apply((struct retention){.hourly = 3});
	cr_assert_eq(kept(), 3);
}

Test(retention, within_counts_from_the_newest_image)
{
	for (unsigned i = 0; i < 48; i++)
		add(at("20200101T000000.000Z") + i * UINT64_C(3600000));
	apply((struct retention){.within_s = 3600 * 5});
	cr_assert_eq(kept(), 6);
	cr_assert_eq(items[42].keep, KEEP_WITHIN);
}

Test(retention, images_from_the_future_take_nobodys_place)
{
	struct retention rules = {.within_s = 3600 * 5, .now_ms = at("20200103T000000.000Z")};

	for (unsigned i = 0; i < 48; i++)
		add(at("20200101T000000.000Z") + i * UINT64_C(3600000));
	add(at("20380101T000000.000Z"));
	apply(rules);
	cr_assert_eq(kept(), 7);
	cr_assert_eq(items[47].keep, KEEP_WITHIN | KEEP_LAST);
	apply((struct retention){.last = 2, .now_ms = rules.now_ms});
	cr_assert_eq(kept(), 3);
	/* A clock that is behind makes all of them such. */
	apply((struct retention){.last = 2, .now_ms = 1});
	cr_assert_eq(kept(), 2);
}

Test(retention, size_removes_neither_the_newest_nor_that_from_the_future)
{
	struct retention rules = {.max_bytes = 150, .now_ms = at("20200103T000000.000Z")};

	for (unsigned i = 0; i < 5; i++)
		add(at("20200101T000000.000Z") + i * UINT64_C(3600000));
	add(at("20380101T000000.000Z"));
	apply(rules);
	cr_assert_eq(kept(), 2);
	cr_assert(items[4].keep && items[5].keep);
	rules.max_bytes = 350;
	apply(rules);
	cr_assert_eq(kept(), 3);
}

Test(retention, size_removes_the_oldest)
{
	for (unsigned i = 0; i < 10; i++)
		add(1000000 + i * UINT64_C(86400000));
	apply((struct retention){.max_bytes = 450});
	cr_assert_eq(kept(), 4);
	cr_assert(items[6].keep && !items[5].keep);
	apply((struct retention){.last = 3, .max_bytes = 250});
	cr_assert_eq(kept(), 2);
}

/* Two weeks of a snapshot every five minutes, pruned after each: what is kept is
 * what the rules say of all that ever was, and never more. */
Test(retention, holds_over_two_weeks_of_cron)
{
	const struct retention r = {.last = 12, .hourly = 24, .daily = 7, .weekly = 3};
	uint64_t now = at("20260301T000000.000Z");
	size_t most = 0;

	for (unsigned run = 0; run < 14 * 288; run++, now += 300000) {
		size_t n = 0;

		add(now);
		apply(r);
		for (size_t i = 0; i < nr; i++)
			if (items[i].keep)
				items[n++] = items[i];
		nr = n;
		most = MAX(most, nr);
	}
	cr_assert_leq(most, 12 + 24 + 7 + 3);
	/* 2026-03-14 23:55 is the last: 12 of the last hour, 23 more hours, 6 more
	 * days, of which one is the end of the week before, and one week more. */
	cr_assert_eq(nr, 12 + 23 + 6 + 1);
	cr_assert_eq(items[nr - 1].t0_ms, at("20260314T235500.000Z"));
	cr_assert_eq(items[nr - 12].t0_ms, at("20260314T230000.000Z"));
	cr_assert_eq(items[nr - 13].t0_ms, at("20260314T225500.000Z"));
}
