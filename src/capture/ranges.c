#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "capture/session.h"
#include "common/util.h"

int ranges_add(struct ranges *rs, uint64_t start, uint64_t end)
{
	if (rs->n && rs->r[rs->n - 1].end == start) {
		rs->r[rs->n - 1].end = end;
		return 0;
	}
	if (rs->n == rs->room) {
		size_t room = rs->room ? rs->room * 2 : 256;
		struct range *bigger = realloc(rs->r, room * sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		rs->r = bigger;
		rs->room = room;
	}
	rs->r[rs->n++] = (struct range){start, end};
	return 0;
}

static int by_start(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	return (x->start > y->start) - (x->start < y->start);
}

void ranges_merge(struct ranges *rs, uint64_t gap)
{
	size_t n = 0;

	if (rs->n < 2)
		return;
	qsort(rs->r, rs->n, sizeof(rs->r[0]), by_start);
	for (size_t i = 1; i < rs->n; i++) {
		if (rs->r[i].start <= rs->r[n].end || rs->r[i].start - rs->r[n].end <= gap)
			rs->r[n].end = MAX(rs->r[n].end, rs->r[i].end);
		else
			rs->r[++n] = rs->r[i];
	}
	rs->n = n + 1;
}

uint64_t ranges_bytes(const struct ranges *rs)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < rs->n; i++)
		bytes += rs->r[i].end - rs->r[i].start;
	return bytes;
}

void ranges_free(struct ranges *rs)
{
	free(rs->r);
	*rs = (struct ranges){0};
}
