#include "cli/prune_plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"

/* Stays, though no rule may count on it: what it needs is not there, and somebody might bring it. */
static bool is_incomplete(const struct prune_plan *p, size_t i)
{
	return p->links[i].readable && !store_links_is_complete(p->links, i);
}

/* Before this one all stay: of what cannot be read nobody knows what it needs. */
static size_t first_free(const struct prune_plan *p)
{
	size_t i = p->images.nr;

	while (i && p->links[i - 1].readable)
		i--;
	return i;
}

static bool is_unfit(const struct prune_rules *rules, const char *id)
{
	for (size_t i = 0; i < rules->nr_unfit; i++)
		if (!strcmp(rules->unfit[i], id))
			return true;
	return false;
}

static void mark_pinned(struct prune_plan *p, const struct prune_rules *rules)
{
	size_t free = first_free(p);

	for (size_t i = 0; i < p->images.nr; i++) {
		p->unfit[i] = is_unfit(rules, p->images.image[i].id);
		p->pinned[i] =
			i < free || !p->links[i].readable || is_incomplete(p, i) || p->unfit[i];
	}
	store_links_close(p->links, p->pinned, p->images.nr);
}

/* Those that need what no rule wants and could go; and then those that need these, for a merged
 * image is another one. */
static void mark_must(struct prune_plan *p)
{
	bool more = true;

	for (size_t i = 0; i < p->images.nr; i++)
		p->must[i] = false;
	while (more) {
		more = false;
		for (size_t i = 0; i < p->images.nr; i++)
			for (size_t k = 0;
			     p->why[i] && !p->pinned[i] && !p->must[i] && k < p->links[i].nr_needs;
			     k++) {
				size_t need = p->links[i].needs[k];

				if (!p->pinned[need] && (!p->why[need] || p->must[need]))
					p->must[i] = more = true;
			}
	}
}

static bool is_any(const struct prune_plan *p, const bool *marked, const size_t *at, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (marked[p->links[at[i]].first_version])
			return true;
	return false;
}

/* Whether both have pages in common: the image refers to that one, to what that refers to, or to
 * what that was merged of, in whatever version. Where a run was killed there may be none of these
 * left: then it is enough that it was taken after the first of those, of the same process. */
static bool is_related(const struct prune_plan *p, const bool *needed, size_t image, size_t other)
{
	const struct store_link *l = &p->links[image], *o = &p->links[other];

	return needed[o->first_version] || is_any(p, needed, o->needs, o->nr_needs) ||
	       is_any(p, needed, o->from, o->nr_from) ||
	       (l->nr_needs && *l->run && !strcmp(l->run, o->run) &&
		p->images.image[l->needs[0]].t0_ms <= p->images.image[other].t0_ms);
}

/* The last one before it that a rule keeps as well and that has pages in common with it, or -1. */
static long choose_parent(const struct prune_plan *p, size_t image)
{
	const struct store_link *l = &p->links[image];
	bool *needed = p->scratch;
	long parent = -1;

	for (size_t k = 0; k < l->nr_needs; k++)
		needed[p->links[l->needs[k]].first_version] = true;
	for (size_t i = image; i-- > 0 && parent < 0;)
		if (p->why[i] && p->images.image[i].t0_ms < p->images.image[image].t0_ms &&
		    store_links_is_complete(p->links, i) && !p->unfit[i] &&
		    is_related(p, needed, image, i))
			parent = (long)i;
	for (size_t k = 0; k < l->nr_needs; k++)
		needed[p->links[l->needs[k]].first_version] = false;
	return parent;
}

/* What a merged image takes: about what it has itself and what it uses of others, but for what its
 * parent has as well: that is what was there when the parent was taken. */
static uint64_t guess_bytes(const struct prune_plan *p, size_t image)
{
	const struct store_link *l = &p->links[image];
	long parent = choose_parent(p, image);
	uint64_t bytes = p->images.image[image].bytes;

	for (size_t k = 0; k < l->nr_needs && l->need_bytes; k++)
		if (parent < 0 ||
		    p->images.image[l->needs[k]].t0_ms > p->images.image[parent].t0_ms)
			bytes += l->need_bytes[k];
	return bytes;
}

static uint64_t kept_bytes(const struct prune_plan *p)
{
	uint64_t total = 0;

	for (size_t i = 0; i < p->images.nr; i++)
		total += p->keep[i] ? p->images.image[i].bytes : 0;
	return total;
}

/* Whether something is to be merged, now that it is known what rules keep. What a run has begun
 * that was killed is brought to its end. */
static bool is_merge_due(const struct prune_plan *p, const struct prune_rules *rules)
{
	size_t held = 0;
	bool begun = false;

	for (size_t i = 0; i < p->images.nr; i++) {
		bool is_held = p->keep[i] && !p->why[i] && !p->pinned[i];

		held += is_held;
		begun |= is_held && p->links[i].replaced;
	}
	return held && (begun || held > rules->spare ||
			(rules->keep.max_bytes && kept_bytes(p) > rules->keep.max_bytes));
}

/* What stays now, and what in the end. */
static void close_over(struct prune_plan *p, const struct prune_rules *rules)
{
	/* What cannot be read is no good as the one of its day. It is not removed behind
	 * anybody's back either. */
	for (size_t i = 0; i < p->images.nr; i++)
		p->keep[i] = p->why[i] || p->pinned[i];
	store_links_close(p->links, p->keep, p->images.nr);
	mark_must(p);
	if (!is_merge_due(p, rules))
		memset(p->must, 0, p->images.nr * sizeof(*p->must));
	p->merge = p->parent = -1;
	p->bytes_after = p->held = p->mergeable = 0;
	for (size_t i = 0; i < p->images.nr; i++)
		if (p->must[i] && p->merge < 0)
			p->merge = (long)i;
	for (size_t i = 0; i < p->images.nr; i++) {
		p->stays[i] = p->merge < 0 ? p->keep[i] : p->why[i] || p->pinned[i];
		p->held +=
			p->stays[i] && !p->why[i] && p->links[i].readable && !is_incomplete(p, i);
		p->mergeable += p->stays[i] && !p->why[i] && !p->pinned[i];
		if (p->stays[i])
			p->bytes_after += p->must[i] ? guess_bytes(p, i) : p->images.image[i].bytes;
	}
	if (p->merge >= 0)
		p->parent = choose_parent(p, (size_t)p->merge);
}

/* Of those that rules keep the oldest are given up, so many; never the newest, nor the newest of those that
 * are not from the future. */
static void give_up(struct prune_plan *p, const struct prune_rules *rules, const unsigned *why,
		    size_t nr)
{
	size_t last = p->images.nr, past;

	while (last && !why[last - 1])
		last--;
	for (past = last; past && (!why[past - 1] || p->images.image[past - 1].t0_ms > p->now_ms);)
		past--;
	for (size_t i = 0; i < p->images.nr; i++) {
		bool gives = nr && why[i] && i + 1 < last && i + 1 != past;

		p->why[i] = gives ? 0 : why[i];
		nr -= gives;
	}
	close_over(p, rules);
}

/* What is kept for others counts as well: as few go as it takes, merged where that helps. The fewer
 * stay by a rule, the less all take. */
static void fit_into(struct prune_plan *p, const struct prune_rules *rules, const unsigned *why,
		     uint64_t max_bytes)
{
	size_t a = 0, b = p->images.nr;

	while (a < b) {
		size_t m = a + (b - a) / 2;

		give_up(p, rules, why, m);
		if (p->bytes_after > max_bytes)
			a = m + 1;
		else
			b = m;
	}
	give_up(p, rules, why, a);
}

static uint64_t pinned_bytes(const struct prune_plan *p)
{
	uint64_t total = 0;

	for (size_t i = 0; i < p->images.nr; i++)
		total += p->pinned[i] ? p->images.image[i].bytes : 0;
	return total;
}

/* Where what cannot go is too much by itself, nothing that goes helps. The rest is then held to the
 * limit, so that it does not grow without end, and no sound image goes for a damaged one. */
static int fit(struct prune_plan *p, const struct prune_rules *rules)
{
	const uint64_t max = rules->keep.max_bytes, pinned = pinned_bytes(p);
	cleanup_free unsigned *why = calloc(p->images.nr + 1, sizeof(*why));

	if (!why)
		return -ENOMEM;
	for (size_t i = 0; i < p->images.nr; i++)
		why[i] = p->why[i];
	fit_into(p, rules, why, max);
	if (p->bytes_after > max && pinned)
		fit_into(p, rules, why, max > UINT64_MAX - pinned ? UINT64_MAX : max + pinned);
	return 0;
}

/* For the rules. One that was merged is there twice when that run was killed: once is enough. */
static bool may_count(const struct prune_plan *p, size_t i)
{
	return store_links_is_complete(p->links, i) && !p->links[i].replaced;
}

static int judge(struct prune_plan *p, const struct prune_rules *rules)
{
	struct retention_item *items = calloc(p->images.nr + 1, sizeof(*items));
	struct retention keep = rules->keep;
	size_t n = 0, k = 0;
	int r = 0;

	if (!items)
		return -ENOMEM;
	for (size_t i = 0; i < p->images.nr; i++)
		if (may_count(p, i))
			items[n++] = (struct retention_item){.t0_ms = p->images.image[i].t0_ms,
							     .bytes = p->images.image[i].bytes};
	if (rules->keep.now_ms)
		keep.now_ms = p->now_ms = store_time_ms(&p->images, rules->keep.now_ms);
	retention_apply(&keep, items, n);
	for (size_t i = 0; i < p->images.nr; i++)
		if (may_count(p, i))
			p->why[i] = items[k++].keep;
	for (size_t i = 0; i < p->images.nr; i++)
		if (p->images.image[i].t0_ms < rules->since_ms)
			p->why[i] = 0;
	free(items);
	mark_pinned(p, rules);
	close_over(p, rules);
	if (rules->keep.max_bytes)
		r = fit(p, rules);
	for (size_t i = 0; i < p->images.nr; i++)
		p->remove[i] = !p->keep[i];
	return r;
}

int prune_plan_make(struct prune_plan *p, struct store *s, const char *name,
		    const struct prune_rules *rules, struct usnap_err *err)
{
	bool **const marks[] = {&p->pinned, &p->unfit, &p->keep,   &p->remove,
				&p->must,   &p->stays, &p->scratch};
	int r;

	*p = (struct prune_plan){.merge = -1, .parent = -1, .now_ms = UINT64_MAX};
	if ((r = store_scan(s, name, &p->images, err)) < 0 ||
	    (r = store_links_load(s, name, &p->images, &p->links, err)) < 0)
		return r;
	r = store_links_load_sizes(s, name, &p->images, p->links);
	if (!(p->why = calloc(p->images.nr + 1, sizeof(*p->why))))
		r = -ENOMEM;
	for (size_t i = 0; i < ARRAY_SIZE(marks); i++)
		if (!(*marks[i] = calloc(p->images.nr + 1, sizeof(**marks[i]))))
			r = -ENOMEM;
	if (r == 0)
		r = judge(p, rules);
	return r < 0 ? usnap_fail_errno(err, r, "cannot prune '%s'", name) : 0;
}

void prune_plan_free(struct prune_plan *p)
{
	store_links_free(p->links, p->images.nr);
	store_images_free(&p->images);
	free(p->why);
	free(p->pinned);
	free(p->unfit);
	free(p->keep);
	free(p->remove);
	free(p->must);
	free(p->stays);
	free(p->scratch);
	*p = (struct prune_plan){.merge = -1, .parent = -1};
}
