/*
 * Memory that is discarded at hundreds a second in every way a program has,
 * each block's content known at any instant from a table (struct cut_block)
 * that its owner keeps in program order in memory which is never discarded.
 *
 * Threads: each owns its blocks and one lane; operation number n is in the
 * table before number n is in the lane.
 */
#ifndef TESTS_CUTWORK_DISCARD_H
#define TESTS_CUTWORK_DISCARD_H

#include "cutwork-lanes.h"

enum discard_kind {
	DISCARD_MALLOC,
	DISCARD_MUNMAP,
	DISCARD_MREMAP,
	DISCARD_DONTNEED,
	DISCARD_FREE,
	DISCARD_FIXED,
	DISCARD_BRK,
	DISCARD_REMOVE,
	DISCARD_PUNCH,
	DISCARD_TRUNCATE,
	DISCARD_NR,
};

static const char *const discard_names[DISCARD_NR] = {
	[DISCARD_MALLOC] = "malloc",	 [DISCARD_MUNMAP] = "munmap", [DISCARD_MREMAP] = "mremap",
	[DISCARD_DONTNEED] = "dontneed", [DISCARD_FREE] = "free",     [DISCARD_FIXED] = "fixed",
	[DISCARD_BRK] = "brk",		 [DISCARD_REMOVE] = "remove", [DISCARD_PUNCH] = "punch",
	[DISCARD_TRUNCATE] = "truncate",
};

enum {
	DISCARD_MAX_THREADS = 4,
	DISCARD_BLOCKS = 48,
	DISCARD_MIN_PAGES = 16,
	DISCARD_MAX_PAGES = 128
};

/* What only the owner needs to know of a block. */
struct discard_own {
	void *mem; /* what free() or munmap() takes */
	int fd; /* shared memory */
};

struct discarder {
	struct lane_run *run;
	struct cut_block *blocks;
	struct discard_own own[DISCARD_BLOCKS];
	unsigned nr_blocks, rate;
	uint64_t seed, gen;
};

static struct discarder discarders[DISCARD_MAX_THREADS];

static uint64_t discard_random(struct discarder *d)
{
	return cut_mix(d->seed += 0x9e3779b97f4a7c15ull);
}

static void block_state(struct cut_block *b, enum cut_block_state s)
{
	__atomic_store_n(&b->state, s, __ATOMIC_RELEASE);
}

static void block_fill(struct cut_block *b, uint64_t from, uint64_t len)
{
	volatile uint64_t *w = (volatile uint64_t *)b->addr;

	for (uint64_t i = from / 8; i < (from + len) / 8; i++)
		w[i] = cut_pattern(b->gen, i);
}

/* A sample: every 61st word; that of a lazy page may be zero. */
static void block_check(const struct cut_block *b)
{
	const volatile uint64_t *w = (const volatile uint64_t *)b->addr;

	for (uint64_t i = 0; i < b->len / 8; i += 61) {
		uint64_t have = w[i], want = cut_pattern(b->gen, i);

		if (b->state == CUT_BLOCK_ZERO)
			want = 0;
		if (have == want || (b->state == CUT_BLOCK_LAZY && !have))
			continue;
		violation("block of kind %s, generation %llu: word %llu at %p holds 0x%llx, not "
			  "0x%llx",
			  discard_names[b->kind], (unsigned long long)b->gen, (unsigned long long)i,
			  (const void *)(w + i), (unsigned long long)have,
			  (unsigned long long)want);
		return;
	}
}

static void *block_map(struct discarder *d, struct cut_block *b, struct discard_own *o)
{
	const int prot = PROT_READ | PROT_WRITE, anon = MAP_PRIVATE | MAP_ANONYMOUS;
	void *p;

	switch (b->kind) {
	case DISCARD_MALLOC:
		o->mem = malloc(b->len + CUT_PAGE);
		return (void *)(((uint64_t)o->mem + CUT_PAGE - 1) & ~(uint64_t)(CUT_PAGE - 1));
	case DISCARD_BRK:
		p = grow_brk(b->len + CUT_PAGE);
		o->mem = p;
		return (void *)(((uint64_t)p + CUT_PAGE - 1) & ~(uint64_t)(CUT_PAGE - 1));
	case DISCARD_REMOVE:
	case DISCARD_PUNCH:
	case DISCARD_TRUNCATE:
		if (ftruncate(o->fd, (off_t)b->len))
			fatal("make shared memory");
		return map_memory(b->len, prot, MAP_SHARED, o->fd);
	default:
		return map_memory(b->len, prot, anon, -1);
	}
}

static void block_make(struct discarder *d, struct cut_block *b, struct discard_own *o)
{
	uint64_t pages =
		DISCARD_MIN_PAGES + discard_random(d) % (DISCARD_MAX_PAGES - DISCARD_MIN_PAGES);

	block_state(b, CUT_BLOCK_BUSY);
	b->len = pages * CUT_PAGE;
	b->gen = ++d->gen;
	b->addr = (uint64_t)(uintptr_t)block_map(d, b, o);
	block_fill(b, 0, b->len);
	block_state(b, CUT_BLOCK_LIVE);
}

static void block_refill(struct discarder *d, struct cut_block *b)
{
	block_check(b);
	block_state(b, CUT_BLOCK_BUSY);
	b->gen = ++d->gen;
	block_fill(b, 0, b->len);
	block_state(b, CUT_BLOCK_LIVE);
}

/* mremap: moved, moved and grown, moved away from under itself, shrunk. */
static void block_remap(struct discarder *d, struct cut_block *b)
{
	uint64_t way = discard_random(d) % 4, len = b->len;
	int flags = MREMAP_MAYMOVE;
	void *from = (void *)b->addr, *to = NULL;

	block_state(b, CUT_BLOCK_BUSY);
	if (way == 0) {
		len = len / 2 & ~(uint64_t)(CUT_PAGE - 1);
	} else if (way == 1) {
		len *= 2;
	} else if (way == 2) {
		to = map_memory(len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
		flags |= MREMAP_FIXED;
	} else {
		flags |= MREMAP_DONTUNMAP;
	}
	to = mremap(from, b->len, len, flags, to);
	if (to == MAP_FAILED) {
		violation("mremap: %s", strerror(errno));
		return;
	}
	if (way == 3 && munmap(from, b->len))
		violation("munmap: %s", strerror(errno));
	b->addr = (uint64_t)(uintptr_t)to;
	if (len > b->len)
		block_fill(b, b->len, len - b->len);
	b->len = len;
	block_state(b, CUT_BLOCK_LIVE);
}

/* Gives the block's pages back and says how it reads then. */
static enum cut_block_state block_discard(struct discarder *d, struct cut_block *b,
					  struct discard_own *o)
{
	void *p = (void *)b->addr;
	uint64_t half;
	int r = 0;
	enum cut_block_state after = CUT_BLOCK_ZERO;

	switch (b->kind) {
	case DISCARD_MALLOC:
		free(o->mem);
		return CUT_BLOCK_NONE;
	case DISCARD_BRK:
		r = shrink_brk(o->mem, b->len + CUT_PAGE);
		after = CUT_BLOCK_NONE;
		break;
	case DISCARD_MUNMAP:
	case DISCARD_MREMAP:
		/* At once, or its second half first. */
		half = discard_random(d) % 2 ? b->len / 2 / CUT_PAGE * CUT_PAGE : b->len;
		if (half < b->len)
			r = munmap((char *)p + half, b->len - half);
		r |= munmap(p, half);
		after = CUT_BLOCK_NONE;
		break;
	case DISCARD_DONTNEED:
		r = madvise(p, b->len, MADV_DONTNEED);
		break;
	case DISCARD_FREE:
		r = madvise(p, b->len, MADV_FREE);
		after = CUT_BLOCK_LAZY;
		break;
	case DISCARD_FIXED:
		if (mmap(p, b->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			 -1, 0) != p)
			r = -1;
		break;
	case DISCARD_REMOVE:
		r = madvise(p, b->len, MADV_REMOVE);
		break;
	case DISCARD_PUNCH:
		r = fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)b->len);
		break;
	case DISCARD_TRUNCATE:
		r = ftruncate(o->fd, 0);
		r |= ftruncate(o->fd, (off_t)b->len);
		break;
	default:
		break;
	}
	if (r)
		violation("discard by %s: %s", discard_names[b->kind], strerror(errno));
	return after;
}

static void discard_once(struct discarder *d)
{
	uint64_t i = discard_random(d) % d->nr_blocks;
	struct cut_block *b = &d->blocks[i];
	struct discard_own *o = &d->own[i];

	__atomic_store_n(&b->op, d->run->n + 1, __ATOMIC_RELEASE);
	if (b->state == CUT_BLOCK_NONE) {
		block_make(d, b, o);
	} else if (b->state != CUT_BLOCK_LIVE) {
		block_refill(d, b);
	} else {
		block_check(b);
		if (b->kind == DISCARD_MREMAP && b->len > DISCARD_MIN_PAGES * CUT_PAGE &&
		    b->len < 2 * DISCARD_MAX_PAGES * CUT_PAGE) {
			block_remap(d, b);
		} else {
			block_state(b, CUT_BLOCK_BUSY);
			block_state(b, block_discard(d, b, o));
		}
	}
	lane_step(d->run);
}

static void *discard_thread(void *arg)
{
	struct discarder *d = arg;

	while (d->nr_blocks && !stopping()) {
		discard_once(d);
		lane_tick(d->run);
		if (d->rate)
			sleep_ns(1000000000ull / d->rate);
	}
	return NULL;
}

/* kinds: a bit per discard_kind. Makes the lanes and the table; the threads
 * are started by the caller with discard_thread(). */
static void discard_setup(unsigned kinds, unsigned nr_threads, unsigned rate)
{
	struct cut_header *h = work.header;
	unsigned nr = nr_threads * DISCARD_BLOCKS, kind = 0;
	bool brk_used = false;
	struct cut_block *table = map_memory(nr * sizeof(*table), PROT_READ | PROT_WRITE,
					     MAP_PRIVATE | MAP_ANONYMOUS, -1);

	for (unsigned t = 0; t < nr_threads; t++) {
		struct discarder *d = &discarders[t];
		size_t len = 64 * 1024;

		d->run = lane_add(
			"discards", CUT_LANE_CPU,
			map_memory(len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1),
			len, 64, scatter(len, 64));
		d->blocks = table + t * DISCARD_BLOCKS;
		d->nr_blocks = DISCARD_BLOCKS;
		d->rate = rate / nr_threads;
		d->seed = t + 1;
		d->gen = (uint64_t)t << 40;
		for (unsigned i = 0; i < DISCARD_BLOCKS; i++) {
			do
				kind = (kind + 1) % DISCARD_NR;
			while (!(kinds & 1u << kind) ||
			       (kind == DISCARD_BRK && brk_used && kinds != 1u << DISCARD_BRK));
			if (kind == DISCARD_BRK && brk_used) {
				d->nr_blocks = i;
				break;
			}
			brk_used = brk_used || kind == DISCARD_BRK;
			d->blocks[i].kind = kind;
			d->blocks[i].lane = d->run->id;
			/* Now, so that the descriptors of the process stay the same. */
			if (kind >= DISCARD_REMOVE)
				d->own[i].fd = memfd_create("cutwork-block", MFD_CLOEXEC);
		}
	}
	h->blocks = (uint64_t)(uintptr_t)table;
	h->nr_blocks = nr;
}

#endif
