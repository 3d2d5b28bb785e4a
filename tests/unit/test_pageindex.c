/* The page index against a plain table of the same pages. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "common/le.h"
#include "image/pageindex.h"

enum {
	PAGE = 4096,
	NR = 5000
};

struct collected {
	unsigned char *p;
	size_t len;
};

static int collect(void *ctx, const void *buf, size_t len)
{
	struct collected *c = ctx;

	c->p = realloc(c->p, c->len + len);
	memcpy(c->p + c->len, buf, len);
	c->len += len;
	return 0;
}

static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static void add(struct pageindex *pi, uint64_t key, uint32_t nr)
{
	struct page_frame f = {.nr_pages = nr, .segment = 1, .offset = (uint32_t)(key >> 12)};
	struct page_run run = {.addr = key, .frame = PAGE_NEW_FRAME, .nr_pages = (uint16_t)nr};
	struct page_hash h[8];

	for (uint32_t i = 0; i < nr; i++)
		memset(h[i].b, (int)((key >> 12) + i), sizeof(h[i].b));
	cr_assert_eq(pageindex_add(pi, &f, &run, 1, h, true), 0);
}

static struct collected emit(struct pageindex *pi)
{
	const uint64_t base[2] = {0, 1000};
	const unsigned char id[16] = {1};
	struct usnap_err err = {0};
	struct collected c = {0};

	cr_assert_eq(pageindex_finish(pi, &err), 0, "%s", err.text);
	cr_assert_eq(pageindex_emit(pi, id, base, collect, &c), 0);
	cr_assert_eq(c.len, pageindex_bytes(pi));
	return c;
}

static const unsigned char *page_record(const struct collected *c, uint64_t i)
{
	return c->p + 64 + 32 * (1 + le_get64(c->p + 24) + i);
}

Test(pageindex, sorts_what_came_in_any_order)
{
	static unsigned char taken[1 << 16];
	struct pageindex pi;
	struct collected c;
	uint64_t x = 88172645463325252ull, nr = 0, last = 0;

	pageindex_init(&pi, PAGE);
	while (nr < NR) {
		/* Far apart in the higher bytes too. */
		uint64_t slot = next_random(&x) % (1 << 13);
		uint64_t key = slot * 8 * PAGE + (slot % 7) * 0x0100000000000000ull;
		uint32_t n = (uint32_t)(next_random(&x) % 8) + 1;

		if (taken[slot])
			continue;
		taken[slot] = 1;
		add(&pi, key, n);
		nr += n;
	}
	c = emit(&pi);
	cr_assert_eq(le_get64(c.p + 32), nr);
	for (uint64_t i = 0; i < nr; i++) {
		const unsigned char *r = page_record(&c, i), *f;
		uint64_t addr = le_get64(r);

		cr_assert(i == 0 || addr > last);
		last = addr;
		cr_assert_eq(r[16], (unsigned char)(addr >> 12));
		f = c.p + 96 + 32 * (uint64_t)le_get32(r + 8);
		cr_assert_eq(le_get64(f + 16), 1000 + (uint32_t)((addr >> 12) - le_get16(r + 12)));
	}
	free(c.p);
	pageindex_clear(&pi);
}

Test(pageindex, is_complete_without_pages)
{
	struct pageindex pi;
	struct collected c;

	pageindex_init(&pi, PAGE);
	c = emit(&pi);
	cr_assert_eq(c.len, 96);
	free(c.p);
	pageindex_clear(&pi);
}
