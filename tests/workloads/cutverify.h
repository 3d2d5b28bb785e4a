/*
 * Checks the memory of a cutwork process (cut.h) for one consistent instant.
 * Where the memory comes from is the caller's: an image, another process,
 * this one.
 */
#ifndef TESTS_CUTVERIFY_H
#define TESTS_CUTVERIFY_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cut.h"

struct cut_mem {
	/* Reads len bytes of the process at addr. 0 or negative errno. */
	int (*read)(void *arg, uint64_t addr, void *buf, size_t len);
	void *arg;
};

struct cut_verify {
	const struct cut_mem *mem;
	FILE *out;
	uint64_t nr_errors, nr_checked;
	struct cut_header h;
	uint64_t last[CUT_MAX_LANES]; /* N of each lane */
	uint64_t derived[CUT_MAX_LANES]; /* the largest number any slot derives from */
	uint64_t derived_at[CUT_MAX_LANES]; /* and that slot's address */
	struct cut_counter count[4][CUT_MAX_LANES];
};

__attribute__((format(printf, 2, 3))) static void cut_error(struct cut_verify *v, const char *fmt,
							    ...)
{
	va_list ap;

	if (v->nr_errors++ >= 12)
		return;
	fputs("violation: ", v->out);
	va_start(ap, fmt);
	vfprintf(v->out, fmt, ap);
	va_end(ap);
	fputc('\n', v->out);
}

static bool cut_read(struct cut_verify *v, uint64_t addr, void *buf, size_t len, const char *what)
{
	int r = v->mem->read(v->mem->arg, addr, buf, len);

	if (!r)
		return true;
	cut_error(v, "cannot read %s at 0x%" PRIx64 "+%zu: %s", what, addr, len, strerror(-r));
	return false;
}

/* Address of a slot, 0 when its chunk does not exist. */
static uint64_t cut_slot_addr(struct cut_verify *v, const struct cut_lane *l, uint64_t slot)
{
	uint64_t chunk = 0;

	if (!l->table)
		return l->base + slot * l->stride;
	if (!cut_read(v, l->table + slot / l->chunk_slots * 8, &chunk, 8, "table of chunks") ||
	    !chunk)
		return 0;
	return chunk + slot % l->chunk_slots * l->stride;
}

/* N: at least what .data says, and on as long as numbers follow. */
static uint64_t cut_find_last(struct cut_verify *v, unsigned lane)
{
	const struct cut_lane *l = &v->h.lanes[lane];
	uint64_t n = v->count[0][lane].n;

	for (uint64_t i = 0; i <= l->batch + 4; i++) {
		uint64_t addr = cut_slot_addr(v, l, cut_slot_of(l, n + 1));
		struct cut_slot s;

		if (!addr || !cut_read(v, addr, &s, sizeof(s), l->name) || s.n != n + 1)
			break;
		n++;
	}
	return n;
}

static void cut_check_slot(struct cut_verify *v, unsigned lane, uint64_t slot, uint64_t addr,
			   const struct cut_slot *s)
{
	const struct cut_lane *l = &v->h.lanes[lane];
	uint64_t want = cut_expect(l, slot, v->last[lane]);

	v->nr_checked++;
	if (s->n != want)
		cut_error(v,
			  "lane %u (%s): slot %" PRIu64 " at 0x%" PRIx64 " holds %" PRIu64
			  ", not %" PRIu64 " (N = %" PRIu64 "): %s",
			  lane, l->name, slot, addr, s->n, want, v->last[lane],
			  s->n > v->last[lane] ? "written after N" : "an earlier write is missing");
	if (s->from) {
		unsigned src = (unsigned)(s->from >> 56) - 1;
		uint64_t n = s->from & ((1ull << 56) - 1);

		if (src >= v->h.nr_lanes) {
			cut_error(v, "lane %u (%s): slot at 0x%" PRIx64 " derives from lane %u",
				  lane, l->name, addr, src);
		} else if (n > v->derived[src]) {
			v->derived[src] = n;
			v->derived_at[src] = addr;
		}
	}
}

static void cut_check_range(struct cut_verify *v, unsigned lane, uint64_t base, uint64_t first,
			    uint64_t nr)
{
	const struct cut_lane *l = &v->h.lanes[lane];
	enum {
		STEP = 1 << 20
	};
	static unsigned char buf[STEP];

	/* Far apart: one small read each. Else whole pieces. */
	for (uint64_t i = 0; i < nr;) {
		uint64_t n = l->stride >= CUT_PAGE ? 1 : STEP / l->stride;
		size_t len;

		n = n < nr - i ? n : nr - i;
		len = n == 1 ? sizeof(struct cut_slot) : (size_t)(n * l->stride);
		if (!cut_read(v, base + i * l->stride, buf, len, l->name))
			return;
		for (uint64_t k = 0; k < n; k++) {
			struct cut_slot s;

			memcpy(&s, buf + k * l->stride, sizeof(s));
			cut_check_slot(v, lane, first + i + k, base + (i + k) * l->stride, &s);
		}
		i += n;
	}
}

static void cut_check_lane(struct cut_verify *v, unsigned lane)
{
	const struct cut_lane *l = &v->h.lanes[lane];

	if (!l->table) {
		cut_check_range(v, lane, l->base, 0, l->nr_slots);
		if (l->alias)
			cut_check_range(v, lane, l->alias, 0, l->nr_slots);
		return;
	}
	for (uint64_t c = 0; c < l->nr_slots / l->chunk_slots; c++) {
		uint64_t first = c * l->chunk_slots, addr;

		if (!cut_read(v, l->table + c * 8, &addr, 8, "table of chunks"))
			return;
		if (addr)
			cut_check_range(v, lane, addr, first, l->chunk_slots);
		else if (cut_expect(l, first || l->chunk_slots == 1 ? first : 1, v->last[lane]))
			cut_error(v, "lane %u (%s): chunk %" PRIu64 " is missing, N = %" PRIu64,
				  lane, l->name, c, v->last[lane]);
	}
}

static void cut_check_counters(struct cut_verify *v, unsigned lane)
{
	static const char *const name[] = {"its slots", ".data", ".bss", "shared memory", "pub"};
	const struct cut_lane *l = &v->h.lanes[lane];
	uint64_t before = v->last[lane], lowest;

	lowest = before > l->batch ? before - l->batch : 0;
	if (l->first && lowest < l->first)
		lowest = l->first;
	for (int i = 0; i < 4; i++) {
		uint64_t n = v->count[i][lane].n;

		if (n > before || n < lowest)
			cut_error(v, "lane %u (%s): %s says %" PRIu64 ", but %s %" PRIu64, lane,
				  l->name, name[i + 1], n, name[i], before);
		before = n;
	}
}

static void cut_check_block(struct cut_verify *v, uint64_t i, const struct cut_block *b)
{
	static uint64_t page[CUT_PAGE / 8];
	const uint64_t words = CUT_PAGE / 8;
	uint64_t n = b->lane < v->h.nr_lanes ? v->last[b->lane] : 0;

	if (b->state == CUT_BLOCK_NONE)
		return;
	if (b->op > n + 1)
		cut_error(v,
			  "block %" PRIu64 ": operation %" PRIu64 " before %" PRIu64 " of its lane",
			  i, b->op, n);
	if (b->state == CUT_BLOCK_BUSY)
		return;
	for (uint64_t off = 0; off < b->len; off += CUT_PAGE) {
		bool zero = true, pattern = true;
		uint64_t bad = 0, got = 0;

		if (!cut_read(v, b->addr + off, page, CUT_PAGE, "block"))
			return;
		v->nr_checked++;
		for (uint64_t w = 0; w < words; w++) {
			zero = zero && !page[w];
			if (pattern && page[w] != cut_pattern(b->gen, off / 8 + w)) {
				pattern = false;
				bad = w;
				got = page[w];
			}
		}
		if (b->state == CUT_BLOCK_LIVE	 ? pattern
		    : b->state == CUT_BLOCK_ZERO ? zero
						 : zero || pattern)
			continue;
		cut_error(v,
			  "block %" PRIu64 " (state %" PRIu64 ", kind %" PRIu64
			  ", generation %" PRIu64 "): page 0x%" PRIx64 ", %" PRIu64 " of %" PRIu64
			  ", is %s: word %" PRIu64 " holds 0x%" PRIx64,
			  i, b->state, b->kind, b->gen, b->addr + off, off / CUT_PAGE,
			  b->len / CUT_PAGE, zero ? "zero" : "not its content", bad, got);
		return;
	}
}

static void cut_check_static(struct cut_verify *v, const struct cut_static *s)
{
	static uint64_t page[CUT_PAGE / 8];

	for (uint64_t off = 0; off < s->len; off += CUT_PAGE) {
		bool written = s->seed && off / CUT_PAGE % s->step == 0;

		if (!cut_read(v, s->addr + off, page, CUT_PAGE, s->name))
			return;
		v->nr_checked++;
		for (uint64_t w = 0; w < CUT_PAGE / 8; w++) {
			uint64_t want = written ? cut_pattern(s->seed, off / 8 + w) : 0;

			if (page[w] == want)
				continue;
			cut_error(v, "%s: word at 0x%" PRIx64 " is 0x%" PRIx64 ", not 0x%" PRIx64,
				  s->name, s->addr + off + w * 8, page[w], want);
			return;
		}
	}
}

static void cut_check_mailbox(struct cut_verify *v)
{
	struct cut_mailbox m;

	if (cut_read(v, v->h.mailbox, &m, sizeof(m), "mailbox") && !m.lock && m.value &&
	    m.check != ~m.value)
		cut_error(v, "mailbox is free and holds 0x%" PRIx64 " beside 0x%" PRIx64, m.value,
			  ~m.check);
}

static void cut_check_blocks(struct cut_verify *v)
{
	for (uint64_t i = 0; i < v->h.nr_blocks; i++) {
		struct cut_block b;

		if (!cut_read(v, v->h.blocks + i * sizeof(b), &b, sizeof(b), "table of blocks"))
			return;
		cut_check_block(v, i, &b);
	}
}

/* Returns the number of violations; up to a dozen are described on out. */
static uint64_t cut_verify(const struct cut_mem *mem, uint64_t header, FILE *out, bool verbose)
{
	static struct cut_verify v;
	uint64_t at[4];

	memset(&v, 0, sizeof(v));
	v.mem = mem;
	v.out = out;
	if (!cut_read(&v, header, &v.h, sizeof(v.h), "header"))
		return v.nr_errors;
	if (v.h.magic != CUT_MAGIC || v.h.self != header || v.h.version != CUT_VERSION ||
	    v.h.size != sizeof(v.h) || v.h.nr_lanes > CUT_MAX_LANES ||
	    v.h.nr_statics > CUT_MAX_STATICS) {
		cut_error(&v, "no header at 0x%" PRIx64, header);
		return v.nr_errors;
	}
	at[0] = v.h.data_counters;
	at[1] = v.h.bss_counters;
	at[2] = v.h.shm_counters;
	at[3] = v.h.pub_counters;
	for (int i = 0; i < 4; i++)
		if (!cut_read(&v, at[i], v.count[i], v.h.nr_lanes * sizeof(struct cut_counter),
			      "counters"))
			return v.nr_errors;
	for (unsigned i = 0; i < v.h.nr_lanes; i++) {
		v.last[i] = cut_find_last(&v, i);
		cut_check_counters(&v, i);
	}
	for (unsigned i = 0; i < v.h.nr_lanes; i++)
		cut_check_lane(&v, i);
	for (unsigned i = 0; i < v.h.nr_lanes; i++) {
		if (v.derived[i] > v.last[i])
			cut_error(&v,
				  "lane %u (%s): N = %" PRIu64 ", but the slot at 0x%" PRIx64
				  " derives from its %" PRIu64,
				  i, v.h.lanes[i].name, v.last[i], v.derived_at[i], v.derived[i]);
		if (verbose)
			fprintf(out, "lane %u %s N %" PRIu64 "\n", i, v.h.lanes[i].name, v.last[i]);
	}
	cut_check_mailbox(&v);
	cut_check_blocks(&v);
	for (unsigned i = 0; i < v.h.nr_statics; i++)
		cut_check_static(&v, &v.h.statics[i]);
	if (v.nr_errors > 12)
		fprintf(out, "... %" PRIu64 " violations in all\n", v.nr_errors);
	if (verbose)
		fprintf(out, "checked %" PRIu64 " slots and pages\n", v.nr_checked);
	return v.nr_errors;
}

#endif
