/*
 * What the parts of a capture share. Inside src/capture only.
 *
 * Locks, in the order in which they may be taken:
 *   fault_lock  the reader of the userfaultfd and all that handling a message
 *               touches: log, discards, deferred faults, the open block
 *   map_lock    segments
 */
#ifndef USNAP_CAPTURE_SESSION_H
#define USNAP_CAPTURE_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/uio.h>

#include "capture/asks.h"
#include "capture/capture.h"
#include "capture/inject.h"
#include "capture/pageset.h"
#include "capture/pool.h"
#include "capture/segmap.h"
#include "capture/sharers.h"
#include "capture/uffd.h"
#include "process/maps.h"
#include "process/pstate.h"
#include "process/remote.h"
#include "process/tracee.h"
#include "process/unlinked.h"

enum phase {
	PHASE_ARM, /* faults are logged and resolved */
	PHASE_PRESERVE, /* faults are copied first */
	PHASE_RELEASE, /* nothing is left to save: faults are resolved */
};

struct ranges {
	struct range *r;
	size_t n, room;
};

int ranges_add(struct ranges *rs, uint64_t start, uint64_t end);
/* Sorts, and joins what overlaps or lies at most gap bytes apart. */
void ranges_merge(struct ranges *rs, uint64_t gap);
uint64_t ranges_bytes(const struct ranges *rs);
void ranges_free(struct ranges *rs);

/* Files without a name (ghost.c). The tracer's. */
struct ghosts {
	struct unlinked_files files;
	struct ghost_early *early; /* copies made before the freeze, of the first nr_early files */
	size_t nr_early;
	uint64_t next_address; /* for contents: format.h */
	uint64_t frozen_left; /* bytes that may be copied in this freeze yet */
	struct ranges dropped; /* addresses of copies that do not count */
};

/* Guard markers (guards.c). The tracer's. */
struct guards {
	bool shown; /* by this kernel's scans */
	bool thorough; /* look through everything in the freeze */
	struct ranges early,
		seen; /* right before the freeze: where some were; what was looked at */
	struct ranges found; /* at T0 */
};

struct capture {
	struct capture_options options;
	struct capture_stats stats;
	struct target *target;
	struct image_writer *writer;
	struct remote_gadgets gadgets;
	struct pool *pool;
	struct pageset *pages;
	struct pstate *pstate;
	struct ghosts ghosts;
	struct guards guards;
	struct ranges excluded; /* by the program, as of T0: whole pages. The tracer's until then */
	struct uffd_known known; /* of the moment of attaching */
	struct tracees tracees; /* while stopped */
	struct sharers sharers; /* of the time before the freeze */
	bool ends_noticed; /* ended.h; known from the freeze on */
	char straggler; /* state of the thread that kept the last stop from being one */
	int uffd, mem_fd, maps_fd;
	uint64_t features;
	void *nowhere; /* an address of ours from which nothing can be read */
	bool ksm; /* the kernel merges pages */
	bool registered;

	struct maps maps; /* the latest; at and after T0 those of T0 */
	uint64_t frozen_extra_bytes;
	struct ranges unseen; /* mappings of T0 that were not looked at then (regions.c) */

	pthread_mutex_t map_lock;
	struct segmap segments;

	pthread_t fault_tid, sweep_tid;
	bool fault_running, sweep_running;
	int wake_fd; /* eventfd: makes the fault thread look around */
	_Atomic bool fault_quit;
	_Atomic int phase;
	_Atomic unsigned throttle_us; /* how long faults wait while arming; see arm_settle() */

	pthread_mutex_t fault_lock;
	struct ranges log; /* resolved while arming: to be protected again */
	struct ranges
		discards; /* seen while arming: what is populated there must be looked up again */
	/* Mapped since arming began. What has just appeared is likely to be gone soon (the stack of
	 * a spawned child, a buffer): copied during the freeze, it cannot be lost. The tracer's. */
	struct ranges young;
	/* Pages that the kernel writes to without waiting for us (futexes.h): sorted, not protected while
	 * arming. The tracer's. */
	struct ranges spared;
	bool armed_once;
	struct deferred *deferred;
	size_t nr_deferred, deferred_room;
	bool news; /* what was read last was not all in the list already */
	struct block *open_block;
	uint64_t last_fault_key;
	pid_t last_discarder;
	struct ranges rescued;
	struct asks asks;
	struct inject inject;

	/* Odd while events are being read; moves on with every event (sweep.c). */
	_Atomic uint64_t event_seq;

	_Atomic bool torn, failed;
	_Atomic bool sweep_done;
	_Atomic bool unseen_checked; /* regions_check_unseen() has been passed */
	_Atomic bool remaps; /* the target was seen to call mremap() */
	pthread_mutex_t state_lock; /* torn_reason, failure */
	struct usnap_err failure; /* of the fault or sweep thread */
	_Atomic uint64_t nr_saved;
};

/* This attempt cannot become an image. The first reason is kept. */
void capture_tear(struct capture *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* This snapshot cannot be taken at all. */
void capture_fail(struct capture *c, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static inline bool capture_stopping(const struct capture *c)
{
	return c->torn || c->failed;
}

/* The target has ended or runs another program: its old memory is gone. */
bool capture_memory_gone(const struct capture *c);
/* Calls fn with every thread stopped. -EAGAIN: not possible within stop_ns. */
int capture_all_stopped(struct capture *c, uint64_t stop_ns, int (*fn)(struct capture *));

/* regions.c: which mappings are captured, and how */
enum how {
	HOW_NONE, /* nothing to copy: a file, a device */
	HOW_PROTECT, /* registered and write-protected */
	HOW_FROZEN, /* written pages copied while every thread stands still */
};
enum how region_how(const struct capture *c, const struct vma *v);
/* Of the maps of T0: which mappings the freeze leaves alone, being of a file, clean, and large. */
int regions_choose(struct capture *c);
bool region_unseen(const struct capture *c, uint64_t start, uint64_t end);
/* Right before the freeze: of those, the ones that are not clean, so that it copies them. */
int regions_note_own(struct capture *c);
/* Soon after T0: whether they are clean now; else torn. */
int regions_check_unseen(struct capture *c);
/* Whether a mapping of a file has pages there that are not the file's: 1, 0, or an error. */
int region_has_own(struct capture *c, uint64_t start, uint64_t end);
/* Registration mode and unit of a HOW_PROTECT mapping. */
uint64_t region_mode(const struct vma *v);
uint64_t region_unit(const struct vma *v);
/* scan.c: what is populated, what is protected */
typedef int scan_fn(void *arg, uint64_t start, uint64_t end, uint64_t categories);
/* Calls fn for every range of [start, end) whose pages match all of mask (with
 * inverted bits) and any of anyof. */
int scan_pages(const struct capture *c, uint64_t start, uint64_t end, uint64_t inverted,
	       uint64_t mask, uint64_t anyof, scan_fn *fn, void *arg);
/* In steps: the kernel walks under mmap_lock, who maps memory waits for it, and faults behind him. */
int scan_pages_running(const struct capture *c, uint64_t start, uint64_t end, uint64_t inverted,
		       uint64_t mask, uint64_t anyof, scan_fn *fn, void *arg);
/* Brings the populated bits of a segment's part up to date. */
int scan_populated(struct capture *c, const struct segment *s, uint64_t start, uint64_t end,
		   bool frozen);
/* The same of a segment that is not protected yet: what is there, or being moved. */
int scan_unprotected(struct capture *c, const struct segment *s, bool frozen);
/* How much of [start, end) is there and protected. */
int64_t scan_protected_bytes(const struct capture *c, uint64_t start, uint64_t end);
/* 1: every page of [start, end) is there and protected; 0: not. */
int scan_protected(const struct capture *c, uint64_t start, uint64_t end);

/* For a shared mapping that is copied while nothing runs: what its object holds. */
int scan_shared(struct capture *c, const struct vma *v, scan_fn *fn, void *arg);
/* The object behind a shared mapping, opened through the mapping: a descriptor, or -1 without the
 * right to (CAP_CHECKPOINT_RESTORE). */
int scan_open_object(const struct capture *c, const struct vma *v);

/* memory.c: bytes of the target. An error where a page that the userfaultfd watches over is gone. */
int memory_read(const struct capture *c, uint64_t addr, void *buf, size_t len);
/* There it waits for whoever serves the fault: not for the fault thread. n pieces, back to back into
 * buf of len bytes. quick: they are few, and what is shared with other processes may become the
 * target's own. */
int memory_read_all(const struct capture *c, const struct iovec *pieces, unsigned n, void *buf,
		    size_t len, bool quick);

/* arm.c */
int arm(struct capture *c, struct usnap_err *err);
/* Protects what has been logged since, until the log is short: right before the freeze. */
int arm_settle(struct capture *c, struct usnap_err *err);
int arm_cover(struct capture *c, struct maps *maps, bool frozen, struct usnap_err *err);
/* Bytes of maps that would have to be armed yet. */
uint64_t arm_uncovered_bytes(struct capture *c, const struct maps *maps);
int arm_log(struct capture *c, uint64_t start, uint64_t end);
/* The first segment of those that cover parts of [at, end), as it is now; false: none does. */
bool arm_segment(struct capture *c, uint64_t at, uint64_t end, struct segment *ret);
int arm_protect_ranges(struct capture *c, const struct ranges *rs);

/* freeze.c */
int freeze(struct capture *c, bool hold, struct usnap_err *err);
/* Copies what is populated in [start, end) of private memory, up to *budget pages. */
struct copier;
int freeze_copy_populated(struct capture *c, struct copier *cp, uint64_t start, uint64_t end,
			  unsigned *budget);

/* fault.c */
int fault_start(struct capture *c, struct usnap_err *err);
void fault_stop(struct capture *c);
/* Real-time priority until T0. Saving pages may keep the thread busy for as long as the target writes:
 * the rest of its CPU, and kernel threads that hold locks which the target needs, would wait that long. */
void fault_set_hurried(struct capture *c, bool on);
/* Faults no longer wait, those that do so now are served at once. */
void fault_hurry(struct capture *c);
/* Reads and handles what is there. With fault_lock. */
int fault_drain(struct capture *c);
void fault_flush(struct capture *c);
enum served {
	SERVED,
	AGAIN /* an event is pending */,
	NO_BLOCK
};
/* Claims, copies and marks as saved what is populated and free in [key, key+len) of s. With
 * fault_lock. */
enum served fault_copy(struct capture *c, const struct segment *s, uint64_t key, uint64_t len);
/* Lifts the protection of what has been saved: [key, key+nr) at addr. */
int fault_finish(struct capture *c, const struct segment *s, uint64_t addr, uint64_t key,
		 unsigned nr_pages);

/* discard.c: with fault_lock */
void discard_event(struct capture *c, const struct uffd_msg *msg);
/* The first page of [start, end) that is populated and not saved; false: there is none. */
bool discard_first_unsaved(struct capture *c, uint64_t start, uint64_t end, uint64_t *ret_addr);
/* An event waits unread: saves what it is about to destroy, if it can be found out. */
void discard_rescue(struct capture *c);

/* copier.c: copies made while every thread stands still. Pages are gathered and read a block at a
 * time; none of them may be absent from registered memory. */
struct copier {
	struct block *block;
	struct iovec pieces[BLOCK_PAGES];
	unsigned nr_pieces;
	bool keep_zero; /* flush before it changes: what is absent there is as in a file */
};
int copier_add(struct capture *c, struct copier *cp, uint64_t addr, uint64_t key,
	       uint64_t nr_pages);
/* As copier_add(), from a descriptor: memory that reading through the mapping would allocate. */
int copier_add_file(struct capture *c, struct copier *cp, int fd, uint64_t offset, uint64_t key,
		    uint64_t nr_pages);
/* Zeros in place of what is there. */
int copier_add_zero(struct capture *c, struct copier *cp, uint64_t key, uint64_t nr_pages);
/* Reads and hands over what is gathered. */
int copier_flush(struct capture *c, struct copier *cp);
/* Gives the block back, unread. */
void copier_drop(struct capture *c, struct copier *cp);

/* frozen.c: what was written to mappings that cannot be protected */
int frozen_copy(struct capture *c, struct copier *cp);

/* ghost.c: files without a name. Before the freeze: finds them and copies what cannot change
 * unnoticed; ghost_freeze() while every thread stands still, after the state was collected;
 * ghost_drop() takes copies that do not count out of the page index, before it is written. */
int ghost_prepare(struct capture *c, struct usnap_err *err);
int ghost_freeze(struct capture *c);
void ghost_drop(struct capture *c);
void ghost_free(struct capture *c);

/* guards.c: before the freeze; while every thread stands still, with the mappings of T0; and when the
 * target runs again (the attempt may turn out to be torn) */
bool guards_are_shown(const struct capture *c);
int guards_prepare(struct capture *c);
int guards_freeze(struct capture *c);
int guards_check(struct capture *c);
void guards_free(struct guards *g);

/* exclude.c: while every thread stands still, with the mappings of T0 */
int exclude_read(struct capture *c);
/* Takes what is excluded out of the set of pages: after each look at what is populated. */
void exclude_pages(struct capture *c);
/* The first part of [at, end) that is excluded as a whole, or not at all; false: at is the end. */
bool exclude_next(const struct capture *c, uint64_t at, uint64_t end, struct range *ret,
		  bool *ret_excluded);
/* How many bytes from key on are excluded. Once T0 is past, from the fault thread too. */
uint64_t exclude_reach(const struct capture *c, uint64_t key);
/* For process.json. */
json_t *exclude_json(const struct capture *c);

/* sweep.c */
int sweep_start(struct capture *c, struct usnap_err *err);
void sweep_join(struct capture *c);
int sweep_held(struct capture *c, struct usnap_err *err);

/* release.c */
void release(struct capture *c);

/* identity.c: the members of the image that say what it is of */
int identity_write(struct capture *c, struct usnap_err *err);
int identity_write_state(struct capture *c, struct usnap_err *err);

/* capstats.c */
char *capture_stats_json(const struct capture *c);

#endif
