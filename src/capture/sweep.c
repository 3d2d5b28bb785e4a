/*
 * The sweep: copies what nobody has written yet, in the order of addresses.
 *
 * DESIGN. A block is filled like this: take a free block (never while holding
 * claims), note event_seq, claim pages, read them, and take the copy for
 * valid only if
 *   - every page is still there and still protected (PAGEMAP_SCAN),
 *   - no event is pending, and
 *   - event_seq has neither moved nor is odd: no event was read meanwhile.
 * The fault thread makes event_seq odd before it reads and moves it on after
 * it has dealt with events, so a discard that began and ended between our
 * first look and our last is seen by the third, one still under way by the
 * second, and one that raises no event (the kernel knows some) by the first.
 *
 * A copy that is not valid is dropped, its claims are given up and whoever
 * waited on them is woken to fault again; then the pages are looked at anew.
 * Pages still populated but gone from the page tables make the attempt torn.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/util.h"

struct piece {
	uint64_t addr, key;
	unsigned nr_pages;
	struct segment s;
};

struct gather {
	struct block *block;
	struct piece pieces[BLOCK_PAGES];
	unsigned nr_pieces;
	uint64_t next_key; /* where to go on */
	uint64_t seq; /* event_seq when the addresses were right */
};

/* The segment that shows key, with its address. */
static bool locate(struct capture *c, uint64_t key, struct segment *ret_s, uint64_t *ret_addr)
{
	uint64_t len;

	pthread_mutex_lock(&c->map_lock);
	*ret_addr = segmap_address(&c->segments, key, &len);
	if (*ret_addr)
		*ret_s = *segmap_find(&c->segments, *ret_addr);
	pthread_mutex_unlock(&c->map_lock);
	return *ret_addr;
}

/* Claims up to a block's worth of pages from key on. */
static void gather(struct capture *c, struct gather *g, uint64_t key)
{
	uint64_t at;
	struct chunk *ch;

	g->nr_pieces = 0;
	while (g->block->nr_pages < BLOCK_PAGES && (ch = pageset_next(c->pages, key, &at))) {
		struct segment s = {0};
		uint64_t addr = 0;
		unsigned p = key > at ? chunk_page(key) : 0;

		for (; p < CHUNK_PAGES && g->block->nr_pages < BLOCK_PAGES; p++) {
			/* Whole words of nothing are common where memory is sparse. */
			if (p % 64 == 0 && !(atomic_load(&ch->populated[p / 64]) &
					     ~atomic_load(&ch->claimed[p / 64]))) {
				p += 63;
				continue;
			}
			if (!chunk_claim(ch, p))
				continue;
			uint64_t k = at + p * PAGE_BYTES;
			if (s.end && k >= s.key && k - s.key < s.end - s.start) {
				addr = s.start + (k - s.key);
			} else if (!locate(c, k, &s, &addr)) {
				capture_tear(c,
					     "the page at %#llx was unmapped before it was saved",
					     (unsigned long long)k);
				g->next_key = k;
				return;
			}
			struct piece *last = g->nr_pieces ? &g->pieces[g->nr_pieces - 1] : NULL;
			if (last && last->addr + last->nr_pages * PAGE_BYTES == addr &&
			    last->key + last->nr_pages * PAGE_BYTES == k && addr > last->s.start &&
			    addr < last->s.end)
				last->nr_pages++;
			else
				g->pieces[g->nr_pieces++] = (struct piece){addr, k, 1, s};
			block_add(g->block, k, 1);
		}
		key = at + p * PAGE_BYTES;
	}
	g->next_key = key;
}

static int read_pieces(struct capture *c, const struct gather *g)
{
	struct iovec remote[BLOCK_PAGES];

	for (unsigned i = 0; i < g->nr_pieces; i++)
		remote[i] = (struct iovec){(void *)(uintptr_t)g->pieces[i].addr,
					   g->pieces[i].nr_pages * PAGE_BYTES};
	return memory_read_all(c, remote, g->nr_pieces, g->block->data,
			       g->block->nr_pages * PAGE_BYTES, false);
}

/* The reader of events is between two of them: its sequence number. */
static uint64_t settled_seq(const struct capture *c)
{
	uint64_t seq;

	while ((seq = atomic_load(&c->event_seq)) & 1)
		sched_yield();
	return seq;
}

/* Who faulted on a claimed page waits for us: let it fault again. Wherever it is: an mremap() may
 * have moved the page. */
static void wake_all(const struct capture *c)
{
	uffd_wake(c->uffd, MIB(1), ((uint64_t)1 << 47) - MIB(2));
}

static void give_up(struct capture *c, struct gather *g)
{
	for (unsigned i = 0; i < g->nr_pieces; i++) {
		const struct piece *p = &g->pieces[i];

		for (unsigned k = 0; k < p->nr_pages; k++) {
			uint64_t key = p->key + k * PAGE_BYTES;
			struct chunk *ch = pageset_chunk(c->pages, key, false);

			atomic_fetch_and(&ch->claimed[chunk_page(key) / 64],
					 ~((uint64_t)1 << (chunk_page(key) % 64)));
		}
	}
	wake_all(c);
	g->block->nr_pages = g->block->nr_runs = 0;
}

/* Whether all of it is where it was. */
static bool in_place(struct capture *c, const struct piece *p)
{
	const uint64_t last = (p->nr_pages - 1) * PAGE_BYTES;
	struct segment s;
	uint64_t addr;

	return locate(c, p->key, &s, &addr) && addr == p->addr &&
	       locate(c, p->key + last, &s, &addr) && addr == p->addr + last;
}

/* Its protection is lifted by a single call: all of it, or nothing. */
static bool in_one_chunk(const struct piece *p)
{
	return p->key / CHUNK_BYTES == (p->key + (p->nr_pages - 1) * PAGE_BYTES) / CHUNK_BYTES;
}

/*
 * Lifts the protection of a piece, wherever it is now; waits while an event is pending. An mremap()
 * may have moved it: the protection went with it. In a process that has been seen to move memory no
 * event is read meanwhile: what has moved and is not known of yet keeps the call from doing anything.
 * In others it is looked at afterwards whether this was the first. What was unmapped meanwhile, and
 * nothing has been moved to, does no harm: there is nothing protected.
 */
static int finish_piece(struct capture *c, const struct gather *g, struct piece *p)
{
	for (;;) {
		const bool locked = c->remaps;

		if (locked)
			pthread_mutex_lock(&c->fault_lock);
		uint64_t seq = settled_seq(c);
		bool there = seq == g->seq || in_place(c, p) || locate(c, p->key, &p->s, &p->addr);
		int r = there ? fault_finish(c, &p->s, p->addr, p->key, p->nr_pages) : 0;
		if (locked)
			pthread_mutex_unlock(&c->fault_lock);
		else if (there && (r != -EAGAIN || !in_one_chunk(p)) && settled_seq(c) != seq &&
			 c->remaps && !in_place(c, p))
			capture_tear(c, "the page at %#llx was moved while it was saved",
				     (unsigned long long)p->addr);
		if (r != -EAGAIN || c->failed)
			return r == -ENOENT || r == -EINVAL || r == -EAGAIN ? 0 : r;
		sched_yield();
	}
}

static int finish(struct capture *c, struct gather *g)
{
	int r = 0;

	for (unsigned i = 0; i < g->nr_pieces && r >= 0; i++)
		r = finish_piece(c, g, &g->pieces[i]);
	if (settled_seq(c) != g->seq)
		wake_all(c);
	return r;
}

enum copied {
	COPIED,
	LOOK_AGAIN,
	NOTHING,
	TORN
};

static enum copied copy_block(struct capture *c, struct gather *g, uint64_t key)
{
	const uint64_t seq = g->seq = settled_seq(c);

	gather(c, g, key);
	if (c->torn || c->failed)
		return TORN;
	if (!g->nr_pieces)
		return NOTHING;
	int r = read_pieces(c, g), there = 1;
	for (unsigned i = 0; i < g->nr_pieces && r == 0 && there == 1; i++)
		there = scan_protected(c, g->pieces[i].addr,
				       g->pieces[i].addr + g->pieces[i].nr_pages * PAGE_BYTES);
	bool pending = uffd_event_pending(c->uffd);
	bool moved = settled_seq(c) != seq;
	if (pending || moved)
		return LOOK_AGAIN;
	if (there < 0)
		r = there;
	if (r < 0 || !there) {
		if (r == -ESRCH)
			capture_fail(c, r,
				     "cannot snapshot process %d: it has ended or runs another "
				     "program now",
				     c->target->pid);
		else
			capture_tear(c, "a page near %#llx changed without notice",
				     (unsigned long long)g->pieces[0].addr);
		return TORN;
	}
	for (unsigned i = 0; i < g->nr_pieces; i++)
		for (unsigned k = 0; k < g->pieces[i].nr_pages; k++) {
			uint64_t page = g->pieces[i].key + k * PAGE_BYTES;

			chunk_set(pageset_chunk(c->pages, page, false)->saved, chunk_page(page));
		}
	atomic_fetch_add(&c->nr_saved, g->block->nr_pages);
	c->stats.sweep_pages += g->block->nr_pages;
	return COPIED;
}

/* Slows the sweep down to the rate. No block of the pool is kept meanwhile: the pool stays free
 * for faults, and what is written is slowed down by this as well. */
static void pace(struct capture *c, uint64_t start_ns, uint64_t swept_pages)
{
	const uint64_t rate = c->options.rate_bytes_s;
	uint64_t due =
		start_ns + (uint64_t)((double)(swept_pages * PAGE_BYTES) * 1e9 / (double)rate);

	for (uint64_t now; (now = now_ns()) < due && !capture_stopping(c);)
		usleep((useconds_t)(MIN(due - now, (uint64_t)50000000) / 1000 + 1));
}

static void *sweep_thread(void *arg)
{
	struct capture *c = arg;
	const uint64_t start_ns = now_ns(), before = c->stats.sweep_pages;
	uint64_t key = 0;
	struct gather g = {0};

	while (!capture_stopping(c)) {
		if (!g.block)
			g.block = pool_get(c->pool);
		if (!g.block)
			break;
		enum copied r = copy_block(c, &g, key);
		if (r == NOTHING) {
			/* What the fault thread took and gave back, or has in hand. */
			uint64_t first;
			if (!pageset_count_unsaved(c->pages, &first))
				break;
			usleep(200);
			key = 0;
			continue;
		}
		if (r == LOOK_AGAIN || r == TORN) {
			give_up(c, &g);
			sched_yield();
			continue;
		}
		int f = finish(c, &g);
		pool_put(c->pool, g.block);
		g.block = NULL;
		if (f < 0)
			capture_fail(c, f,
				     f == -ESRCH ? "cannot snapshot process %d: it has ended or "
						   "runs another program now"
						 : "cannot unprotect the memory of process %d",
				     c->target->pid);
		key = g.next_key;
		if (c->options.rate_bytes_s)
			pace(c, start_ns, c->stats.sweep_pages - before);
	}
	if (g.block)
		pool_put(c->pool, g.block);
	c->sweep_done = true;
	return NULL;
}

int sweep_start(struct capture *c, struct usnap_err *err)
{
	c->sweep_done = false;
	int r = -pthread_create(&c->sweep_tid, NULL, sweep_thread, c);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot start the sweep thread");
	c->sweep_running = true;
	return 0;
}

void sweep_join(struct capture *c)
{
	if (!c->sweep_running)
		return;
	pthread_join(c->sweep_tid, NULL);
	c->sweep_running = false;
}

/* ---- while every thread stands still ---------------------------------------------------------- */

/* Everything that is populated, by the same thread that holds the target. */
int sweep_held(struct capture *c, struct usnap_err *err)
{
	struct copier cp = {0};
	uint64_t key = 0, at, last_tick = 0;
	int r = 0;

	for (struct chunk *ch; r == 0 && (ch = pageset_next(c->pages, key, &at));
	     key = at + CHUNK_BYTES) {
		for (unsigned p = 0; p < CHUNK_PAGES && r == 0; p++) {
			struct segment s;
			uint64_t k = at + p * PAGE_BYTES, addr;

			if (!chunk_claim(ch, p) || !locate(c, k, &s, &addr))
				continue;
			unsigned n = 1;
			while (p + n < CHUNK_PAGES && addr + n * PAGE_BYTES < s.end &&
			       chunk_claim(ch, p + n))
				n++;
			r = copier_add(c, &cp, addr, k, n);
			for (unsigned i = 0; i < n; i++)
				chunk_set(ch->saved, p + i);
			atomic_fetch_add(&c->nr_saved, n);
			p += n - 1;
		}
		if (c->options.cancel && *c->options.cancel)
			r = -ECANCELED;
		if (pool_error(c->pool))
			r = pool_error(c->pool);
		uint64_t now = now_ns();
		if (c->options.progress && now - last_tick > 100000000u) {
			c->options.progress(c->options.progress_arg, "copying",
					    c->nr_saved * PAGE_BYTES, c->stats.bytes_populated);
			last_tick = now;
		}
	}
	if (r == 0)
		r = copier_flush(c, &cp);
	copier_drop(c, &cp);
	if (r == -ECANCELED)
		return usnap_fail(err, r, "interrupted");
	if (r < 0 && !pool_error(c->pool))
		return usnap_fail_errno(err, r, "cannot read the memory of process %d",
					c->target->pid);
	return r;
}
