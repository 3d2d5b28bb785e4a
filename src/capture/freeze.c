/*
 * The freeze: every thread stands still for a fraction of a millisecond, and
 * T0 is the instant at which the last one did.
 *
 * In this order:
 *   1. seize all threads (they run on), then interrupt them and wait;
 *   2. read the mappings and the process state. The batches of system calls
 *      for it run on the threads' own stacks, whose pages are unprotected and
 *      logged first; the fault thread is still at work, as it was while arming;
 *   3. serve what is left in the descriptor and take the log: from here on
 *      nothing of the target's moves;
 *   4. cover mappings that have appeared, look up again what was populated
 *      where something was discarded, copy the hottest logged pages and
 *      protect the rest, copy what cannot be protected;
 *   5. from now on faults are preserved; let every thread go.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "capture/ended.h"
#include "capture/futexes.h"
#include "capture/session.h"
#include "common/hurry.h"
#include "common/util.h"

enum {
	STOP_NS = 20000000, /* a thread that has not stopped by then sits in vfork or worse; */
	STOP_MOST_NS = 640000000, /* or it has to wait for a processor, which may take longer */
	STOP_TRIES = 50,
	COVER_TRIES = 5,
	COPY_PAGES = 128, /* logged pages copied while stopped; the rest is protected */
	YOUNG_PAGES = 256, /* and pages of mappings that have just appeared */
	RUN_ON_US = 50, /* what is written meanwhile is copied in the freeze */
};
/* A new mapping larger than this is armed while the target runs. */
#define NEW_BYTES ((uint64_t)32 << 20)
/* Of a stack, below the stack pointer, that a batch writes as a rule. */
#define STACK_BYTES (4 * PAGE_BYTES)

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* The stacks are about to be written: without these each page would cost a fault. */
static int open_stacks(struct capture *c)
{
	int r = 0;

	if (c->uffd < 0)
		return 0;
	pthread_mutex_lock(&c->fault_lock);
	for (size_t i = 0; i < c->tracees.n && r == 0; i++) {
		uint64_t top = ALIGN_UP(c->tracees.t[i].regs.rsp, PAGE_BYTES);
		uint64_t start = top - MIN(top, STACK_BYTES);
		struct segment s;

		pthread_mutex_lock(&c->map_lock);
		const struct segment *found = segmap_find(&c->segments, top - PAGE_BYTES);
		if (found)
			s = *found;
		pthread_mutex_unlock(&c->map_lock);
		if (!found || s.unit != PAGE_BYTES)
			continue;
		start = MAX(start, s.start);
		for (uint64_t a = start; a < top && r == 0; a += PAGE_BYTES) {
			uint64_t done;

			r = uffd_zeropage(c->uffd, a, PAGE_BYTES, &done);
			if (r < 0 && !done) {
				/* The first that exists: so do those above it, as a rule. */
				uffd_unprotect(c->uffd, a, top - a);
				r = arm_log(c, a, top);
				break;
			}
			r = arm_log(c, a, a + PAGE_BYTES);
		}
	}
	pthread_mutex_unlock(&c->fault_lock);
	return r;
}

/* What was logged or discarded last: nothing moves now, so look it up once and for all. */
static int rescan(struct capture *c, struct ranges *rs)
{
	for (size_t i = 0; i < rs->n; i++) {
		/* Keys are addresses still. What nothing covers any more holds nothing. */
		pageset_depopulate(c->pages, rs->r[i].start,
				   (rs->r[i].end - rs->r[i].start) >> PAGE_SHIFT);
		for (uint64_t at = rs->r[i].start; at < rs->r[i].end;) {
			const struct segment *s = segmap_first(&c->segments, at);
			if (!s || s->start >= rs->r[i].end)
				break;
			uint64_t from = MAX(at, s->start), to = MIN(rs->r[i].end, s->end);
			int r = scan_populated(c, s, from, to, true);
			if (r < 0)
				return r;
			at = to;
		}
	}
	return 0;
}

int freeze_copy_populated(struct capture *c, struct copier *cp, uint64_t start, uint64_t end,
			  unsigned *budget)
{
	int r = 0;

	for (uint64_t at = start; at < end && r == 0 && *budget;) {
		const struct segment *s = segmap_first(&c->segments, at);
		if (!s || s->start >= end)
			break;
		at = MAX(at, s->start);
		if (s->unit != PAGE_BYTES) {
			at = s->end;
			continue;
		}
		uint64_t key = s->key + (at - s->start),
			 to = s->key + (MIN(end, s->end) - s->start);
		while (key < to && r == 0 && *budget) {
			struct chunk *ch = pageset_chunk(c->pages, key, false);
			unsigned n = 0;

			if (!ch) {
				key = ALIGN_DOWN(key, CHUNK_BYTES) + CHUNK_BYTES;
				continue;
			}
			while (key + n * PAGE_BYTES < to && chunk_page(key) + n < CHUNK_PAGES &&
			       n < *budget && chunk_claim(ch, chunk_page(key) + n))
				n++;
			if (n)
				r = copier_add(c, cp, s->start + (key - s->key), key, n);
			for (unsigned i = 0; i < n; i++)
				chunk_set(ch->saved, chunk_page(key) + i);
			atomic_fetch_add(&c->nr_saved, n);
			*budget -= n;
			key += MAX(n, 1u) * PAGE_BYTES;
		}
		at = s->end;
	}
	return r;
}

/* Copies what was written last and what has just appeared, within bounds; protects the rest of the
 * log again. What is copied stays unprotected. */
static int settle_log(struct capture *c, struct copier *cp, struct ranges *log,
		      struct ranges *discards)
{
	unsigned budget = COPY_PAGES, young_budget = YOUNG_PAGES;
	struct ranges rest = {0};

	ranges_merge(log, 0);
	ranges_merge(discards, 0);
	c->stats.arm_left = ranges_bytes(log) >> PAGE_SHIFT;
	int r = rescan(c, discards);
	/* What was a page of zeros could be written unseen. */
	if (r == 0)
		r = rescan(c, &c->spared);
	exclude_pages(c);
	if (r == 0)
		r = futexes_copy(c, cp);
	for (size_t i = c->young.n; i-- > 0 && r == 0;)
		r = freeze_copy_populated(c, cp, c->young.r[i].start, c->young.r[i].end,
					  &young_budget);
	for (size_t i = 0; i < log->n && r == 0; i++) {
		const struct range *g = &log->r[i];
		const struct segment *s = segmap_find(&c->segments, g->start);

		if (s && s->unit == PAGE_BYTES && g->end <= s->end &&
		    (g->end - g->start) >> PAGE_SHIFT <= budget)
			r = freeze_copy_populated(c, cp, g->start, g->end, &budget);
		else
			r = ranges_add(&rest, g->start, g->end);
	}
	if (r == 0)
		r = arm_protect_ranges(c, &rest);
	ranges_free(&rest);
	return r;
}

/* Without a userfaultfd to tell, an execve() since attaching goes unnoticed: the descriptors would
 * show the memory of before. */
static int reopen_memory(struct capture *c)
{
	int pagemap = openat(c->target->procfd, "pagemap", O_RDONLY | O_CLOEXEC);
	int mem = openat(c->target->procfd, "mem", O_RDONLY | O_CLOEXEC);

	if (pagemap < 0 || mem < 0) {
		int r = -errno;

		if (pagemap >= 0)
			close(pagemap);
		if (mem >= 0)
			close(mem);
		return r;
	}
	close(c->target->pagemap_fd);
	close(c->mem_fd);
	c->target->pagemap_fd = pagemap;
	c->mem_fd = mem;
	return 0;
}

/* Serves what is left in the descriptor and takes over what was logged. */
static int take_log(struct capture *c, struct ranges *ret_log, struct ranges *ret_discards)
{
	pthread_mutex_lock(&c->fault_lock);
	int r = fault_drain(c);
	*ret_log = c->log;
	*ret_discards = c->discards;
	c->log = c->discards = (struct ranges){0};
	pthread_mutex_unlock(&c->fault_lock);
	return r;
}

/* The end of step 4: nothing has been logged since, or what was is protected; faults are preserved
 * from now on. */
static int begin_preserve(struct capture *c)
{
	int r = 0;

	pthread_mutex_lock(&c->fault_lock);
	if (c->uffd >= 0)
		r = fault_drain(c);
	exclude_pages(c);
	if (r == 0)
		r = arm_protect_ranges(c, &c->log);
	c->log.n = c->discards.n = 0;
	if (r == 0)
		atomic_store(&c->phase, PHASE_PRESERVE);
	pthread_mutex_unlock(&c->fault_lock);
	return r;
}

/*
 * Steps 3 to 5. *ret_again: a large mapping has appeared; arm it first.
 *
 * The fault thread stays at work: none of the target's threads can fault, but
 * should a page that we read have vanished without notice, the fault is ours,
 * and somebody must serve it (with zeros, which is what it holds).
 */
static int take_memory(struct capture *c, bool hold, struct copier *cp, bool last_try,
		       bool *ret_again, struct usnap_err *err)
{
	struct ranges log = {0}, discards = {0};
	int r = c->uffd < 0 ? reopen_memory(c) : take_log(c, &log, &discards);

	if (r < 0) {
		usnap_fail_errno(err, r, "cannot settle the faults of process %d", c->target->pid);
		goto out;
	}
	if (!last_try && arm_uncovered_bytes(c, &c->maps) > NEW_BYTES) {
		*ret_again = true;
		goto out;
	}
	r = arm_cover(c, &c->maps, true, err);
	if (r < 0)
		goto out;
	r = guards_freeze(c);
	if (r < 0) {
		usnap_fail_errno(err, r, "cannot look for guard pages of process %d",
				 c->target->pid);
		goto out;
	}
	r = exclude_read(c);
	if (r < 0) {
		usnap_fail_errno(err, r, "cannot keep track of pages");
		goto out;
	}
	if (hold) {
		/* Nothing moves until everything is copied: what is populated is what is there. */
		pageset_reset(c->pages);
		for (size_t i = 0; i < c->segments.n && r == 0; i++)
			r = scan_populated(c, &c->segments.s[i], c->segments.s[i].start,
					   c->segments.s[i].end, true);
		exclude_pages(c);
	} else {
		r = settle_log(c, cp, &log, &discards);
	}
	if (r == 0)
		r = frozen_copy(c, cp);
	if (r == 0)
		r = copier_flush(c, cp);
	if (r == 0)
		r = ghost_freeze(c);
	if (r == 0)
		r = begin_preserve(c);
	/* The image has been taken: it does not show this. */
	if (r == 0)
		asks_begin(c, hold);
	if (r < 0)
		usnap_fail_errno(err, r, "cannot take the memory of process %d", c->target->pid);
	if (r == -EACCES)
		usnap_hint(err, "what its shared memory holds can be seen as root, or with "
				"CAP_CHECKPOINT_RESTORE");
	c->stats.bytes_populated = c->frozen_extra_bytes;
out:
	/* Armed again, the log says what is not protected: it must not get lost. */
	if (*ret_again) {
		pthread_mutex_lock(&c->fault_lock);
		for (size_t i = 0; i < log.n && r == 0; i++)
			r = ranges_add(&c->log, log.r[i].start, log.r[i].end);
		for (size_t i = 0; i < discards.n && r == 0; i++)
			r = ranges_add(&c->discards, discards.r[i].start, discards.r[i].end);
		if (r < 0)
			usnap_fail_errno(err, r, "cannot keep track of pages");
		pthread_mutex_unlock(&c->fault_lock);
	}
	ranges_free(&log);
	ranges_free(&discards);
	return r;
}

struct reading {
	struct capture *c;
	int result;
};

static void read_mappings(void *arg)
{
	struct reading *reading = arg;
	struct capture *c = reading->c;
	struct maps fresh = {0};

	reading->result = maps_read(c->target->procfd, &fresh);
	if (reading->result < 0)
		return;
	maps_inherit_flags(&fresh, &c->maps);
	inject_hide(c, &fresh);
	maps_free(&c->maps);
	c->maps = fresh;
	c->stats.regions = fresh.n;
	reading->result = regions_choose(c);
}

static int ask_helper(struct remote_helper *h, void *arg, struct usnap_err *err)
{
	facts_ask(h, arg);
	return 0;
}

/* When nothing was attached to there has been no occasion to ask, and where the process is stopped
 * for good there is time. Without an answer some of it stays unknown. */
static void ask_facts(struct capture *c)
{
	struct usnap_err why = {0};
	struct process_facts facts;
	size_t i = 0;

	facts_forget(&facts);
	while (i + 1 < c->tracees.n && remote_is_slow(&c->tracees.t[i]))
		i++;
	if (remote_with_helper(&c->tracees.t[i], c->target, &c->gadgets,
			       pstate_wait_nr(c->pstate, i), ask_helper, &facts, &why) == 0)
		pstate_know_facts(c->pstate, &facts);
}

/* A thread whose fault has been made to wait would wait on through the whole of the freeze. It needs
 * a moment, too, to be woken and run. */
static void end_throttle(struct capture *c)
{
	if (!c->throttle_us)
		return;
	fault_hurry(c);
	usleep(RUN_ON_US);
}

/* One stop. -EAGAIN: not every thread could be stopped. */
static int freeze_once(struct capture *c, bool hold, struct copier *cp, uint64_t stop_ns,
		       bool last_try, bool *ret_again, struct usnap_err *err)
{
	uint64_t start, stopped, state;
	int r;

	end_throttle(c);
	r = tracees_seize(&c->tracees, c->target, err);
	thread_hurry(pthread_self(), true);
	start = now_ns();
	if (r == 0)
		r = tracees_stop(&c->tracees, c->target, true, start + stop_ns, err);
	if (r == 0 && c->uffd >= 0 && (r = futexes_stopped(c)) < 0)
		usnap_fail_errno(err, r, "cannot keep track of pages");
	if (r < 0) {
		c->straggler = c->tracees.straggler;
		/* Some have been interrupted. */
		if (c->uffd >= 0)
			futexes_note(c);
		/* One that does not stop for seconds would not for the next try either. */
		if (tracees_release(&c->tracees, c->target) && r == -EAGAIN)
			r = err->code = -EBUSY;
		thread_hurry(pthread_self(), false);
		c->stats.freeze_retry_pause_ns =
			MAX(c->stats.freeze_retry_pause_ns, now_ns() - start);
		return r;
	}
	/* After an execve() nothing that we know of its text holds. */
	if (capture_memory_gone(c)) {
		tracees_release(&c->tracees, c->target);
		thread_hurry(pthread_self(), false);
		return usnap_fail(
			err, -ESRCH,
			"cannot snapshot process %d: it has ended or runs another program now",
			c->target->pid);
	}
	asks_set_back(c);
	stopped = now_ns();
	c->stats.t0_realtime_ns = clock_ns(CLOCK_REALTIME);
	c->stats.t0_monotonic_ns = stopped;
	c->stats.t0_boottime_ns = clock_ns(CLOCK_BOOTTIME);
	c->stats.threads = c->tracees.n;

	struct reading maps = {.c = c};
	if (c->uffd >= 0)
		ended_tell(c, &c->maps);
	c->ends_noticed = ended_is_noticed(c);
	r = open_stacks(c);
	if (r < 0)
		usnap_fail_errno(err, r, "cannot open the stacks of process %d", c->target->pid);
	if (r == 0)
		r = pstate_collect(c->pstate, &c->tracees,
				   (struct remote_meanwhile){read_mappings, &maps}, err);
	if (r == 0 && maps.result < 0)
		r = usnap_fail_errno(err, maps.result, "cannot read the mappings of process %d",
				     c->target->pid);
	if (r == 0 && c->uffd < 0)
		ask_facts(c);
	pstate_set_maps(c->pstate, &c->maps);
	state = now_ns();
	if (r == 0)
		r = take_memory(c, hold, cp, last_try, ret_again, err);
	/* Not every thread's fault, as -EAGAIN says elsewhere: somebody who shares the memory without
	 * being part of the process has raised an event. What was copied counts for nothing now. */
	if (r == -EAGAIN) {
		capture_tear(c, "memory was discarded while every thread stood still");
		r = err->code = -EBUSY;
	}
	uint64_t memory = now_ns();
	/* While we still have a CPU for sure: a thread that saves what is written now might leave us none. */
	if (r == 0 && !*ret_again)
		fault_set_hurried(c, false);
	if (r < 0 || *ret_again || !hold)
		tracees_release(&c->tracees, c->target);
	c->stats.stop_ns = stopped - start;
	c->stats.state_ns = state - stopped;
	c->stats.memory_ns = memory - state;
	c->stats.pause_ns = now_ns() - start;
	thread_hurry(pthread_self(), false);
	return r;
}

int freeze(struct capture *c, bool hold, struct usnap_err *err)
{
	struct copier cp = {0};
	uint64_t stop_ns = STOP_NS;
	int r = -EAGAIN;

	for (unsigned stops = 0, covers = 0; r == -EAGAIN && stops < STOP_TRIES;) {
		struct usnap_err why = {0};
		bool again = false;

		c->frozen_extra_bytes = 0;
		c->stats.held_bytes = 0;
		c->stats.frozen_pages = 0;
		r = freeze_once(c, hold, &cp, stop_ns, covers == COVER_TRIES, &again, &why);
		if (r == 0 && again) {
			covers++;
			r = arm(c, &why);
			if (r == 0)
				r = -EAGAIN;
		} else if (r == -EAGAIN) {
			/* vfork() lasts until the child execs: that is soon, as a rule. */
			c->stats.freeze_retries++;
			stops++;
			if (c->straggler == 'R')
				stop_ns = MIN(stop_ns * 2, (uint64_t)STOP_MOST_NS);
			usleep(1000u << MIN(stops, 6u));
			if (c->uffd >= 0) {
				int settled = arm_settle(c, err);
				if (settled < 0)
					r = settled;
			}
		}
		if (r < 0 && (r != -EAGAIN || stops == STOP_TRIES) && err && !err->code)
			*err = why;
		if (c->options.cancel && *c->options.cancel) {
			r = usnap_fail(err, -ECANCELED, "interrupted");
			break;
		}
	}
	copier_drop(c, &cp);
	return r;
}
