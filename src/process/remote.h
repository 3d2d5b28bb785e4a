/*
 * System calls made by a stopped thread of the target, in a batch.
 *
 * DESIGN. Nothing is mapped and no code is written. The batch is a chain of
 * signal frames below the thread's red zone (where the kernel would put one
 * itself): each frame is what rt_sigreturn(2) restores, its context points
 * at a "syscall; ret" of the target's own text with the registers of one
 * call, and its return address is the target's own signal restorer, which
 * restores the next frame. The last frame is the thread's own context. So
 * from the instant the thread is let go the chain runs to its end by itself:
 * a tracer killed at any point leaves a thread that finishes the batch and
 * goes on where it was. The bytes used are put back afterwards.
 *
 * Return values are lost on the way; what a call writes is not. Make calls
 * that write their result, and compare with REMOTE_FILL to see whether it did.
 */
#ifndef USNAP_PROCESS_REMOTE_H
#define USNAP_PROCESS_REMOTE_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "process/target.h"
#include "process/tracee.h"

enum { REMOTE_MAX_CALLS = 128, REMOTE_MAX_DATA = 8192, REMOTE_FILL = 0xA5 };

struct remote_call {
	uint64_t nr;
	uint64_t args[6];
	uint8_t data_args; /* bit i: args[i] is an offset into data */
};

struct remote_batch {
	struct remote_call calls[REMOTE_MAX_CALLS];
	unsigned nr_calls;
	/* Lies in the target while the batch runs: what calls read, and what
	 * they write. After remote_run() it holds what they wrote. */
	unsigned char data[REMOTE_MAX_DATA];
	unsigned data_len;
};

void remote_batch_init(struct remote_batch *b);

/* Reserves len bytes of data, 8-aligned, filled with REMOTE_FILL (or copied
 * from init when not NULL). Returns the offset. -ENOSPC when it is full. */
int remote_batch_data(struct remote_batch *b, const void *init, size_t len);

/* Adds a call. Returns its number or -ENOSPC. */
int remote_batch_call(struct remote_batch *b, long nr, unsigned data_args, uint64_t a0, uint64_t a1,
		      uint64_t a2, uint64_t a3, uint64_t a4);

/* True when [offset, offset+len) of data still holds nothing but REMOTE_FILL. */
int remote_batch_untouched(const struct remote_batch *b, unsigned offset, size_t len);

/* What is known of the target's text: where the two pieces of code lie.
 * Found once per target without stopping it. */
struct remote_gadgets {
	uint64_t syscall_ret; /* syscall; ret */
	uint64_t restorer;    /* mov $__NR_rt_sigreturn, %eax; syscall */
};

struct maps;
int remote_find_gadgets(struct remote_gadgets *ret, const struct target *t, const struct maps *maps,
			struct usnap_err *err);

/* Runs the batch on a stopped thread; afterwards the thread is stopped
 * again, its registers and memory as before. */
int remote_run(struct tracee *t, const struct target *target, const struct remote_gadgets *g,
	       struct remote_batch *b, struct usnap_err *err);

#endif
