/*
 * The fault thread: reads the userfaultfd and serves the target.
 *
 * DESIGN. One thread reads at a time, under fault_lock: this one, or the
 * tracer while the target stands still. It must never wait for anything that
 * depends on the target or on the output:
 *
 *   - without a free block a fault is deferred, and tried again when the pool
 *     tells; faults that need none, and events, are served meanwhile. A thread in
 *     a system call that a signal waits for raises its fault anew, again and
 *     again: one is kept for each address, which bounds the list;
 *   - it reads through /proc/PID/mem only: where a page is gone that fails, while
 *     process_vm_readv() would raise a fault that nobody serves.
 *
 * Validity of a copy (promise 1 of uffd-snap(7)): the page was protected before
 * it was read. Nothing but a discard can change that, and a discard that began
 * earlier has its event pending, since we are the only reader: so a probe for
 * pending events after the copy validates it. If one is pending the copy is
 * dropped, the event is handled, and the fault is taken up again.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/hurry.h"
#include "common/util.h"

enum {
	BATCH = 32, /* messages read at once */
	CLUSTER_PAGES = 16, /* copied together where neighbours fault too */
	EXCLUDED_PAGES = 128, /* let go together */
	ZERO_PAGES = 64, /* filled together after T0: costs no memory */
	ZERO_PAGES_ARM = 16, /* before T0 they have to be protected again */
	ASKS_WAIT_NS = 100000,
};

struct deferred {
	uint64_t addr, since_ns;
	bool wp;
};

/* ---- bookkeeping ------------------------------------------------------------------------------ */

static void count_latency(struct capture *c, uint64_t since_ns)
{
	uint64_t ns = now_ns() - since_ns;
	int bucket = ns < 2 ? 0 : 64 - __builtin_clzll(ns - 1);

	c->stats.fault_latency[MIN(bucket, CAPTURE_HISTOGRAM - 1)]++;
	c->stats.fault_max_ns = MAX(c->stats.fault_max_ns, ns);
}

static int defer(struct capture *c, struct deferred d)
{
	for (size_t i = 0; i < c->nr_deferred; i++)
		if (c->deferred[i].addr == d.addr && c->deferred[i].wp == d.wp)
			return 0;
	c->news = true;
	if (c->nr_deferred == c->deferred_room) {
		size_t room = c->deferred_room ? c->deferred_room * 2 : 64;
		struct deferred *bigger = realloc(c->deferred, room * sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		c->deferred = bigger;
		c->deferred_room = room;
	}
	c->deferred[c->nr_deferred++] = d;
	return 0;
}

/* ---- copying ----------------------------------------------------------------------------------- */

/* True when every populated page of the unit around key is saved. */
static bool unit_saved(const struct capture *c, uint64_t key, uint64_t unit)
{
	for (uint64_t k = ALIGN_DOWN(key, unit), end = k + unit; k < end; k += CHUNK_BYTES) {
		const struct chunk *ch = pageset_chunk(c->pages, k, false);

		if (!ch)
			continue;
		if (unit < CHUNK_BYTES) {
			unsigned p = chunk_page(k);

			return !chunk_test(ch->populated, p) || chunk_test(ch->saved, p);
		}
		for (int i = 0; i < CHUNK_WORDS; i++)
			if (atomic_load(&ch->populated[i]) & ~atomic_load(&ch->saved[i]))
				return false;
	}
	return true;
}

static uint64_t unit_of(const struct capture *c, const struct segment *s, uint64_t key)
{
	const struct chunk *ch = pageset_chunk(c->pages, key, false);

	return ch && atomic_load(&ch->huge) ? MAX(s->unit, CHUNK_BYTES) : s->unit;
}

/* Lifts the protection of [key, key+len), of which a part may have been moved or unmapped. */
static int unprotect_key(struct capture *c, const struct segment *s, uint64_t key, uint64_t len)
{
	uint64_t from = MAX(key, s->key);
	uint64_t to = MIN(key + len, s->key + (s->end - s->start));

	return uffd_unprotect(c->uffd, s->start + (from - s->key), to - from);
}

int fault_finish(struct capture *c, const struct segment *s, uint64_t addr, uint64_t key,
		 unsigned nr_pages)
{
	(void)addr;
	for (uint64_t k = key, end = key + nr_pages * PAGE_BYTES; k < end;) {
		uint64_t unit = unit_of(c, s, k);

		if (unit == PAGE_BYTES) {
			/* Up to the end, or to the next huge page. */
			uint64_t stop = MIN(end, ALIGN_DOWN(k, CHUNK_BYTES) + CHUNK_BYTES);
			int r = unprotect_key(c, s, k, stop - k);

			if (r < 0 && r != -ENOENT)
				return r;
			k = stop;
			continue;
		}
		uint64_t start = ALIGN_DOWN(k, unit);
		if (unit_saved(c, k, unit)) {
			int r = unprotect_key(c, s, start, unit);

			if (r < 0 && r != -ENOENT)
				return r;
		}
		k = start + unit;
	}
	return 0;
}

static void unclaim(struct capture *c, uint64_t key, unsigned nr_pages)
{
	for (unsigned i = 0; i < nr_pages; i++, key += PAGE_BYTES) {
		struct chunk *ch = pageset_chunk(c->pages, key, false);
		unsigned p = chunk_page(key);

		atomic_fetch_and(&ch->claimed[p / 64], ~((uint64_t)1 << (p % 64)));
	}
}

/* Copies the run [addr, addr+nr) that is claimed already. */
static enum served copy_run(struct capture *c, uint64_t addr, uint64_t key, unsigned nr_pages)
{
	while (nr_pages) {
		if (!c->open_block)
			c->open_block = pool_try_get(c->pool);
		struct block *b = c->open_block;
		if (!b) {
			unclaim(c, key, nr_pages);
			return NO_BLOCK;
		}
		struct block before = *b;
		unsigned n = MIN(nr_pages, (unsigned)BLOCK_PAGES - b->nr_pages);
		unsigned char *at = block_add(b, key, n);

		int r = memory_read(c, addr, at, n * PAGE_BYTES);
		/* Unless something lifted that without an event, they are protected; the page that
		 * faulted, too, was so when the kernel said it, which may be long ago. */
		if (r == 0 && scan_protected(c, addr, addr + n * PAGE_BYTES) != 1)
			r = -ESTALE;
		if (r < 0 || uffd_event_pending(c->uffd)) {
			*b = before;
			unclaim(c, key, nr_pages);
			if (r == 0 || uffd_event_pending(c->uffd))
				return AGAIN;
			capture_tear(c, "the page at %#llx could not be read: %s",
				     (unsigned long long)addr, strerror(-r));
			return SERVED;
		}
		for (unsigned i = 0; i < n; i++)
			chunk_set(pageset_chunk(c->pages, key + i * PAGE_BYTES, false)->saved,
				  chunk_page(key + i * PAGE_BYTES));
		atomic_fetch_add(&c->nr_saved, n);
		c->stats.fault_pages += n;
		if (b->nr_pages == BLOCK_PAGES)
			fault_flush(c);
		addr += n * PAGE_BYTES;
		key += n * PAGE_BYTES;
		nr_pages -= n;
	}
	return SERVED;
}

void fault_flush(struct capture *c)
{
	if (c->open_block)
		pool_put(c->pool, c->open_block);
	c->open_block = NULL;
}

enum served fault_copy(struct capture *c, const struct segment *s, uint64_t key, uint64_t len)
{
	uint64_t k = MAX(key, s->key), end = MIN(key + len, s->key + (s->end - s->start));

	while (k < end) {
		struct chunk *ch = pageset_chunk(c->pages, k, false);
		unsigned n = 0;

		while (ch && k + n * PAGE_BYTES < end && chunk_page(k) + n < CHUNK_PAGES &&
		       chunk_claim(ch, chunk_page(k) + n))
			n++;
		if (n) {
			enum served r = copy_run(c, s->start + (k - s->key), k, n);
			if (r != SERVED)
				return r;
		}
		k += (n ? n : 1) * PAGE_BYTES;
		if (!ch)
			k = ALIGN_UP(k, CHUNK_BYTES);
	}
	return SERVED;
}

/* ---- serving ----------------------------------------------------------------------------------- */

static enum served lift(struct capture *c, uint64_t addr, uint64_t len)
{
	int r = uffd_unprotect(c->uffd, addr, len);

	if (r == -EAGAIN)
		return AGAIN;
	/* Not registered (any more), or gone: whoever waits looks again. */
	if (r < 0)
		uffd_wake(c->uffd, addr, len);
	return SERVED;
}

static bool find_segment(struct capture *c, uint64_t addr, struct segment *ret)
{
	pthread_mutex_lock(&c->map_lock);
	const struct segment *s = segmap_find(&c->segments, addr);
	if (s)
		*ret = *s;
	pthread_mutex_unlock(&c->map_lock);
	return s;
}

/* While arming. What no segment covers may be covered this very moment: it is looked up at T0. */
static void note_populated(struct capture *c, const struct segment *s, uint64_t addr, uint64_t len)
{
	int r = s ? pageset_populate(c->pages, s->key + (addr - s->start), len >> PAGE_SHIFT)
		  : ranges_add(&c->discards, addr, addr + len);

	if (r < 0)
		capture_fail(c, -ENOMEM, "cannot keep track of pages: out of memory");
}

static enum served serve_wp_armed(struct capture *c, const struct segment *s, uint64_t addr)
{
	uint64_t start = addr, len = PAGE_BYTES;

	if (s) {
		uint64_t key = s->key + (addr - s->start), unit = unit_of(c, s, key);

		if (unit > PAGE_BYTES && key - ALIGN_DOWN(key, unit) <= addr - s->start &&
		    ALIGN_DOWN(key, unit) + unit <= s->key + (s->end - s->start)) {
			start = addr - (key - ALIGN_DOWN(key, unit));
			len = unit;
		}
	}
	/* Populated whatever the scan has seen or will see; logged before it can change. */
	note_populated(c, s, start, len);
	if (arm_log(c, start, start + len) < 0)
		capture_fail(c, -ENOMEM, "cannot keep track of pages: out of memory");
	c->stats.arm_faults++;
	return lift(c, start, len);
}

static enum served serve_wp(struct capture *c, uint64_t addr)
{
	struct segment s;
	bool known = find_segment(c, addr, &s);
	int phase = c->phase;

	if (phase == PHASE_ARM)
		return serve_wp_armed(c, known ? &s : NULL, addr);
	if (!known)
		return lift(c, addr, PAGE_BYTES);
	if (phase == PHASE_RELEASE || capture_stopping(c))
		return lift(c, ALIGN_DOWN(addr, s.unit), s.unit);

	uint64_t key = s.key + (addr - s.start), unit = unit_of(c, &s, key);
	uint64_t from = ALIGN_DOWN(key, unit), len = unit;
	if (unit == PAGE_BYTES) {
		/* Where neighbours fault one after the other, take them together. */
		if (key - c->last_fault_key + CLUSTER_PAGES * PAGE_BYTES <
		    2 * CLUSTER_PAGES * PAGE_BYTES) {
			from = ALIGN_DOWN(key, CLUSTER_PAGES * PAGE_BYTES);
			len = CLUSTER_PAGES * PAGE_BYTES;
		}
		/* Nothing is to be copied there. */
		if (exclude_reach(c, key)) {
			from = key;
			len = MIN(exclude_reach(c, key), EXCLUDED_PAGES * PAGE_BYTES);
		}
		c->last_fault_key = key;
	}
	enum served r = fault_copy(c, &s, from, len);
	if (r != SERVED)
		return r;
	if (c->torn)
		return lift(c, ALIGN_DOWN(addr, s.unit), s.unit);
	/* Pages claimed by the sweep are lifted by it; everything else is saved. */
	if (unit > PAGE_BYTES) {
		int f = fault_finish(c, &s, addr, key, 1);
		return f == -EAGAIN ? AGAIN : SERVED;
	}
	for (uint64_t k = MAX(from, s.key), end = MIN(from + len, s.key + (s.end - s.start));
	     k < end;) {
		uint64_t n = 0;

		while (k + n < end && unit_saved(c, k + n, PAGE_BYTES) &&
		       unit_of(c, &s, k + n) == PAGE_BYTES)
			n += PAGE_BYTES;
		if (n) {
			int f = unprotect_key(c, &s, k, n);
			if (f == -EAGAIN)
				return AGAIN;
			if (f < 0)
				uffd_wake(c->uffd, s.start + (k - s.key), n);
		}
		k += n + PAGE_BYTES;
	}
	return SERVED;
}

/* A page that does not exist: zero at T0 if that is past (promise 3 of uffd-snap(7)). */
static enum served serve_missing(struct capture *c, uint64_t addr)
{
	struct segment s;
	bool known = find_segment(c, addr, &s);
	uint64_t len = PAGE_BYTES, done = 0;

	if (known && c->phase == PHASE_PRESERVE && !c->torn) {
		uint64_t key = s.key + (addr - s.start);
		const struct chunk *ch = pageset_chunk(c->pages, key, false);

		if (ch && chunk_test(ch->populated, chunk_page(key)) &&
		    !chunk_test(ch->saved, chunk_page(key)))
			capture_tear(c, "the page at %#llx vanished before it was saved",
				     (unsigned long long)addr);
	}
	/* Zero pages cost no memory where memory is private; shared memory would be allocated. */
	if (known && s.unit == PAGE_BYTES) {
		uint64_t most = (c->phase == PHASE_ARM ? ZERO_PAGES_ARM : ZERO_PAGES) * PAGE_BYTES;
		uint64_t end = MIN(s.end, ALIGN_DOWN(addr, CHUNK_BYTES) + CHUNK_BYTES);

		len = MIN(most, end - addr);
	}
	/* Before it can be written. What of it turns out to exist is logged for nothing. */
	if (c->phase == PHASE_ARM && arm_log(c, addr, addr + len) < 0)
		capture_fail(c, -ENOMEM, "cannot keep track of pages: out of memory");
	c->stats.missing_faults++;
	int r = uffd_zeropage(c->uffd, addr, len, &done);
	if (r < 0 && r != -EAGAIN && !done && len > PAGE_BYTES)
		r = uffd_zeropage(c->uffd, addr, PAGE_BYTES, &done);
	if (r == -EAGAIN)
		return AGAIN;
	/* Nobody looks at these before fault_lock is free again. */
	if (c->phase == PHASE_ARM)
		note_populated(c, known ? &s : NULL, addr, MAX(done, PAGE_BYTES));
	if (r < 0 && !done)
		uffd_wake(c->uffd, addr, PAGE_BYTES);
	return SERVED;
}

static void serve(struct capture *c, struct deferred d)
{
	if (!d.wp && asks_is_doorbell(c, d.addr)) {
		asks_ring(c, d.addr);
		return;
	}
	enum served r = d.wp ? serve_wp(c, d.addr) : serve_missing(c, d.addr);

	if (r == SERVED)
		c->news = true;
	if (r != SERVED) {
		/* Without memory for the list the attempt is lost, and so is the reason to wait. */
		if (defer(c, d) < 0) {
			capture_fail(c, -ENOMEM, "cannot keep track of faults: out of memory");
			uffd_unprotect(c->uffd, d.addr, PAGE_BYTES);
		}
		return;
	}
	if (c->phase == PHASE_PRESERVE && d.wp) {
		c->stats.faults++;
		count_latency(c, d.since_ns);
	}
}

static void serve_deferred(struct capture *c)
{
	size_t n = c->nr_deferred;
	struct deferred list[BATCH];

	while (n) {
		size_t k = MIN(n, ARRAY_SIZE(list));

		memcpy(list, c->deferred, k * sizeof(list[0]));
		memmove(c->deferred, c->deferred + k, (c->nr_deferred - k) * sizeof(list[0]));
		c->nr_deferred -= k;
		n -= k;
		for (size_t i = 0; i < k; i++)
			serve(c, list[i]);
	}
}

int fault_drain(struct capture *c)
{
	struct uffd_msg msgs[BATCH];

	for (;;) {
		if (uffd_event_pending(c->uffd))
			discard_rescue(c);

		/* From here to the end of the events, the sweep takes no copy for valid. */
		uint64_t seq = atomic_load(&c->event_seq);
		atomic_store(&c->event_seq, seq + 1);
		ssize_t n = read(c->uffd, msgs, sizeof(msgs));
		int r = n < 0 ? -errno : 0;
		size_t nr = n > 0 ? (size_t)n / sizeof(msgs[0]) : 0;
		bool events = false;
		c->news = nr == 0;
		for (size_t i = 0; i < nr; i++)
			if (msgs[i].event != UFFD_EVENT_PAGEFAULT) {
				events = c->news = true;
				discard_event(c, &msgs[i]);
			}
		atomic_store(&c->event_seq, events ? seq + 2 : seq);

		uint64_t since = now_ns();
		for (size_t i = 0; i < nr; i++)
			if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
				serve(c, (struct deferred){
						 .addr = ALIGN_DOWN(
							 (uint64_t)msgs[i].arg.pagefault.address,
							 PAGE_BYTES),
						 .since_ns = since,
						 .wp = msgs[i].arg.pagefault.flags &
						       UFFD_PAGEFAULT_FLAG_WP,
					 });
		if (r == -EINTR)
			continue;
		/* Nothing but what waits already: there would be no end to it. */
		if (!c->news)
			return 0;
		if (nr == 0) {
			/* Who has changed something and not yet said so may have been before a rescue. */
			if (!uffd_event_pending(c->uffd))
				c->rescued.n = 0;
			return r == -EAGAIN ? 0 : r;
		}
	}
}

/* Until the time is over or somebody wants this thread at once. */
static void throttle(const struct capture *c, struct pollfd *wake)
{
	struct timespec timeout = {0, c->throttle_us * 1000l};

	(void)!ppoll(wake, 1, &timeout, NULL);
}

static void *fault_thread(void *arg)
{
	struct capture *c = arg;
	struct pollfd fds[] = {
		{c->uffd, POLLIN, 0}, {c->wake_fd, POLLIN, 0}, {pool_event_fd(c->pool), POLLIN, 0}};

	enum asks_left asks = ASKS_NONE;
	thread_prefer();
	while (!c->fault_quit) {
		struct timespec timeout = {0, 0};
		uint64_t junk;

		pthread_mutex_lock(&c->fault_lock);
		/* What waits for an event was tried again once it was read; what still waits
		 * does so for a block, or for an event that has not been raised yet. */
		if (c->nr_deferred)
			timeout.tv_nsec = 1000000;
		/* Repetitions only: they would be there again at once. */
		fds[0].fd = c->nr_deferred && !c->news ? -1 : c->uffd;
		pthread_mutex_unlock(&c->fault_lock);
		if (asks == ASKS_WAIT)
			timeout.tv_nsec = ASKS_WAIT_NS;
		bool idle = asks == ASKS_NONE && !timeout.tv_nsec;
		if (ppoll(fds, ARRAY_SIZE(fds), idle ? NULL : &timeout, NULL) < 0 && errno != EINTR)
			break;
		if (fds[1].revents)
			(void)!read(c->wake_fd, &junk, sizeof(junk));
		if (fds[2].revents)
			(void)!read(pool_event_fd(c->pool), &junk, sizeof(junk));
		if (c->throttle_us && c->phase == PHASE_ARM)
			throttle(c, &fds[1]);
		pthread_mutex_lock(&c->fault_lock);
		int r = fault_drain(c);
		if (c->nr_deferred) {
			serve_deferred(c);
			if (c->nr_deferred)
				r = fault_drain(c);
		}
		asks = asks_serve(c);
		if (r < 0 && r != -EAGAIN)
			capture_fail(c, r, "cannot read the faults of process %d", c->target->pid);
		pthread_mutex_unlock(&c->fault_lock);
	}
	return NULL;
}

int fault_start(struct capture *c, struct usnap_err *err)
{
	/* To be woken to the point. The thread inherits it as what it comes back to from
	 * real-time priority, during which the kernel takes no such wish. */
	int slack = prctl(PR_GET_TIMERSLACK);
	prctl(PR_SET_TIMERSLACK, 1ul);
	int r = -pthread_create(&c->fault_tid, NULL, fault_thread, c);
	if (slack > 0)
		prctl(PR_SET_TIMERSLACK, (unsigned long)slack);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot start the fault thread");
	c->fault_running = true;
	return 0;
}

void fault_set_hurried(struct capture *c, bool on)
{
	if (c->fault_running)
		thread_hurry(c->fault_tid, on);
}

void fault_hurry(struct capture *c)
{
	uint64_t one = 1;

	c->throttle_us = 0;
	(void)!write(c->wake_fd, &one, sizeof(one));
}

void fault_stop(struct capture *c)
{
	if (!c->fault_running)
		return;
	c->fault_quit = true;
	fault_hurry(c);
	pthread_join(c->fault_tid, NULL);
	c->fault_running = false;
}
