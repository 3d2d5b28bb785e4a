/*
 * What a cutwork process keeps in its memory, as a checker finds it.
 *
 * A lane belongs to one thread at a time. Its owner writes the numbers 1, 2,
 * 3 ... in program order; number n goes to slot f(n) = n * mul mod nr_slots,
 * mul odd, so that nr_slots numbers visit every slot once, in an order that
 * jumps over the whole lane. A consistent image therefore holds, for one N
 * per lane, in every slot exactly the largest n <= N with f(n) = slot.
 *
 * After the slot, number n is stored to four counters, in this order: .data
 * (a private file mapping), .bss, a page of shared memory, and pub (private
 * anonymous). Each is behind its predecessor by at most one batch.
 *
 * A slot also says what its number was derived from: `from` names another
 * lane and a number which that lane had handed over (by release and acquire,
 * through a pipe, or under a futex lock) before. That lane's N must not be
 * smaller.
 *
 * Every number is in host order: the checker runs on the same machine.
 */
#ifndef TESTS_CUT_H
#define TESTS_CUT_H

#include <stdint.h>

enum {
	CUT_VERSION = 1,
	CUT_MAX_LANES = 48,
	CUT_MAX_STATICS = 32,
	CUT_PAGE = 4096,
};

#define CUT_MAGIC 0x315655434b524f57ull /* "WORKCUV1" */

struct cut_slot {
	uint64_t n; /* 0: never written */
	uint64_t from; /* (lane + 1) << 56 | number; 0: nothing */
};

enum cut_lane_kind {
	CUT_LANE_CPU, /* stores */
	CUT_LANE_KERNEL, /* read(2) and pread(2) into the slots */
	CUT_LANE_TOUCH, /* pages that appear over time */
};

struct cut_lane {
	uint64_t base; /* slot i lies at base + i * stride ... */
	uint64_t alias; /* ... and, when not 0, at alias + i * stride as well */
	uint64_t table; /* or: in chunk i / chunk_slots, whose address is table[chunk] */
	uint64_t chunk_slots;
	uint64_t nr_slots; /* a power of two */
	uint64_t stride; /* bytes */
	uint64_t mul, inv; /* mul * inv = 1 mod nr_slots */
	uint64_t first; /* nr_slots when every slot was filled at the start, else 0 */
	uint64_t batch; /* the counters follow after so many numbers */
	uint32_t kind;
	uint32_t is_private; /* a fork()ed child may write to its copy */
	char name[24];
};

/* Counters lie 64 bytes apart. */
struct cut_counter {
	uint64_t n;
	uint64_t pad[7];
};

/* Memory whose content never changes. */
struct cut_static {
	uint64_t addr, len; /* whole pages; absent pages hold zero */
	uint64_t seed; /* of cut_pattern(); 0: all zero */
	uint64_t step; /* every step-th page is written, the others are zero */
	char name[32];
};

enum cut_block_state {
	CUT_BLOCK_NONE, /* nothing is promised */
	CUT_BLOCK_BUSY, /* being made or destroyed: nothing is promised */
	CUT_BLOCK_LIVE, /* holds the pattern of its generation */
	CUT_BLOCK_ZERO, /* was discarded: all zero */
	CUT_BLOCK_LAZY, /* MADV_FREE: each page is all zero or holds the pattern */
};

/* One block of memory that is made and discarded over and over. Its owner
 * writes state last, with release. */
struct cut_block {
	uint64_t state;
	uint64_t addr, len;
	uint64_t gen;
	uint64_t op; /* number in the owner's lane; the lane follows after */
	uint64_t kind;
	uint64_t lane;
	uint64_t pad;
};

/* Under a futex lock: check = ~value whenever the lock is free. */
struct cut_mailbox {
	uint32_t lock;
	uint32_t pad;
	uint64_t value;
	uint64_t fill[510];
	uint64_t check; /* on the page after */
};

struct cut_header {
	uint64_t magic;
	uint64_t self; /* address of this header */
	uint32_t version, size;
	uint32_t nr_lanes, nr_statics;
	uint64_t data_counters, bss_counters, shm_counters,
		pub_counters; /* cut_counter[nr_lanes] */
	uint64_t mailbox;
	uint64_t blocks, nr_blocks;
	struct cut_lane lanes[CUT_MAX_LANES];
	struct cut_static statics[CUT_MAX_STATICS];
};

static inline uint64_t cut_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* The word at this index of a block of this generation; never 0. */
static inline uint64_t cut_pattern(uint64_t gen, uint64_t word)
{
	return cut_mix(gen * 0x9e3779b97f4a7c15ull + word) | 1;
}

/* The slot of number n. */
static inline uint64_t cut_slot_of(const struct cut_lane *l, uint64_t n)
{
	return (n * l->mul) & (l->nr_slots - 1);
}

/* What the slot holds when the last number written is last; 0: nothing. */
static inline uint64_t cut_expect(const struct cut_lane *l, uint64_t slot, uint64_t last)
{
	uint64_t r = (slot * l->inv) & (l->nr_slots - 1); /* n mod nr_slots */
	uint64_t behind = (last - r) & (l->nr_slots - 1);

	return behind >= last ? 0 : last - behind;
}

static inline uint64_t cut_from(unsigned lane, uint64_t n)
{
	return (uint64_t)(lane + 1) << 56 | n;
}

#endif
