#include "cli/prune_plan.h"

#include <errno.h>
#include <stdlib.h>

#include "common/util.h"

/* Stays, though no rule may count on it: what it needs is not there, and somebody might bring it. */
static bool is_incomplete(const struct prune_plan *p, size_t i)
{
	return p->links[i].readable && p->links[i].nr_missing;
}

/* Before this one all stay: of what cannot be read nobody knows what it needs. */
static size_t first_free(const struct prune_plan *p)
{
	size_t i = p->images.nr;

	while (i && p->links[i - 1].readable)
		i--;
	return i;
}

/* How many that stay for their own sake need each: by; and how many that stay at all: by_any. */
static void count_needed(const struct prune_plan *p, size_t *by, size_t *by_any)
{
	for (size_t i = 0; i < p->images.nr; i++)
		for (size_t k = 0; p->keep[i] && k < p->links[i].nr_needs; k++) {
			by[p->links[i].needs[k]] += p->why[i] || is_incomplete(p, i);
			by_any[p->links[i].needs[k]]++;
		}
}

/* Whatever it refers to is kept for it alone, and there is such. */
static bool saves_room(const struct prune_plan *p, size_t image, const size_t *by, size_t free)
{
	const struct store_link *l = &p->links[image];
	bool any = false;

	for (size_t i = 0; i < l->nr_needs; i++) {
		size_t need = l->needs[i];

		if (p->why[need] || need < free || is_incomplete(p, need))
			continue;
		if (by[need] > 1)
			return false;
		any = true;
	}
	return any;
}

/* Those that cannot stay as they are when nothing stays but what the rules want. */
static void mark_strict(const struct prune_plan *p, bool *must, size_t free)
{
	bool more = true;

	while (more) {
		more = false;
		for (size_t i = 0; i < p->images.nr; i++)
			for (size_t k = 0; p->why[i] && !must[i] && k < p->links[i].nr_needs; k++) {
				size_t need = p->links[i].needs[k];

				if (p->why[need] ? !must[need]
						 : need < free || is_incomplete(p, need))
					continue;
				must[i] = more = true;
			}
	}
}

/* One that nobody else needs, so that the merged one can take its place at once. */
static long choose_merge(const struct prune_plan *p, const bool *must, bool strict,
			 const size_t *by, const size_t *by_any)
{
	size_t free = first_free(p);

	for (size_t i = p->images.nr; i-- > free;) {
		if (!p->why[i] || by_any[i])
			continue;
		if (strict ? must[i] : i + 1 < p->images.nr && saves_room(p, i, by, free))
			return (long)i;
	}
	return -1;
}

static uint64_t kept_bytes(const struct prune_plan *p)
{
	uint64_t total = 0;

	for (size_t i = 0; i < p->images.nr; i++)
		total += p->keep[i] ? p->images.image[i].bytes : 0;
	return total;
}

static void close_over(struct prune_plan *p)
{
	/* What cannot be read is no good as the one of its day. It is not removed behind
	 * anybody's back either. */
	for (size_t i = 0; i < p->images.nr; i++)
		p->keep[i] = p->why[i] || !p->links[i].readable || is_incomplete(p, i);
	p->held = store_links_close(p->links, p->keep, p->images.nr);
}

/* Of those that rules keep the oldest are given up, so many; never the newest. */
static void give_up(struct prune_plan *p, const unsigned *why, size_t nr)
{
	size_t last = p->images.nr;

	while (last && !why[last - 1])
		last--;
	for (size_t i = 0; i < p->images.nr; i++) {
		bool gives = nr && why[i] && i + 1 < last;

		p->why[i] = gives ? 0 : why[i];
		nr -= gives;
	}
	close_over(p);
}

/* What is kept for others counts as well: as few go as it takes. The fewer stay by a rule, the
 * fewer stay for others. */
static int fit(struct prune_plan *p, uint64_t max_bytes)
{
	cleanup_free unsigned *why = calloc(p->images.nr + 1, sizeof(*why));
	size_t a = 0, b = p->images.nr;

	if (!why)
		return -ENOMEM;
	for (size_t i = 0; i < p->images.nr; i++)
		why[i] = p->why[i];
	while (a < b) {
		size_t m = a + (b - a) / 2;

		give_up(p, why, m);
		if (kept_bytes(p) > max_bytes)
			a = m + 1;
		else
			b = m;
	}
	give_up(p, why, a);
	return 0;
}

/* For the rules. One that was merged is there twice when that run was killed: once is enough. */
static bool may_count(const struct prune_plan *p, size_t i)
{
	return p->links[i].readable && !p->links[i].nr_missing && !p->links[i].replaced;
}

static int judge(struct prune_plan *p, const struct retention *rules)
{
	struct retention_item *items = calloc(p->images.nr + 1, sizeof(*items));
	size_t n = 0, k = 0;
	int r = 0;

	if (!items)
		return -ENOMEM;
	for (size_t i = 0; i < p->images.nr; i++)
		if (may_count(p, i))
			items[n++] = (struct retention_item){.t0_ms = p->images.image[i].t0_ms,
							     .bytes = p->images.image[i].bytes};
	retention_apply(rules, items, n);
	for (size_t i = 0; i < p->images.nr; i++)
		if (may_count(p, i))
			p->why[i] = items[k++].keep;
	free(items);
	close_over(p);
	if (rules->max_bytes)
		r = fit(p, rules->max_bytes);
	for (size_t i = 0; i < p->images.nr; i++)
		p->remove[i] = !p->keep[i];
	return r;
}

int prune_plan_make(struct prune_plan *p, struct store *s, const char *name,
		    const struct retention *rules, bool strict, struct usnap_err *err)
{
	cleanup_free bool *must = NULL;
	cleanup_free size_t *by = NULL, *by_any = NULL;
	int r;

	*p = (struct prune_plan){.merge = -1};
	if ((r = store_scan(s, name, &p->images, err)) < 0 ||
	    (r = store_links_load(s, name, &p->images, &p->links, err)) < 0)
		return r;
	p->why = calloc(p->images.nr + 1, sizeof(*p->why));
	p->keep = calloc(p->images.nr + 1, sizeof(*p->keep));
	p->remove = calloc(p->images.nr + 1, sizeof(*p->remove));
	must = calloc(p->images.nr + 1, sizeof(*must));
	by = calloc(p->images.nr + 1, sizeof(*by));
	by_any = calloc(p->images.nr + 1, sizeof(*by_any));
	r = p->why && p->keep && p->remove && must && by && by_any ? judge(p, rules) : -ENOMEM;
	if (r < 0) {
		usnap_fail_errno(err, r, "cannot prune '%s'", name);
	} else {
		if (strict)
			mark_strict(p, must, first_free(p));
		count_needed(p, by, by_any);
		p->merge = choose_merge(p, must, strict, by, by_any);
	}
	return r;
}

void prune_plan_free(struct prune_plan *p)
{
	store_links_free(p->links, p->images.nr);
	store_images_free(&p->images);
	free(p->why);
	free(p->keep);
	free(p->remove);
	*p = (struct prune_plan){.merge = -1};
}
