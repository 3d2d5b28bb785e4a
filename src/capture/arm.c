/*
 * Arming: everything is registered and write-protected while the target
 * runs. What it touches meanwhile is resolved at once and logged; passes
 * protect the logged pages again until the log is short.
 *
 * Order matters, for each piece of memory: first the segment (so that a fault
 * finds its key), then the registration, then the protection, then the scan
 * for what is populated. A page that appears after the registration raises a
 * fault and is logged; one that is written after the protection likewise. What
 * the log has is protected and scanned again: it could be written meanwhile.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "capture/futexes.h"
#include "capture/session.h"
#include "common/util.h"

enum {
	MAX_PASSES = 16,
	FREE_PASSES = 2, /* before faults are made to wait */
	THROTTLE_US = 150,
	FEW_PAGES = 32, /* a log this short is handled while the target stands still */
};
#define STEP_BYTES ((uint64_t)64 << 20)
#define WAIT_NS 500000000u
/* One more call costs about as much as walking this much of a page table. */
#define MERGE_BYTES (32 * PAGE_BYTES)

int arm_log(struct capture *c, uint64_t start, uint64_t end)
{
	return ranges_add(&c->log, start, end);
}

/* Repeats while an event is pending: the fault thread will read it. */
static int protect_whole(const struct capture *c, uint64_t start, uint64_t len)
{
	uint64_t deadline = 0;
	int r;

	while ((r = uffd_protect(c->uffd, start, len)) == -EAGAIN && !c->failed) {
		uint64_t now = now_ns();

		/* While the target stands still there is nobody who could raise one, but for a
		 * process that shares its memory without being part of it. */
		if (!deadline)
			deadline = now + WAIT_NS;
		if (now > deadline)
			break;
		usleep(10);
	}
	return r;
}

/* All but what is spared, which is always whole pages of the smallest size. */
static int protect(const struct capture *c, uint64_t start, uint64_t len, uint64_t unit)
{
	const uint64_t end = start + len;
	int r = 0;

	for (size_t i = 0; i < c->spared.n && unit == PAGE_BYTES && r == 0; i++) {
		const struct range *g = &c->spared.r[i];

		if (g->end <= start)
			continue;
		if (g->start >= end)
			break;
		if (g->start > start)
			r = protect_whole(c, start, g->start - start);
		start = MIN(g->end, end);
	}
	return r == 0 && start < end ? protect_whole(c, start, end - start) : r;
}

static int protect_steps(const struct capture *c, const struct segment *s)
{
	int r = 0;

	for (uint64_t a = s->start; a < s->end && r == 0; a += STEP_BYTES)
		r = protect(c, a, MIN(STEP_BYTES, s->end - a), s->unit);
	return r;
}

/*
 * A range is registered wherever there is a mapping, holes notwithstanding;
 * and what is mapped into a hole later is not registered, and nobody is told.
 * UFFDIO_COPY is the one call that wants the whole range in one registered
 * mapping (mm/userfaultfd.c, validate_dst_vma): asked to copy from where there
 * is nothing it changes nothing, and says EFAULT when all is well. What is
 * unmapped from then on raises an event.
 */
static int check_registered(const struct capture *c, uint64_t start, uint64_t len)
{
	int r;

	while ((r = uffd_copy(c->uffd, start, c->nowhere, len)) == -EAGAIN && !c->failed)
		sched_yield();
	return r == -ENOENT || r == -EINVAL || r == -ESRCH ? r : 0;
}

/*
 * Whether the piece can be registered without a mapping being split, as far as the kernel tells;
 * *end is made to fit. Until the rest is registered, too, mremap() of what is split answers EFAULT
 * (mm/mremap.c): a program may take that for a lack of memory.
 */
static bool is_whole(struct capture *c, uint64_t start, uint64_t *end)
{
	struct range now;
	struct segment s;
	int r = maps_query(c->maps_fd, start, &now);

	if (r < 0)
		return r != -ENOENT;
	if (now.start < start && !arm_segment(c, start - 1, start, &s))
		return false;
	if (now.end > *end && arm_segment(c, *end, now.end, &s))
		now.end = s.start;
	*end = now.end;
	return true;
}

/* Registers, protects and scans one piece that no segment covers yet. */
static int cover_piece(struct capture *c, const struct vma *v, uint64_t start, uint64_t end,
		       bool frozen)
{
	/* Else the mapping has changed since it was read: the next pass sees what it is now. */
	if (!frozen && c->uffd >= 0 && !is_whole(c, start, &end))
		return 0;

	struct segment s = {.start = start, .end = end, .key = start, .unit = region_unit(v)};

	pthread_mutex_lock(&c->map_lock);
	int r = segmap_add(&c->segments, s);
	pthread_mutex_unlock(&c->map_lock);
	if (r < 0)
		return r;

	if (c->armed_once && ranges_add(&c->young, start, end) < 0)
		return -ENOMEM;
	if (c->uffd < 0)
		return 0; /* nothing will run until everything is copied */
	r = uffd_register(c->uffd, start, end - start, region_mode(v));
	if (r == 0)
		c->registered = true;
	/* Huge pages: a copy could take the last one there is from the target. */
	if (r == 0 && !frozen && s.unit == PAGE_BYTES)
		r = check_registered(c, start, end - start);
	/* Of hugetlbfs, what is being moved looks like what is absent and protected, once that is. */
	if (r == 0 && s.unit != PAGE_BYTES)
		r = scan_unprotected(c, &s, frozen);
	if (r == 0)
		r = protect_steps(c, &s);
	if (r == 0 && !(frozen && s.unit != PAGE_BYTES))
		r = scan_populated(c, &s, start, end, frozen);
	if (r < 0) {
		pthread_mutex_lock(&c->map_lock);
		segmap_cut(&c->segments, start, end);
		pthread_mutex_unlock(&c->map_lock);
		/* The mapping has changed since it was read: the next pass sees what it is now. */
		if (!frozen && (r == -ENOENT || r == -EINVAL || r == -ENOMEM))
			return 0;
	}
	return r;
}

static int fail_cover(struct capture *c, const struct vma *v, int r, struct usnap_err *err)
{
	if (r == -ESRCH)
		return usnap_fail(
			err, r,
			"cannot snapshot process %d: it has ended or runs another program now",
			c->target->pid);
	usnap_fail_errno(err, r, "cannot protect the memory at %#llx of process %d",
			 (unsigned long long)v->start, c->target->pid);
	if (r == -EBUSY)
		usnap_hint(err, "another snapshot of it is running, or it uses userfaultfd itself");
	return r;
}

/* Cuts away segments of which the mappings know nothing any more. */
static int trim(struct capture *c, const struct maps *maps)
{
	uint64_t at = 0;
	int r = 0;

	pthread_mutex_lock(&c->map_lock);
	for (size_t i = 0; i < maps->n && r == 0; i++) {
		if (region_how(c, &maps->v[i]) != HOW_PROTECT)
			continue;
		if (maps->v[i].start > at)
			r = segmap_cut(&c->segments, at, maps->v[i].start);
		at = maps->v[i].end;
	}
	if (r == 0)
		r = segmap_cut(&c->segments, at, UINT64_MAX);
	pthread_mutex_unlock(&c->map_lock);
	return r;
}

/* The first piece of v from addr on that no segment covers; false: none. */
static bool uncovered(struct capture *c, const struct vma *v, uint64_t addr, struct range *ret)
{
	bool found = false;

	pthread_mutex_lock(&c->map_lock);
	while (addr < v->end && !found) {
		const struct segment *s = segmap_first(&c->segments, addr);

		if (s && s->start <= addr) {
			addr = s->end;
		} else {
			*ret = (struct range){addr, s ? MIN(v->end, s->start) : v->end};
			found = true;
		}
	}
	pthread_mutex_unlock(&c->map_lock);
	return found;
}

uint64_t arm_uncovered_bytes(struct capture *c, const struct maps *maps)
{
	uint64_t bytes = 0;
	struct range piece;

	for (size_t i = 0; i < maps->n; i++)
		if (region_how(c, &maps->v[i]) == HOW_PROTECT)
			for (uint64_t a = maps->v[i].start; uncovered(c, &maps->v[i], a, &piece);
			     a = piece.end)
				bytes += piece.end - piece.start;
	return bytes;
}

/* In the freeze nothing changes, and EINVAL is the mapping's nature, which flags would have told. */
static bool is_unprotectable(const struct capture *c, const struct vma *v, int r, bool frozen)
{
	return r == -EINVAL && frozen && c->uffd >= 0 && v->kind == VMA_ANON && !v->has_flags;
}

int arm_cover(struct capture *c, struct maps *maps, bool frozen, struct usnap_err *err)
{
	int r = trim(c, maps);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot arm process %d", c->target->pid);
	for (size_t i = 0; i < maps->n; i++) {
		struct vma *v = &maps->v[i];
		struct range piece;

		if (region_how(c, v) != HOW_PROTECT)
			continue;
		for (uint64_t a = v->start; uncovered(c, v, a, &piece); a = piece.end) {
			r = cover_piece(c, v, piece.start, piece.end, frozen);
			if (is_unprotectable(c, v, r, frozen)) {
				v->unprotectable = true;
				break;
			}
			if (r < 0)
				return fail_cover(c, v, r, err);
		}
		if (c->options.cancel && *c->options.cancel)
			return usnap_fail(err, -ECANCELED, "interrupted");
	}
	return 0;
}

bool arm_segment(struct capture *c, uint64_t at, uint64_t end, struct segment *ret)
{
	if (at >= end)
		return false;
	pthread_mutex_lock(&c->map_lock);
	const struct segment *s = segmap_first(&c->segments, at);
	bool found = s && s->start < end;
	if (found)
		*ret = *s;
	pthread_mutex_unlock(&c->map_lock);
	return found;
}

/* Protects what segments cover of a range, in units of theirs. */
static int protect_range(struct capture *c, uint64_t start, uint64_t end)
{
	struct segment s;

	for (uint64_t at = start; arm_segment(c, at, end, &s); at = s.end) {
		uint64_t from = ALIGN_DOWN(MAX(at, s.start), s.unit);
		uint64_t to = MIN(ALIGN_UP(MIN(end, s.end), s.unit), s.end);
		int r = protect(c, from, to - from, s.unit);
		/* A part may be gone again: its event is on the way. */
		for (; r == -ENOENT && from < to; from += s.unit) {
			r = protect(c, from, s.unit, s.unit);
			if (r == 0)
				r = -ENOENT;
		}
		if (r < 0 && r != -ENOENT)
			return r;
	}
	return 0;
}

int arm_protect_ranges(struct capture *c, const struct ranges *rs)
{
	int r = 0;

	for (size_t i = 0; i < rs->n && r == 0; i++)
		r = protect_range(c, rs->r[i].start, rs->r[i].end);
	return r;
}

/*
 * Sees what has become populated in ranges that were not protected for a while: what was the zero
 * page could be written without a fault. After the protection, as when a piece is covered.
 */
static int look_again(struct capture *c, const struct ranges *rs)
{
	int r = 0;

	for (size_t i = 0; i < rs->n && r == 0; i++) {
		struct segment s;

		for (uint64_t at = rs->r[i].start; r == 0 && arm_segment(c, at, rs->r[i].end, &s);
		     at = s.end)
			r = scan_populated(c, &s, MAX(at, s.start), MIN(rs->r[i].end, s.end),
					   false);
	}
	return r;
}

/* Takes the log and protects what is in it. Returns how many pages that were. */
static int64_t protect_log(struct capture *c)
{
	pthread_mutex_lock(&c->fault_lock);
	struct ranges log = c->log;
	c->log = (struct ranges){0};
	pthread_mutex_unlock(&c->fault_lock);

	int64_t nr = (int64_t)(ranges_bytes(&log) >> PAGE_SHIFT);
	ranges_merge(&log, MERGE_BYTES);
	int r = arm_protect_ranges(c, &log);
	if (r == 0)
		r = look_again(c, &log);
	ranges_free(&log);
	return r < 0 ? r : nr;
}

int arm_settle(struct capture *c, struct usnap_err *err)
{
	int64_t left = INT64_MAX, before;
	unsigned idle = 0;

	/*
	 * Until the log is short, or two passes in a row have not made it shorter. Threads that
	 * write all over their memory fill it as fast as a pass empties it: then each of their
	 * faults is made to wait a little, which leaves them as many faults in a pass as fit.
	 */
	for (unsigned pass = 0; pass < MAX_PASSES && left > FEW_PAGES && idle < 2; pass++) {
		before = left;
		if (pass >= FREE_PASSES)
			c->throttle_us = THROTTLE_US;
		left = futexes_note(c);
		if (left == 0)
			left = protect_log(c);
		if (left < 0)
			return usnap_fail_errno(err, (int)left,
						"cannot protect the memory of process %d",
						c->target->pid);
		idle = left >= before ? idle + 1 : 0;
		c->stats.arm_passes++;
	}
	return capture_stopping(c) ? -ECANCELED : 0;
}

static bool lacks_size(const struct maps *maps)
{
	for (size_t i = 0; i < maps->n; i++)
		if (maps->v[i].kind == VMA_HUGETLB && !maps->v[i].has_flags)
			return true;
	return false;
}

static int read_maps(struct capture *c, bool flags, struct maps *ret)
{
	int r = flags ? maps_read_flags(c->target->procfd, ret) : maps_read(c->target->procfd, ret);

	if (r < 0)
		return r;
	maps_inherit_flags(ret, &c->maps);
	if (!lacks_size(ret))
		return 0;
	maps_free(ret);
	return maps_read_flags(c->target->procfd, ret);
}

int arm(struct capture *c, struct usnap_err *err)
{
	/* The second time for what has appeared during the first. Flags are of the moment of attaching:
	 * to read them again would make who maps memory wait again. But after a torn attempt the gate
	 * has left pages that are not libc's file's. */
	for (unsigned pass = 0; pass < 2; pass++) {
		struct maps maps = {0};
		int r = read_maps(c, pass == 0 && c->stats.torn, &maps);

		if (r < 0)
			return usnap_fail_errno(err, r, "cannot read the mappings of process %d",
						c->target->pid);
		maps_free(&c->maps);
		inject_hide(c, &maps);
		c->maps = maps;
		if ((r = futexes_note(c)) < 0)
			return usnap_fail_errno(err, r, "cannot arm process %d", c->target->pid);
		r = arm_cover(c, &c->maps, false, err);
		if (r < 0)
			return r;
		c->armed_once = true;
	}
	return arm_settle(c, err);
}
