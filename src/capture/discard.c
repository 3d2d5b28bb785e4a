/*
 * Discards: the target gives up or moves memory while a snapshot of it is
 * under way (promise 6 of uffd-snap(7)).
 *
 * madvise() raises REMOVE and waits, pages intact, until the event is read;
 * munmap() and mremap() raise theirs when the pages are gone or moved
 * (userfaultfd(2), fs/userfaultfd.c). So a discard by madvise() can be
 * prevented from doing harm by looking before reading: who waits in madvise()
 * shows its arguments in /proc/PID/task/TID/syscall. What munmap() has taken
 * unsaved tears the attempt. What mremap() moves is still there, still
 * protected, and is captured where it lies now.
 *
 * Those two queue their events when they have let go of the mappings
 * (mmap_lock). Another thread can move memory to where something has just
 * gone, and queue its event first. Which of the two lies there is told by the
 * pages: what has not been saved is protected where it is, and absent from
 * where it was.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/io.h"
#include "common/util.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

/* More than this is not saved for one madvise(): the caller, and every fault
 * behind it, waits for the copy. */
#define RESCUE_BYTES ((uint64_t)256 << 20)

/* Calls fn for each part of [start, end) that a segment covers. */
static int for_each_part(struct capture *c, uint64_t start, uint64_t end,
			 int (*fn)(struct capture *, const struct segment *, uint64_t, uint64_t,
				   void *),
			 void *arg)
{
	struct segment s;
	int r = 0;

	for (uint64_t at = start; r == 0 && arm_segment(c, at, end, &s); at = s.end) {
		uint64_t from = MAX(at, s.start), to = MIN(end, s.end);

		r = fn(c, &s, s.key + (from - s.start), to - from, arg);
	}
	return r;
}

/* Populated pages of a key range that are not saved; the first one's key in *arg. */
static int find_unsaved(struct capture *c, const struct segment *s, uint64_t key, uint64_t len,
			void *arg)
{
	uint64_t end = key + len, at;

	for (struct chunk *k; key < end && (k = pageset_next(c->pages, key, &at)) && at < end;
	     key = at + CHUNK_BYTES)
		for (unsigned p = 0; p < CHUNK_PAGES; p++) {
			uint64_t page = at + p * PAGE_BYTES;

			if (page >= key && page < end && chunk_test(k->populated, p) &&
			    !chunk_test(k->saved, p)) {
				*(uint64_t *)arg = s->start + (page - s->key);
				return 1;
			}
		}
	return 0;
}

bool discard_first_unsaved(struct capture *c, uint64_t start, uint64_t end, uint64_t *ret_addr)
{
	return for_each_part(c, start, end, find_unsaved, ret_addr) > 0;
}

/* Memory is gone or about to go. */
static void lose(struct capture *c, uint64_t start, uint64_t end, const char *how)
{
	uint64_t addr;

	if (c->phase == PHASE_ARM) {
		if (ranges_add(&c->discards, start, end) < 0)
			capture_fail(c, -ENOMEM, "cannot keep track of discards: out of memory");
		return;
	}
	if (c->phase == PHASE_PRESERVE && for_each_part(c, start, end, find_unsaved, &addr) > 0)
		capture_tear(c, "%s discarded the page at %#llx before it was saved", how,
			     (unsigned long long)addr);
}

/* Was saved while an event was pending, so that the copy could not be validated by a
 * probe: it is valid unless a second discard hit the same place. */
static void check_rescued(struct capture *c, uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < c->rescued.n; i++)
		if (c->rescued.r[i].start < end && start < c->rescued.r[i].end)
			capture_tear(c, "two discards of the page at %#llx at once",
				     (unsigned long long)start);
}

/* ---- events that overtake each other ------------------------------------------------------------ */

/* What has not been saved. */
struct unsaved {
	uint64_t bytes, there; /* in all; where it should lie, as it was */
};

static int look_part(struct capture *c, const struct segment *s, uint64_t key, uint64_t len,
		     void *arg)
{
	struct unsaved *ret = arg;
	uint64_t end = key + len, addr;

	while (key < end && find_unsaved(c, s, key, end - key, &addr)) {
		uint64_t from = s->key + (addr - s->start), n = PAGE_BYTES;

		while (from + n < end && find_unsaved(c, s, from + n, PAGE_BYTES, &(uint64_t){0}))
			n += PAGE_BYTES;
		int64_t there = scan_protected_bytes(c, addr, addr + n);
		ret->bytes += n;
		ret->there += there > 0 ? (uint64_t)there : 0;
		key = from + n;
	}
	return 0;
}

/* Of what lies in [start, end) by the events so far. */
static struct unsaved look(struct capture *c, uint64_t start, uint64_t end)
{
	struct unsaved r = {0};

	for_each_part(c, start, end, look_part, &r);
	return r;
}

/* True when the event is older than what has been moved to its range since. */
static bool overtaken(struct capture *c, uint64_t start, uint64_t end)
{
	if (c->phase != PHASE_PRESERVE)
		return false;
	struct unsaved u = look(c, start, end);
	return u.bytes && u.there == u.bytes;
}

/* Of two moves whose events overtake each other, which went first cannot be told for certain. */
static int follow(struct capture *c, uint64_t from, uint64_t to, uint64_t len)
{
	uint64_t addr;

	if (c->phase == PHASE_PRESERVE &&
	    (look(c, from, from + len).there || discard_first_unsaved(c, to, to + len, &addr)))
		capture_tear(c, "two calls of mremap() at once moved the memory at %#llx",
			     (unsigned long long)from);
	pthread_mutex_lock(&c->map_lock);
	int r = segmap_move(&c->segments, from, to, len);
	pthread_mutex_unlock(&c->map_lock);
	return r;
}

/* ---- events -------------------------------------------------------------------------------------- */

/* The kernel has split the huge pages at the edges of a range; where it moves by anything but whole
 * huge pages, those inside as well. They are no units any more. */
static int split_huge(struct capture *c, const struct segment *s, uint64_t key, uint64_t len,
		      void *arg)
{
	bool all = *(const bool *)arg;
	uint64_t edges[] = {key, key + len};

	for (size_t i = 0; i < ARRAY_SIZE(edges); i++) {
		struct chunk *ch =
			edges[i] % CHUNK_BYTES ? pageset_chunk(c->pages, edges[i], false) : NULL;

		if (ch)
			atomic_store(&ch->huge, false);
	}
	for (uint64_t k = key, at; all && k < key + len; k = at + CHUNK_BYTES) {
		struct chunk *ch = pageset_next(c->pages, k, &at);

		if (!ch || at >= key + len)
			break;
		atomic_store(&ch->huge, false);
	}
	return 0;
}

void discard_event(struct capture *c, const struct uffd_msg *msg)
{
	bool all = false;
	uint64_t start, end, to;
	int r = 0;

	c->stats.events++;
	switch (msg->event) {
	case UFFD_EVENT_REMOVE:
		lose(c, msg->arg.remove.start, msg->arg.remove.end, "madvise()");
		break;
	case UFFD_EVENT_UNMAP:
		start = msg->arg.remove.start;
		end = msg->arg.remove.end;
		check_rescued(c, start, end);
		if (overtaken(c, start, end))
			break;
		lose(c, start, end, "munmap()");
		for_each_part(c, start, end, split_huge, &all);
		pthread_mutex_lock(&c->map_lock);
		r = segmap_cut(&c->segments, start, end);
		pthread_mutex_unlock(&c->map_lock);
		break;
	case UFFD_EVENT_REMAP:
		c->remaps = true;
		start = msg->arg.remap.from;
		end = start + msg->arg.remap.len;
		to = msg->arg.remap.to;
		check_rescued(c, start, end);
		check_rescued(c, to, to + msg->arg.remap.len);
		all = (start - to) % CHUNK_BYTES;
		for_each_part(c, start, end, split_huge, &all);
		if (c->phase == PHASE_ARM) {
			/* Armed anew where it is now, by the next pass. */
			pthread_mutex_lock(&c->map_lock);
			r = segmap_cut(&c->segments, start, end);
			if (r == 0)
				r = segmap_cut(&c->segments, to, to + msg->arg.remap.len);
			pthread_mutex_unlock(&c->map_lock);
			if (r == 0)
				r = ranges_add(&c->discards, start, end);
		} else if (end == start) {
			/* mremap() with an old size of 0 makes a second mapping, unprotected. */
			capture_tear(c, "mremap() duplicated the mapping at %#llx",
				     (unsigned long long)start);
		} else {
			r = follow(c, start, to, end - start);
		}
		break;
	}
	if (r < 0)
		capture_fail(c, r, "cannot keep track of mappings: out of memory");
}

struct rescue {
	uint64_t left; /* bytes that may still be copied */
};

static int rescue_part(struct capture *c, const struct segment *s, uint64_t key, uint64_t len,
		       void *arg)
{
	struct rescue *rescue = arg;

	/* A block's worth at a time, each seen to be protected before and after it is read:
	 * the probe that validates copies elsewhere says nothing while an event is pending. */
	for (uint64_t k = key, end = key + len; k < end;) {
		struct chunk *ch = pageset_chunk(c->pages, k, false);
		uint64_t stop = MIN(end, ALIGN_DOWN(k, CHUNK_BYTES) + CHUNK_BYTES);

		for (; ch && k < stop; k += PAGE_BYTES) {
			unsigned p = chunk_page(k);

			if (!chunk_test(ch->populated, p) || chunk_test(ch->saved, p))
				continue;
			/* The sweep is at it; it gives the page back when it sees the event. */
			for (int i = 0; chunk_test(ch->claimed, p) && !chunk_test(ch->saved, p);
			     i++) {
				if (i > 1000 || c->sweep_done)
					return 1;
				usleep(20); /* not sched_yield(): this thread may go before the sweep's */
			}
			if (!chunk_claim(ch, p))
				continue;
			uint64_t addr = s->start + (k - s->key);
			struct block *b = c->open_block;
			if (!b)
				b = c->open_block = pool_try_get(c->pool);
			struct block before;
			bool ok = b && rescue->left >= PAGE_BYTES &&
				  scan_protected(c, addr, addr + PAGE_BYTES) == 1;
			if (ok) {
				before = *b;
				ok = memory_read(c, addr, block_add(b, k, 1), PAGE_BYTES) == 0 &&
				     scan_protected(c, addr, addr + PAGE_BYTES) == 1;
				if (!ok)
					*b = before;
			}
			if (!ok) {
				atomic_fetch_and(&ch->claimed[p / 64], ~((uint64_t)1 << (p % 64)));
				return 1;
			}
			chunk_set(ch->saved, p);
			atomic_fetch_add(&c->nr_saved, 1);
			c->stats.rescued_pages++;
			rescue->left -= PAGE_BYTES;
			if (ranges_add(&c->rescued, addr, addr + PAGE_BYTES) < 0)
				return 1;
			if (b->nr_pages == BLOCK_PAGES)
				fault_flush(c);
		}
		k = stop;
	}
	return 0;
}

/* The arguments of the madvise() that a thread waits in; false when it does not. */
static bool in_madvise(const struct capture *c, pid_t tid, struct range *ret)
{
	char path[64];
	cleanup_free char *text = NULL;
	unsigned long long nr, start, len, advice;

	snprintf(path, sizeof(path), "task/%d/syscall", tid);
	if (io_read_file_at(c->target->procfd, path, 512, &text, NULL) < 0 ||
	    sscanf(text, "%llu %llx %llx %llx", &nr, &start, &len, &advice) != 4 ||
	    nr != SYS_madvise)
		return false;
	if (advice != MADV_DONTNEED && advice != MADV_FREE && advice != MADV_REMOVE &&
	    advice != MADV_DONTNEED_LOCKED)
		return false;
	if (start + len < start)
		return false;
	*ret = (struct range){start, ALIGN_UP(start + len, PAGE_BYTES)};
	return true;
}

void discard_rescue(struct capture *c)
{
	struct rescue rescue = {.left = RESCUE_BYTES};
	struct range range;

	if (c->phase != PHASE_PRESERVE || capture_stopping(c))
		return;
	/* Most programs give memory back from the same thread again and again. */
	if (c->last_discarder && in_madvise(c, c->last_discarder, &range))
		for_each_part(c, range.start, range.end, rescue_part, &rescue);

	cleanup_fd int fd = openat(c->target->procfd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	if (!d)
		return;
	fd = -1;
	const struct dirent *e;
	while ((e = readdir(d)) && uffd_event_pending(c->uffd)) {
		pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);

		if (tid <= 0 || !in_madvise(c, tid, &range))
			continue;
		c->last_discarder = tid;
		for_each_part(c, range.start, range.end, rescue_part, &rescue);
	}
}
