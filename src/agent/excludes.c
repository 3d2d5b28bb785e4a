#include "agent/excludes.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

static void store(uint64_t *to, uint64_t value)
{
	__atomic_store_n(to, value, __ATOMIC_RELEASE);
}

static bool in_use(const struct agent_range *e)
{
	return e->start < e->end;
}

static void forget(struct agent_range *e)
{
	store(&e->end, 0);
}

/* A place that is not in use, or NULL. */
static struct agent_range *find_room(struct agent_control *c)
{
	for (uint32_t i = 0; i < c->nr_excludes; i++)
		if (!in_use(&c->excludes[i]))
			return &c->excludes[i];
	return c->nr_excludes < AGENT_EXCLUDES ? &c->excludes[c->nr_excludes] : NULL;
}

static void put(struct agent_control *c, struct agent_range *e, uint64_t start, uint64_t end)
{
	forget(e);
	store(&e->start, start);
	store(&e->end, end);
	if (e == &c->excludes[c->nr_excludes])
		__atomic_store_n(&c->nr_excludes, c->nr_excludes + 1, __ATOMIC_RELEASE);
}

int excludes_add(struct agent_control *c, uint64_t start, uint64_t end)
{
	struct agent_range *grown = NULL;

	/* One that overlaps or touches grows, and takes in the others that do. */
	for (uint32_t i = 0; i < c->nr_excludes && !grown; i++) {
		struct agent_range *e = &c->excludes[i];

		if (in_use(e) && e->start <= end && start <= e->end)
			grown = e;
	}
	if (!grown) {
		struct agent_range *e = find_room(c);

		if (!e)
			return -ENOSPC;
		put(c, e, start, end);
		return 0;
	}
	if (start < grown->start)
		store(&grown->start, start);
	if (end > grown->end)
		store(&grown->end, end);
	for (bool again = true; again;) {
		again = false;
		for (uint32_t i = 0; i < c->nr_excludes; i++) {
			struct agent_range *e = &c->excludes[i];

			if (e == grown || !in_use(e) || e->start > grown->end ||
			    grown->start > e->end)
				continue;
			if (e->start < grown->start)
				store(&grown->start, e->start);
			if (e->end > grown->end)
				store(&grown->end, e->end);
			forget(e);
			again = true;
		}
	}
	return 0;
}

int excludes_remove(struct agent_control *c, uint64_t start, uint64_t end)
{
	/* Entries do not overlap: one at most has to become two. */
	for (uint32_t i = 0; i < c->nr_excludes; i++) {
		struct agent_range *e = &c->excludes[i], *rest;

		if (!in_use(e) || start <= e->start || e->end <= end)
			continue;
		rest = find_room(c);
		if (!rest)
			return -ENOSPC;
		put(c, rest, end, e->end);
		store(&e->end, start);
		return 0;
	}
	for (uint32_t i = 0; i < c->nr_excludes; i++) {
		struct agent_range *e = &c->excludes[i];

		if (!in_use(e) || e->end <= start || end <= e->start)
			continue;
		if (start <= e->start && e->end <= end)
			forget(e);
		else if (start <= e->start)
			store(&e->start, end);
		else
			store(&e->end, start);
	}
	return 0;
}
