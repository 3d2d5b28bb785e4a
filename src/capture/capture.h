/*
 * A snapshot of a live process, from attach to the last page.
 *
 * capture_run() is called on the thread that will be the tracer; it starts
 * the fault, sweep and compress threads and has joined them when it returns.
 * Whatever it returns, the target runs on (or is dead, with kill) and
 * nothing of ours is left in it (promise 5 of uffd-snap(7)). Naming and fsync of
 * the image are the caller's; so is ending the target with kill, after that.
 */
#ifndef USNAP_CAPTURE_CAPTURE_H
#define USNAP_CAPTURE_CAPTURE_H

#include <jansson.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "image/writer.h"
#include "process/target.h"

struct capture_options {
	size_t pool_bytes; /* memory for copies */
	unsigned nr_threads; /* that compress */
	bool hold; /* after torn attempts, hold the threads for the copy */
	bool kill; /* stop at T0 and stay stopped until capture_end() */
	/* Bytes of an unlinked file that the image is to hold; and of all together that are copied
	 * in a brief stop. */
	uint64_t ghost_limit;
	/* What the writer's parent is, for snapshot.json; NULL: it has none. */
	const char *parent_id, *parent_path;
	/* What the sweep reads in a second at most, bytes; 0: no limit. A faulting thread and one that is
	 * held are not made to wait for it. */
	uint64_t rate_bytes_s;
	uint64_t depth; /* images that it continues, one after the other */
	const char *full_because; /* why there is none although one was wanted; or NULL */
	unsigned max_torn; /* torn attempts before holding or failing */
	const volatile sig_atomic_t *cancel; /* set by a signal handler */
	/* From the calling thread, about ten times a second; bytes of memory. */
	void (*progress)(void *arg, const char *what, uint64_t done, uint64_t total);
	void *progress_arg;
	/* Before the threads are stopped, in each attempt anew, while the target runs armed: it may take
	 * its time. A failure ends the snapshot. And when T0 is past. Both may be NULL. */
	int (*before_freeze)(void *arg, struct usnap_err *err);
	void (*after_freeze)(void *arg);
	void *freeze_arg;
	/* Sees process.json before it is written, while the target stands still with kill; a failure ends
	 * the snapshot. May be NULL. */
	int (*judge)(void *arg, const json_t *process, struct usnap_err *err);
	void *judge_arg;
	bool by_itself; /* the target has asked for it: the caller is no child that it would miss */
};

enum {
	CAPTURE_HISTOGRAM = 32
};

/* Nanoseconds, bytes and counts of the attempt that became the image; torn
 * counts the ones before. */
struct capture_stats {
	uint64_t t0_realtime_ns, t0_monotonic_ns, t0_boottime_ns;
	uint64_t attach_ns, arm_ns, pause_ns, preserve_ns, release_ns;
	uint64_t stop_ns, state_ns, memory_ns; /* parts of the pause */
	uint64_t freeze_retries, freeze_retry_pause_ns; /* stops given up: a thread sat in vfork */
	uint64_t arm_passes, arm_faults, arm_left;
	uint64_t pages, faults, fault_pages, missing_faults, sweep_pages, frozen_pages;
	uint64_t fault_latency[CAPTURE_HISTOGRAM]; /* [i]: handled within 2^i ns, as we see it */
	uint64_t fault_max_ns;
	uint64_t events, rescued_pages; /* discards seen; pages saved before one went on */
	uint64_t asks, asked_pages; /* discards that the agent held back; pages saved for them */
	bool injected; /* by a gate that was put there for this snapshot */
	unsigned ended_told; /* threads that had ended without a word to their joiners */
	bool inject_left; /* and could not be taken out again */
	uint64_t regions, threads, bytes_populated;
	unsigned torn;
	char torn_reason[128]; /* of the last torn attempt */
	bool held;
	uint64_t held_bytes; /* of shared memory that had to be copied while stopped */
};

struct capture;
struct usnap_image;

/* What names this run of the process: 32 hex digits that change with execve(2) only. */
int capture_run_id(const struct target *t, char ret[33]);

/* Makes parent, which is open, the writer's parent when it shows the same run of the process and
 * it and what it refers to is all there. Returns 1; 0 when the image has to be a full one, and why
 * ("the parent shows another process"). Then, and after the writer is closed, parent is free. */
int capture_adopt_parent(struct image_writer *w, struct usnap_image *parent, const struct target *t,
			 char *ret_why, size_t why_size);

int capture_run(struct capture **ret, struct target *target, struct image_writer *writer,
		const struct capture_options *options, struct usnap_err *err);
const struct capture_stats *capture_get_stats(const struct capture *c);
/* At most so long waited this share of the faults: the end of a bucket, but no more than the longest. */
uint64_t capture_fault_ns(const struct capture_stats *s, double share);

/* With kill: the target is ended (kill_target) or let go on; else nothing is
 * left to do. Frees c. NULL is fine. */
void capture_end(struct capture *c, bool kill_target);

#endif
