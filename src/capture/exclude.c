/*
 * What the program has said its images need not hold (usnap_exclude()).
 *
 * DESIGN. The agent's block has the ranges. They are read at T0, while every
 * thread stands still, so that they say what the program meant at that
 * instant. Their pages are taken out of the set of pages then: nobody copies
 * them, a first write to one goes through at once, and to discard one loses
 * nothing. They are zero in the image.
 *
 * The list comes from the target: a wrong entry is no entry.
 */
#include <errno.h>

#include "capture/session.h"
#include "common/util.h"
#include "process/agent_find.h"

/* Nothing is mapped above; with five levels of page tables. */
#define TOP (UINT64_C(1) << 56)

int exclude_read(struct capture *c)
{
	struct agent_found agent;

	c->excluded.n = 0;
	if (!agent_find(c->target->pid, &c->maps, &agent) ||
	    agent.block.nr_excludes > AGENT_EXCLUDES)
		return 0;
	for (uint32_t i = 0; i < agent.block.nr_excludes; i++) {
		const struct agent_range *e = &agent.block.excludes[i];

		/* A place that is not in use, or is being filled. */
		if (e->start >= e->end || (e->start | e->end) % PAGE_BYTES || e->end > TOP)
			continue;
		if (ranges_add(&c->excluded, e->start, e->end) < 0)
			return -ENOMEM;
	}
	ranges_merge(&c->excluded, 0);
	return 0;
}

void exclude_pages(struct capture *c)
{
	/* Keys are addresses at T0. */
	for (size_t i = 0; i < c->excluded.n; i++)
		pageset_exclude(c->pages, c->excluded.r[i].start,
				(c->excluded.r[i].end - c->excluded.r[i].start) >> PAGE_SHIFT);
}

bool exclude_next(const struct capture *c, uint64_t at, uint64_t end, struct range *ret,
		  bool *ret_excluded)
{
	size_t i = 0;

	if (at >= end)
		return false;
	while (i < c->excluded.n && c->excluded.r[i].end <= at)
		i++;
	*ret_excluded = i < c->excluded.n && c->excluded.r[i].start <= at;
	*ret = (struct range){at, end};
	if (*ret_excluded)
		ret->end = MIN(end, c->excluded.r[i].end);
	else if (i < c->excluded.n)
		ret->end = MIN(end, c->excluded.r[i].start);
	return true;
}

uint64_t exclude_reach(const struct capture *c, uint64_t key)
{
	struct range part;
	bool excluded;

	/* They are few. */
	return exclude_next(c, key, UINT64_MAX, &part, &excluded) && excluded ? part.end - key : 0;
}

json_t *exclude_json(const struct capture *c)
{
	json_t *list = json_array();

	for (size_t i = 0; i < c->excluded.n; i++) {
		char start[24], end[24];

		snprintf(start, sizeof(start), "0x%llx",
			 (unsigned long long)c->excluded.r[i].start);
		snprintf(end, sizeof(end), "0x%llx", (unsigned long long)c->excluded.r[i].end);
		json_array_append_new(list, json_pack("[s,s]", start, end));
	}
	return list;
}
