#include "cli/prune_plan.h"

#include <errno.h>
#include <stdlib.h>

#include "common/util.h"

/* How many images that a rule keeps need each. */
static void count_needed(const struct prune_plan *p, size_t *by)
{
	for (size_t i = 0; i < p->images.nr; i++)
		for (size_t k = 0; p->why[i] && k < p->links[i].nr_needs; k++)
			by[p->links[i].needs[k]]++;
}

/* Whatever it refers to is kept for it alone, and there is such. */
static bool saves_room(const struct prune_plan *p, size_t image, const size_t *by)
{
	const struct store_link *l = &p->links[image];
	bool any = false;

	for (size_t i = 0; i < l->nr_needs; i++) {
		if (p->why[l->needs[i]] || !p->links[l->needs[i]].readable)
			continue;
		if (by[l->needs[i]] > 1)
			return false;
		any = true;
	}
	return any;
}

/* Those that cannot stay as they are when nothing stays but what the rules want. */
static void mark_strict(const struct prune_plan *p, bool *must)
{
	bool more = true;

	while (more) {
		more = false;
		for (size_t i = 0; i < p->images.nr; i++)
			for (size_t k = 0; p->why[i] && !must[i] && k < p->links[i].nr_needs; k++) {
				size_t need = p->links[i].needs[k];

				if (p->why[need] ? !must[need] : !p->links[need].readable)
					continue;
				must[i] = more = true;
			}
	}
}

/* One that nobody else needs, so that the merged one can take its place at once. */
static long choose_merge(const struct prune_plan *p, const bool *must, bool strict,
			 const size_t *by)
{
	for (size_t i = p->images.nr; i-- > 0;) {
		const struct store_link *l = &p->links[i];

		if (!p->why[i] || l->nr_missing || by[i])
			continue;
		if (strict ? must[i] : i + 1 < p->images.nr && saves_room(p, i, by))
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
		p->keep[i] = p->why[i] || !p->links[i].readable;
	p->held = store_links_close(p->links, p->keep, p->images.nr);
}

/* What is kept for others counts as well: the oldest go until all of it fits. */
static void fit(struct prune_plan *p, uint64_t max_bytes)
{
	for (size_t i = 0; i + 1 < p->images.nr && kept_bytes(p) > max_bytes; i++) {
		if (!p->why[i])
			continue;
		p->why[i] = 0;
		close_over(p);
	}
}

static int judge(struct prune_plan *p, const struct retention *rules)
{
	struct retention_item *items = calloc(p->images.nr + 1, sizeof(*items));
	size_t n = 0, k = 0;

	if (!items)
		return -ENOMEM;
	for (size_t i = 0; i < p->images.nr; i++)
		if (p->links[i].readable)
			items[n++] = (struct retention_item){.t0_ms = p->images.image[i].t0_ms,
							     .bytes = p->images.image[i].bytes};
	retention_apply(rules, items, n);
	for (size_t i = 0; i < p->images.nr; i++)
		if (p->links[i].readable)
			p->why[i] = items[k++].keep;
	free(items);
	close_over(p);
	if (rules->max_bytes)
		fit(p, rules->max_bytes);
	for (size_t i = 0; i < p->images.nr; i++)
		p->remove[i] = !p->keep[i];
	return 0;
}

int prune_plan_make(struct prune_plan *p, struct store *s, const char *name,
		    const struct retention *rules, bool strict, struct usnap_err *err)
{
	cleanup_free bool *must = NULL;
	cleanup_free size_t *by = NULL;
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
	r = p->why && p->keep && p->remove && must && by ? judge(p, rules) : -ENOMEM;
	if (r < 0) {
		usnap_fail_errno(err, r, "cannot prune '%s'", name);
	} else {
		if (strict)
			mark_strict(p, must);
		count_needed(p, by);
		p->merge = choose_merge(p, must, strict, by);
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
