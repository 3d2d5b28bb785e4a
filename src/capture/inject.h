/*
 * The agent's gate for a target that has no agent: put there when an attempt
 * was torn, taken out when the snapshot is complete.
 *
 * DESIGN. Code, block and beacon are mapped at first, where they are in
 * nobody's way. At the very end of the freeze, while every thread stands still, five bytes of each of libc's
 * discarding functions become a jump: an instruction of five bytes is replaced
 * by another. A snapshotter that is killed leaves a gate that finds out that
 * nobody listens and lets everything through; so does the copy in a child that
 * is forked meanwhile.
 *
 * The image shows nothing of it. The mappings are left out of every list of
 * mappings (so that they are not registered either: a written page of them
 * raises no fault), libc's pages are what its file holds, and no thread is in
 * there at T0: the jumps come after that. Where a later attempt begins, all of
 * it is taken out first, or that attempt is not made.
 *
 * The tracer's, all of it.
 */
#ifndef USNAP_CAPTURE_INJECT_H
#define USNAP_CAPTURE_INJECT_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/gate.h"
#include "process/maps.h"

struct capture;

struct inject_site {
	uint64_t addr; /* of the five bytes; 0: not found */
	unsigned char old[5];
	bool leads; /* a jump has been put there */
};

struct inject {
	bool tried;
	int fd; /* /proc/PID/mem, of this memory whatever the process runs later */
	uint64_t base, len; /* what is mapped; len 0: nothing */
	bool leads; /* libc's functions lead there */
	struct inject_site sites[GATE_SITES];
};

/* When memory is registered, so that nobody else is at work: takes out what a snapshotter has left
 * that was killed. */
void inject_clean(struct capture *c);
/* Between two attempts: maps it. What is not possible is left be. */
void inject_prepare(struct capture *c);
bool inject_is_there(const struct capture *c);
uint64_t inject_beacon(const struct capture *c);
uint64_t inject_control(const struct capture *c);
/* Leaves it out of a list of mappings. */
void inject_hide(const struct capture *c, struct maps *maps);
/* At the end of the freeze. */
void inject_lead(struct capture *c);
/* Whether a jump is in that page. */
bool inject_has_written(const struct capture *c, uint64_t page);
/* Takes it out; the target runs. -EBUSY: it could not be stopped for that, or a thread is in there and
 * does not come out (or has left by longjmp()); it lets everything through. */
int inject_remove(struct capture *c);

#endif
