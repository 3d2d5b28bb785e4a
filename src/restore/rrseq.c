/*
 * Restartable sequences (rseq(2)) that threads were in at T0.
 *
 * A thread that was interrupted in one goes on at its abort handler. The kernel
 * decides that when the thread goes back to user mode, by the instruction
 * pointer: that of the stub would make it forget the sequence, and the thread
 * would go on, restored, in the middle of one that is guarded no more. So it
 * is done for the kernel, before threads register.
 */
#include <string.h>
#include <sys/uio.h>

#include "restore/rthreads_internal.h"

/* struct rseq_cs of linux/rseq.h. */
struct sequence {
	uint32_t version, flags;
	uint64_t start, length, abort;
};

#define RSEQ_CS_OFFSET 8 /* of the pointer in struct rseq */

static bool read_memory(const struct restore *r, uint64_t addr, void *buf, size_t len)
{
	struct iovec to = {buf, len}, from = {(void *)(uintptr_t)addr, len};

	return process_vm_readv(r->builder, &to, 1, &from, 1, 0) == (ssize_t)len;
}

static void abort_one(const struct restore *r, struct rthread *th)
{
	struct sequence cs;
	uint64_t at;
	uint32_t sig;

	/* Inside a system call it is inside no sequence. */
	if (!th->has_rseq || (int64_t)th->regs.orig_rax >= 0)
		return;
	if (!read_memory(r, th->rseq_addr + RSEQ_CS_OFFSET, &at, sizeof(at)) || !at ||
	    !read_memory(r, at, &cs, sizeof(cs)) || th->regs.rip - cs.start >= cs.length)
		return;
	/* The kernel goes to no place that is not marked as one. */
	if (read_memory(r, cs.abort - sizeof(sig), &sig, sizeof(sig)) && sig == th->rseq_sig)
		th->regs.rip = cs.abort;
}

void rrseq_abort(struct restore *r)
{
	struct rthreads *t = r->threads;

	for (size_t i = 0; i < t->n; i++)
		abort_one(r, &t->v[i]);
}
