#include "capture/segmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"

/* Index of the first segment that ends after addr. */
static size_t lower(const struct segmap *m, uint64_t addr)
{
	size_t lo = 0, hi = m->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		if (m->s[mid].end <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct segment *segmap_first(const struct segmap *m, uint64_t addr)
{
	size_t i = lower(m, addr);

	return i < m->n ? &m->s[i] : NULL;
}

struct segment *segmap_find(const struct segmap *m, uint64_t addr)
{
	struct segment *s = segmap_first(m, addr);

	return s && s->start <= addr ? s : NULL;
}

uint64_t segmap_address(const struct segmap *m, uint64_t key, uint64_t *ret_len)
{
	/* Most pages lie where they were. */
	const struct segment *s = segmap_find(m, key);

	if (!s || key - s->key >= s->end - s->start) {
		s = NULL;
		for (size_t i = 0; i < m->n && !s; i++)
			if (key - m->s[i].key < m->s[i].end - m->s[i].start)
				s = &m->s[i];
		if (!s)
			return 0;
	}
	uint64_t addr = s->start + (key - s->key);
	*ret_len = s->end - addr;
	return addr;
}

static int insert(struct segmap *m, size_t i, struct segment s)
{
	if (m->n == m->room) {
		size_t room = m->room ? m->room * 2 : 64;
		struct segment *bigger = realloc(m->s, room * sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		m->s = bigger;
		m->room = room;
	}
	if (i < m->n)
		memmove(&m->s[i + 1], &m->s[i], (m->n - i) * sizeof(s));
	m->s[i] = s;
	m->n++;
	return 0;
}

int segmap_cut(struct segmap *m, uint64_t start, uint64_t end)
{
	size_t i = lower(m, start);

	if (i < m->n && m->s[i].start < start) {
		struct segment tail = m->s[i];

		m->s[i].end = start;
		if (tail.end > end) {
			tail.key += end - tail.start;
			tail.start = end;
			return insert(m, i + 1, tail);
		}
		i++;
	}
	size_t j = i;
	while (j < m->n && m->s[j].end <= end)
		j++;
	if (j < m->n && m->s[j].start < end) {
		m->s[j].key += end - m->s[j].start;
		m->s[j].start = end;
	}
	if (j < m->n)
		memmove(&m->s[i], &m->s[j], (m->n - j) * sizeof(m->s[0]));
	m->n -= j - i;
	return 0;
}

int segmap_add(struct segmap *m, struct segment s)
{
	if (s.start >= s.end)
		return 0;
	int r = segmap_cut(m, s.start, s.end);
	if (r < 0)
		return r;
	size_t i = lower(m, s.start);
	/* Grow a neighbour that goes on in the same way. */
	if (i > 0 && m->s[i - 1].end == s.start && m->s[i - 1].unit == s.unit &&
	    m->s[i - 1].key + (m->s[i - 1].end - m->s[i - 1].start) == s.key) {
		m->s[i - 1].end = s.end;
		return 0;
	}
	return insert(m, i, s);
}

int segmap_move(struct segmap *m, uint64_t from, uint64_t to, uint64_t len)
{
	cleanup_free struct segment *moved = NULL;
	size_t n = 0;
	int r = 0;

	for (size_t i = lower(m, from); i < m->n && m->s[i].start < from + len; i++) {
		struct segment s = m->s[i];
		struct segment *bigger = realloc(moved, (n + 1) * sizeof(*moved));

		if (!bigger)
			return -ENOMEM;
		moved = bigger;
		if (s.start < from) {
			s.key += from - s.start;
			s.start = from;
		}
		s.end = MIN(s.end, from + len);
		s.start = s.start - from + to;
		s.end = s.end - from + to;
		moved[n++] = s;
	}
	r = segmap_cut(m, from, from + len);
	if (r == 0)
		r = segmap_cut(m, to, to + len);
	for (size_t i = 0; i < n && r == 0; i++)
		r = segmap_add(m, moved[i]);
	return r;
}

void segmap_clear(struct segmap *m)
{
	free(m->s);
	*m = (struct segmap){0};
}
