/*
 * System calls made in the process that is being built.
 *
 * A memfd mapped at the same address by nobody else: in the process at an
 * address that is free in the builder as in the image, in the restorer
 * anywhere. It holds a page of code, without stack or data of its own, and
 * an arena of lanes and batches. Each thread of the process has a lane and
 * sits in the code waiting on the lane's futex; the restorer puts the address
 * of a batch into the lane, the thread makes the calls one after the other
 * and wakes the restorer. All signals are blocked meanwhile.
 *
 * Used by the restorer's main thread only.
 */
#ifndef USNAP_RESTORE_STUB_H
#define USNAP_RESTORE_STUB_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

/* Read and written by the code: see stub_code.c before changing it. */
struct stub_call {
	int64_t nr;
	uint64_t args[6];
	int64_t ret; /* what it returned; STUB_NOT_MADE when a call before it failed */
	uint64_t flags; /* STUB_MAY_FAIL */
	uint64_t pad[7];
};

#define STUB_NOT_MADE INT64_MIN

enum {
	STUB_MAY_FAIL = 1 /* the batch goes on all the same */
};

struct stub;

/* A thread of the process. Lane 0 is the main thread. */
struct stub_lane;

/* A batch under construction, in the shared arena. */
struct stub_batch {
	struct stub *stub;
	struct stub_call *calls;
	size_t nr_calls, room;
	uint64_t calls_addr; /* as the process sees them */
	bool full; /* a call or data did not fit: stub_run() says -ENOSPC */
};

/* Chooses the address: free in this process and in none of the ranges taken[] (sorted, [start,
 * end)), below the top of user space. */
struct stub_range {
	uint64_t start, end;
};
int stub_new(struct stub **ret, const struct stub_range *taken, size_t nr_taken,
	     struct usnap_err *err);
void stub_free(struct stub *s);

uint64_t stub_addr(const struct stub *s); /* in the process */
size_t stub_len(const struct stub *s); /* bytes */

/* In the builder: maps the stub at its address. 0 or -errno. */
int stub_map_here(struct stub *s);
/* In the builder: becomes lane 0. Does not return. */
_Noreturn void stub_enter(struct stub *s);

/* In the restorer: waits until lane 0 waits for work, or the process has ended (-ESRCH). From here
 * on all waiting ends, with -ESRCH as well, once *cancel is not 0: the process may be stopped, or in
 * a call that does not return. cancel may be NULL. */
int stub_wait_ready(struct stub *s, int pidfd, const volatile sig_atomic_t *cancel);

/* Empties the arena of batches; those that were begun are void. */
void stub_reset(struct stub *s);
void stub_begin(struct stub_batch *b, struct stub *s, size_t max_calls);
/* Adds a call; returns its number, or -ENOSPC. */
int stub_add(struct stub_batch *b, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
	     uint64_t a4, uint64_t a5);
/* As stub_add(), and failing does not end the batch. */
int stub_try(struct stub_batch *b, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
	     uint64_t a4, uint64_t a5);
/* Reserves len bytes of the arena, 16-aligned, copied from init or zero. Returns the address in the
 * process, 0 when there is no room; stub_local() is the same place here. */
uint64_t stub_data(struct stub_batch *b, const void *init, size_t len);
void *stub_local(const struct stub *s, uint64_t addr);

/* A lane for one more thread: its address is what stub_add_clone() needs. NULL: no room. */
struct stub_lane *stub_lane_new(struct stub *s);
/* Adds clone3(2) of a thread that becomes lane. args: struct clone_args in the arena. */
int stub_add_clone(struct stub_batch *b, uint64_t args, size_t args_len,
		   const struct stub_lane *lane);
struct stub_lane *stub_main_lane(struct stub *s);

/* Runs a batch in one thread. 0 when every call was made and none failed that may not; else the
 * negative errno of the first that failed, its number in ret_failed when not NULL; -ESRCH when the
 * process has ended. */
int stub_run(struct stub_batch *b, struct stub_lane *lane, size_t *ret_failed);
/* Runs each batch in its lane, all at the same time. */
int stub_run_all(struct stub_batch *const *b, struct stub_lane *const *lanes, size_t n,
		 size_t *ret_batch, size_t *ret_failed);

/* Convenience: one call in the main thread. Returns what it returned. */
int64_t stub_call(struct stub *s, long nr, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
		  uint64_t a4, uint64_t a5);

/* The address of a "syscall" instruction in the stub, for calls made under ptrace. */
uint64_t stub_syscall_insn(const struct stub *s);

#endif
