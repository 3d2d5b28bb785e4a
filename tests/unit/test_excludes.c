/*
 * usnap_exclude(): what the list says is what was asked for, and so it is after
 * every single store, since a snapshot can come between any two of them.
 */
#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void look(void);

/* Each store of the code under test is looked at. */
#define __atomic_store_n(to, value, order) (*(to) = (value), look())
#include "agent/excludes.c"

enum {
	PAGES = 400
};

static struct agent_control control;
static bool before[PAGES], after[PAGES];
static unsigned long looks;

/* As the snapshotter reads it. */
static bool says(uint64_t page)
{
	for (uint32_t i = 0; i < control.nr_excludes; i++)
		if (control.excludes[i].start < control.excludes[i].end &&
		    control.excludes[i].start <= page * AGENT_PAGE &&
		    page * AGENT_PAGE < control.excludes[i].end)
			return true;
	return false;
}

static void look(void)
{
	looks++;
	for (uint64_t p = 0; p < PAGES; p++)
		cr_assert(says(p) == before[p] || says(p) == after[p],
			  "page %lu is said to be what it neither was nor will be",
			  (unsigned long)p);
}

static void reset(void)
{
	memset(&control, 0, sizeof(control));
	memset(before, 0, sizeof(before));
	memset(after, 0, sizeof(after));
}

static int change(bool exclude, uint64_t from, uint64_t to)
{
	for (uint64_t p = from; p < to; p++)
		after[p] = exclude;
	int r = (exclude ? excludes_add : excludes_remove)(&control, from * AGENT_PAGE,
							   to * AGENT_PAGE);
	if (r < 0)
		memcpy(after, before, sizeof(after));
	for (uint64_t p = 0; p < PAGES; p++)
		cr_assert_eq(says(p), after[p], "page %lu", (unsigned long)p);
	memcpy(before, after, sizeof(before));
	return r;
}

static unsigned nr_in_use(void)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < control.nr_excludes; i++)
		n += control.excludes[i].start < control.excludes[i].end;
	return n;
}

Test(excludes, ranges_that_touch_or_overlap_become_one)
{
	reset();
	change(true, 10, 20);
	change(true, 30, 40);
	change(true, 50, 60);
	cr_assert_eq(nr_in_use(), 3);
	change(true, 20, 30);
	cr_assert_eq(nr_in_use(), 2);
	change(true, 5, 300);
	cr_assert_eq(nr_in_use(), 1);
	change(true, 100, 200);
	cr_assert_eq(nr_in_use(), 1);
}

Test(excludes, a_range_included_in_the_middle_leaves_two)
{
	reset();
	change(true, 10, 100);
	change(false, 40, 50);
	cr_assert_eq(nr_in_use(), 2);
	change(false, 0, 15);
	change(false, 90, 120);
	change(false, 30, 60);
	change(false, 0, PAGES);
	cr_assert_eq(nr_in_use(), 0);
	change(false, 0, PAGES);
}

Test(excludes, one_too_many_changes_nothing)
{
	reset();
	for (uint64_t i = 0; i < AGENT_EXCLUDES; i++)
		cr_assert_eq(change(true, i * 4, i * 4 + 3), 0);
	cr_assert_eq(change(true, 300, 301), -ENOSPC);
	cr_assert_eq(change(false, 1, 2), -ENOSPC);
	cr_assert_eq(change(true, 3, 4), 0);
	cr_assert_eq(change(true, 300, 301), 0);
	cr_assert_eq(change(true, 310, 311), -ENOSPC);
}

Test(excludes, many_changes_in_any_order)
{
	unsigned seed = 1;

	reset();
	for (int i = 0; i < 20000; i++) {
		uint64_t from = (uint64_t)rand_r(&seed) % PAGES;
		uint64_t len = (uint64_t)rand_r(&seed) % (i % 7 ? 6 : 120) + 1;
		int r = change(rand_r(&seed) % 5 < 3, from,
			       from + len < PAGES ? from + len : PAGES);

		cr_assert(r == 0 || r == -ENOSPC);
		cr_assert_leq(control.nr_excludes, AGENT_EXCLUDES);
	}
	cr_assert_gt(looks, 10000);
}
