/*
 * A snapshot from attach to the last page, in the order of its phases.
 *
 * The calling thread is the tracer and, while fault and sweep thread work,
 * their supervisor: it notices when the output has failed and when the user
 * wants to stop.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "capture/ended.h"
#include "capture/futexes.h"
#include "capture/session.h"
#include "common/hurry.h"
#include "common/io.h"
#include "common/util.h"
#include "common/within.h"

#define TICK_NS 20000000u
/* Stops at the end, for joiners; each may take twice as long as the one before. */
#define TELL_TRIES 5
#define TELL_STOP_NS UINT64_C(20000000)
#define TELL_WAIT_US 1000
/* Attempts while the threads are held, each of which stops them for the copy. */
#define MAX_HELD 3

void capture_tear(struct capture *c, const char *fmt, ...)
{
	va_list ap;

	pthread_mutex_lock(&c->state_lock);
	if (!c->torn) {
		va_start(ap, fmt);
		vsnprintf(c->stats.torn_reason, sizeof(c->stats.torn_reason), fmt, ap);
		va_end(ap);
	}
	atomic_store(&c->torn, true);
	pthread_mutex_unlock(&c->state_lock);
	pool_fail(c->pool);
}

static void fail_as(struct capture *c, const struct usnap_err *why)
{
	pthread_mutex_lock(&c->state_lock);
	if (!c->failure.code)
		c->failure = *why;
	atomic_store(&c->failed, true);
	pthread_mutex_unlock(&c->state_lock);
	pool_fail(c->pool);
}

void capture_fail(struct capture *c, int code, const char *fmt, ...)
{
	struct usnap_err why = {.code = code};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why.text, sizeof(why.text), fmt, ap);
	va_end(ap);
	fail_as(c, &why);
}

const struct capture_stats *capture_get_stats(const struct capture *c)
{
	return &c->stats;
}

/* ---- one attempt ---------------------------------------------------------------------------------- */

static bool cancelled(const struct capture *c)
{
	return c->options.cancel && *c->options.cancel;
}

/* The target has ended or runs another program: its old memory is gone. */
bool capture_memory_gone(const struct capture *c)
{
	/* Any address that could be mapped will do: what answers ESRCH is the memory as a whole. */
	if (c->uffd >= 0)
		return uffd_copy(c->uffd, MIB(1), c->nowhere, PAGE_BYTES) == -ESRCH;
	return !target_alive(c->target);
}

int capture_all_stopped(struct capture *c, uint64_t stop_ns, int (*fn)(struct capture *))
{
	struct usnap_err why = {0};
	int r = tracees_seize(&c->tracees, c->target, &why);

	if (r == 0 && c->uffd >= 0)
		r = futexes_note(c);
	thread_hurry(pthread_self(), true);
	if (r == 0)
		r = tracees_stop(&c->tracees, c->target, true, now_ns() + stop_ns, &why);
	if (r == 0)
		r = capture_memory_gone(c) ? -ESRCH : fn(c);
	c->straggler = r == -EAGAIN ? c->tracees.straggler : 0;
	tracees_release(&c->tracees, c->target);
	thread_hurry(pthread_self(), false);
	return r;
}

static void tick(struct capture *c, uint64_t *last_progress)
{
	uint64_t now = now_ns();

	if (pool_error(c->pool))
		capture_fail(c, pool_error(c->pool), "cannot write the image");
	if (cancelled(c))
		capture_fail(c, -ECANCELED, "interrupted");
	if (c->options.progress && now - *last_progress >= 100000000u) {
		*last_progress = now;
		c->options.progress(c->options.progress_arg, "sweeping",
				    (c->nr_saved + c->stats.frozen_pages) * PAGE_BYTES,
				    c->stats.bytes_populated);
	}
}

static void supervise(struct capture *c)
{
	uint64_t last_progress = 0;

	do
		tick(c, &last_progress);
	while (join_within(c->sweep_tid, TICK_NS));
	c->sweep_running = false;
}

/* Back to a state from which an attempt can begin. */
static int begin_attempt(struct capture *c, struct usnap_err *err)
{
	asks_end(c);
	pthread_mutex_lock(&c->fault_lock);
	atomic_store(&c->phase, PHASE_ARM);
	c->throttle_us = 0;
	if (c->open_block) {
		c->open_block->nr_pages = c->open_block->nr_runs = 0;
		fault_flush(c);
	}
	pthread_mutex_lock(&c->map_lock);
	segmap_clear(&c->segments);
	pthread_mutex_unlock(&c->map_lock);
	pageset_reset(c->pages);
	c->log.n = c->discards.n = c->rescued.n = c->young.n = c->spared.n = 0;
	c->armed_once = false;
	pthread_mutex_unlock(&c->fault_lock);

	int r = pool_drain(c->pool);
	if (r < 0 && !c->torn)
		return usnap_fail_errno(err, r, "cannot write the image");
	pool_reset(c->pool);
	pthread_mutex_lock(&c->fault_lock);
	/* Only now: until here faults were let through without a copy. */
	c->torn = c->unseen_checked = false;
	c->nr_saved = 0;
	struct capture_stats *s = &c->stats;
	s->faults = s->fault_pages = s->missing_faults = s->sweep_pages = s->frozen_pages = 0;
	s->arm_passes = s->arm_faults = s->fault_max_ns = s->rescued_pages = 0;
	s->asks = s->asked_pages = 0;
	memset(s->fault_latency, 0, sizeof(s->fault_latency));
	pthread_mutex_unlock(&c->fault_lock);
	return image_writer_begin(c->writer, err);
}

/* The fault thread has nothing more to save: what it holds goes to the pool. */
static void end_preserve(struct capture *c)
{
	uint64_t first = 0, unsaved;

	pthread_mutex_lock(&c->fault_lock);
	unsaved = capture_stopping(c) ? 0 : pageset_count_unsaved(c->pages, &first);
	if (unsaved)
		capture_tear(c, "%llu pages from %#llx on were not saved",
			     (unsigned long long)unsaved, (unsigned long long)first);
	fault_flush(c);
	if (!c->torn)
		atomic_store(&c->phase, PHASE_RELEASE);
	pthread_mutex_unlock(&c->fault_lock);
	asks_end(c);
}

static int preserve(struct capture *c, struct usnap_err *err)
{
	uint64_t start = now_ns();
	int r = sweep_start(c, err);

	if (r < 0)
		return r;
	struct usnap_err why = {0};
	/* First: whoever gives such a mapping up waits for it, and writing to the image may take long. */
	r = regions_check_unseen(c);
	if (r < 0) {
		usnap_fail_errno(&why, r, "cannot read the mappings of process %d", c->target->pid);
	} else {
		c->unseen_checked = true;
		r = guards_check(c);
		if (r < 0)
			usnap_fail_errno(&why, r, "cannot look for guard pages of process %d",
					 c->target->pid);
	}
	if (r == 0)
		r = identity_write(c, &why);
	if (r == 0)
		r = identity_write_state(c, &why);
	if (r < 0)
		fail_as(c, &why);
	supervise(c);
	end_preserve(c);
	c->stats.preserve_ns = now_ns() - start;
	return 0;
}

/* Everything is copied while every thread stands still. */
static int hold(struct capture *c, struct usnap_err *err)
{
	uint64_t start = now_ns();
	int r = identity_write(c, err);

	if (r == 0)
		r = identity_write_state(c, err);
	if (r == 0)
		r = sweep_held(c, err);
	if (r == 0) {
		r = regions_check_unseen(c);
		if (r < 0)
			usnap_fail_errno(err, r, "cannot read the mappings of process %d",
					 c->target->pid);
	}
	if (r < 0) {
		usnap_fail(err, r, "cannot write the image"); /* unless it is known better */
		fail_as(c, err);
	}
	end_preserve(c);
	if (r < 0 || c->torn || !c->options.kill)
		tracees_release(&c->tracees, c->target);
	c->stats.preserve_ns = now_ns() - start;
	if (!c->options.kill)
		c->stats.pause_ns += c->stats.preserve_ns;
	return r;
}

static int attempt(struct capture *c, bool held, struct usnap_err *err)
{
	uint64_t start;
	int r = begin_attempt(c, err);

	if (r < 0)
		return r;
	c->stats.held = held;
	r = ghost_prepare(c, err);
	if (r < 0)
		return r;
	start = now_ns();
	c->ends_noticed = false;
	if (c->uffd >= 0) {
		fault_set_hurried(c, true);
		asks_find(c);
		r = arm(c, err);
		c->stats.arm_ns = now_ns() - start;
	}
	if (c->uffd < 0) {
		maps_free(&c->maps);
		r = maps_read_flags(c->target->procfd, &c->maps);
		if (r < 0)
			return usnap_fail_errno(err, r, "cannot read the mappings of process %d",
						c->target->pid);
	}
	if (r == 0)
		inject_clean(c);
	if (r == 0)
		asks_find(c);
	if (r == 0 && (r = guards_prepare(c)) < 0)
		usnap_fail_errno(err, r, "cannot look for guard pages of process %d",
				 c->target->pid);
	if (r == 0 && (r = sharers_note(&c->sharers, c->target->pid)) < 0)
		usnap_fail_errno(err, r, "cannot look for who shares memory with process %d",
				 c->target->pid);
	if (r == 0 && c->options.before_freeze)
		r = c->options.before_freeze(c->options.freeze_arg, err);
	/* As late as can be: what has changed since costs time in the freeze. */
	pstate_free(c->pstate);
	c->pstate = NULL;
	if (r == 0)
		r = pstate_prepare(&c->pstate, c->target, &c->gadgets, err);
	if (r == 0) {
		if (c->options.by_itself)
			pstate_disown(c->pstate, getpid());
		pstate_know_wait(c->pstate, &c->known.wait);
		pstate_know_facts(c->pstate, &c->known.facts);
	}
	if (r == 0 && c->uffd >= 0 && (r = regions_note_own(c)) < 0)
		usnap_fail_errno(err, r, "cannot read the mappings of process %d", c->target->pid);
	if (r == 0 && c->uffd >= 0)
		r = arm_settle(c, err);
	if (r == 0)
		r = freeze(c, held, err);
	if (r == 0 && (r = sharers_check(&c->sharers, c->target->pid, err)) < 0)
		tracees_release(&c->tracees, c->target);
	fault_set_hurried(c, false);
	if (r < 0)
		return r;
	if (c->options.after_freeze)
		c->options.after_freeze(c->options.freeze_arg);
	/* Nothing of what the target gives up now should live on because of us. */
	unlinked_close(&c->ghosts.files);
	pstate_set_unlinked(c->pstate, &c->ghosts.files);
	c->stats.bytes_populated += pageset_count_populated(c->pages) * PAGE_BYTES;
	return held ? hold(c, err) : preserve(c, err);
}

/* ---- the whole ------------------------------------------------------------------------------------- */

static int attach(struct capture *c, struct usnap_err *err)
{
	uint64_t start = now_ns();
	int r = maps_read_flags(c->target->procfd, &c->maps);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot read the mappings of process %d",
					c->target->pid);
	r = remote_find_gadgets(&c->gadgets, c->target, &c->maps, err);
	if (r < 0)
		return r;
	c->mem_fd = openat(c->target->procfd, "mem", O_RDONLY | O_CLOEXEC);
	if (c->mem_fd < 0)
		return usnap_fail_errno(err, -errno, "cannot read the memory of process %d",
					c->target->pid);
	c->maps_fd = openat(c->target->procfd, "maps", O_RDONLY | O_CLOEXEC);
	/* A snapshot that ends the process holds it for the copy: nothing to protect. */
	if (!c->options.kill) {
		r = uffd_take(&c->uffd, &c->features, &c->known, c->target, &c->maps, &c->gadgets,
			      err);
		if (r < 0)
			return r;
		r = fault_start(c, err);
		if (r < 0)
			return r;
	}
	c->stats.attach_ns = now_ns() - start;
	return 0;
}

static int tell_ended(struct capture *c)
{
	struct maps maps = {0};
	int r = maps_read(c->target->procfd, &maps);

	if (r == 0)
		ended_tell(c, &maps);
	maps_free(&maps);
	return r;
}

static void detach(struct capture *c)
{
	const bool injected = inject_is_there(c);
	uint64_t start = now_ns();

	pthread_mutex_lock(&c->fault_lock);
	atomic_store(&c->phase, PHASE_RELEASE);
	pthread_mutex_unlock(&c->fault_lock);
	asks_end(c);
	release(c);
	/* What goes with the gate must be told before. */
	if (injected)
		asks_leave(c);
	inject_remove(c);
	fault_stop(c);
	if (c->uffd >= 0) {
		close(c->uffd);
		c->uffd = -1;
		/* Only now nothing is registered any more: what was mapped meanwhile may have been. */
		if (!injected)
			asks_leave(c);
		/* Also when it was given up before the first stop. */
		if (c->ends_noticed && c->registered) {
			usleep(TELL_WAIT_US); /* for those that were about to end when protection was */
			c->ends_noticed = !ended_is_suspected(c);
		}
		for (int i = 0; i < TELL_TRIES && c->registered && !c->ends_noticed; i++)
			if (capture_all_stopped(c, TELL_STOP_NS << i, tell_ended) != -EAGAIN)
				break;
	}
	c->stats.release_ns = now_ns() - start;
}

static int attempts(struct capture *c, struct usnap_err *err)
{
	for (unsigned nr_held = 0;;) {
		struct usnap_err why = {0};
		bool held = c->options.kill || c->stats.torn >= c->options.max_torn;
		int r = attempt(c, held, &why);

		if (r < 0 && !capture_stopping(c)) {
			usnap_fail_errno(&why, r, "cannot snapshot process %d", c->target->pid);
			if (err && !err->code)
				*err = why;
			return r;
		}
		if (c->failed || (c->torn && capture_memory_gone(c))) {
			if (!c->failure.code)
				capture_fail(c, -ESRCH,
					     "cannot snapshot process %d: it has ended or runs "
					     "another program now",
					     c->target->pid);
			if (pool_error(c->pool))
				image_writer_flush(c->writer, err); /* knows the reason in full */
			if (err && !err->code)
				*err = c->failure;
			return c->failure.code;
		}
		if (!c->torn)
			return 0;
		c->stats.torn++;
		if (held && ++nr_held >= MAX_HELD)
			return usnap_fail(err, -EAGAIN,
					  "cannot take a consistent snapshot of process %d: %s",
					  c->target->pid, c->stats.torn_reason);
		if (c->stats.torn >= c->options.max_torn && !c->options.hold) {
			usnap_fail(err, -EAGAIN,
				   "cannot take a consistent snapshot of process %d: %s",
				   c->target->pid, c->stats.torn_reason);
			return usnap_hint(err,
					  "without --no-hold its threads are held for the copy");
		}
		/* What leads there must be gone before the next T0. */
		if (c->inject.leads) {
			if (inject_remove(c) < 0)
				return usnap_fail(
					err, -EBUSY,
					"cannot take a consistent snapshot of process %d: %s",
					c->target->pid, c->stats.torn_reason);
			asks_forget(c);
		}
		inject_prepare(c);
	}
}

/* Everything is saved: its way into the image, and the index, take as long as letting go of the
 * target does, and need nothing of it. */
struct ending {
	struct capture *c;
	pthread_t tid;
	bool running;
	struct usnap_err err;
	int r;
};

static void *ending_thread(void *arg)
{
	struct ending *e = arg;
	struct capture *c = e->c;
	int r = pool_drain(c->pool);
	/* The writer has the words for its failure. */
	int f = image_writer_flush(c->writer, &e->err);

	e->r = f < 0 ? f : r < 0 ? usnap_fail_errno(&e->err, r, "cannot compress the pages") : 0;
	if (e->r == 0) {
		ghost_drop(c);
		e->r = image_writer_index(c->writer, &e->err);
	}
	return NULL;
}

static void ending_start(struct ending *e)
{
	e->running = pthread_create(&e->tid, NULL, ending_thread, e) == 0;
	if (!e->running)
		ending_thread(e); /* one thread more could not be had */
}

static int ending_join(struct ending *e, struct usnap_err *err)
{
	if (e->running)
		pthread_join(e->tid, NULL);
	if (e->r < 0 && err && !err->code)
		*err = e->err;
	return e->r;
}

static void capture_free(struct capture *c)
{
	pool_free(c->pool);
	pageset_free(c->pages);
	pstate_free(c->pstate);
	ghost_free(c);
	guards_free(&c->guards);
	sharers_free(&c->sharers);
	maps_free(&c->maps);
	segmap_clear(&c->segments);
	ranges_free(&c->log);
	ranges_free(&c->discards);
	ranges_free(&c->rescued);
	ranges_free(&c->young);
	ranges_free(&c->spared);
	ranges_free(&c->excluded);
	ranges_free(&c->unseen);
	asks_free(&c->asks);
	if (c->inject.fd >= 0)
		close(c->inject.fd);
	free(c->deferred);
	if (c->nowhere != MAP_FAILED)
		munmap(c->nowhere, PAGE_BYTES);
	if (c->mem_fd >= 0)
		close(c->mem_fd);
	if (c->maps_fd >= 0)
		close(c->maps_fd);
	if (c->wake_fd >= 0)
		close(c->wake_fd);
	pthread_mutex_destroy(&c->map_lock);
	pthread_mutex_destroy(&c->fault_lock);
	pthread_mutex_destroy(&c->state_lock);
	free(c);
}

static bool ksm_runs(void)
{
	cleanup_free char *run = NULL;

	return io_read_file_at(AT_FDCWD, "/sys/kernel/mm/ksm/run", 16, &run, NULL) == 0 &&
	       run[0] != '0';
}

/* How much would have been enough: what is left is taken to compress like what was written. */
static int hint_room(const struct capture *c, struct usnap_err *err)
{
	uint64_t saved = (c->nr_saved + c->stats.frozen_pages) * PAGE_BYTES;
	struct image_writer_stats stats;

	if (!err || (err->code != -ENOSPC && err->code != -EDQUOT))
		return 0;
	image_writer_get_stats(c->writer, &stats);
	double share = saved ? MIN(1.0, (double)stats.file_bytes / (double)saved) : 1.0;
	uint64_t most = MAX(c->stats.bytes_populated, saved) + stats.file_bytes;

	return usnap_hint(err,
			  "%llu MiB of the image were written; all of it needs about %llu MiB, "
			  "never more than %llu",
			  (unsigned long long)(stats.file_bytes >> 20),
			  (unsigned long long)((uint64_t)(share * (double)most) >> 20) + 1,
			  (unsigned long long)(most >> 20) + 1);
}

int capture_run(struct capture **ret, struct target *target, struct image_writer *writer,
		const struct capture_options *options, struct usnap_err *err)
{
	struct capture *c = calloc(1, sizeof(*c));
	if (!c)
		return usnap_fail_errno(err, -ENOMEM, "cannot begin a snapshot");
	c->options = *options;
	c->target = target;
	c->writer = writer;
	c->uffd = c->mem_fd = c->maps_fd = c->asks.fd = c->inject.fd = -1;
	facts_forget(&c->known.facts);
	c->ksm = ksm_runs();
	c->guards.shown = guards_are_shown(c);
	pthread_mutex_init(&c->map_lock, NULL);
	pthread_mutex_init(&c->fault_lock, NULL);
	pthread_mutex_init(&c->state_lock, NULL);
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	c->pages = pageset_new();
	/* Low, so that a range of any length from there on is a possible one. */
	c->nowhere = mmap((void *)MIB(1), PAGE_BYTES, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	int r = c->wake_fd < 0 || !c->pages || c->nowhere == MAP_FAILED ? -ENOMEM : 0;
	if (r < 0)
		usnap_fail_errno(err, r, "cannot begin a snapshot");
	if (r == 0)
		r = pool_new(&c->pool, writer, options->pool_bytes, options->nr_threads,
			     options->cancel, err);
	if (r == 0)
		r = attach(c, err);
	if (r == 0)
		r = attempts(c, err);
	if (r < 0)
		tracees_release(&c->tracees, c->target);
	struct ending ending = {.c = c};
	if (r == 0)
		ending_start(&ending);
	detach(c);
	if (r == 0)
		r = ending_join(&ending, err);
	if (r == 0) {
		cleanup_free char *stats = capture_stats_json(c);
		r = stats ? image_writer_commit(writer, stats, strlen(stats), err)
			  : usnap_fail_errno(err, -ENOMEM, "cannot write the statistics");
	}
	if (r < 0) {
		tracees_release(&c->tracees, c->target);
		hint_room(c, err);
		/* Encoders end before the writer may. */
		if (c->pool)
			image_writer_abort(writer);
		capture_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

void capture_end(struct capture *c, bool kill_target)
{
	if (!c)
		return;
	if (kill_target && c->tracees.n)
		syscall(SYS_pidfd_send_signal, c->target->pidfd, SIGKILL, NULL, 0);
	tracees_release(&c->tracees, c->target);
	capture_free(c);
}
