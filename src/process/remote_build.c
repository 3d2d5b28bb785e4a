/*
 * A chain laid out in the target, below the red zone of the thread's stack,
 * addresses growing downwards:
 *
 *   rsp - 128 ->  xstate of the thread (64-aligned): every frame points at it
 *                 data of the batch
 *                 frame n     the thread's own context
 *                 ...
 *                 frame 1     context of call 1
 *   first sp ->   (call 0 needs no frame: the tracer sets its registers)
 *
 * Chained by returns there are no frames but the last: build_returns().
 */
#include "process/remote_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "common/compat.h"
#include "common/util.h"

enum {
	RED_ZONE = 128,
	XSTATE_MAX = 16384,
};

int vm_read(pid_t pid, uint64_t addr, void *buf, size_t len)
{
	struct iovec local = {buf, len}, remote = {(void *)(uintptr_t)addr, len};
	ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);

	return n < 0 ? -errno : (size_t)n == len ? 0 : -EFAULT;
}

int vm_write(pid_t pid, uint64_t addr, const void *buf, size_t len)
{
	struct iovec local = {(void *)buf, len}, remote = {(void *)(uintptr_t)addr, len};
	ssize_t n = process_vm_writev(pid, &local, 1, &remote, 1, 0);

	return n < 0 ? -errno : (size_t)n == len ? 0 : -EFAULT;
}

/* Signals that must not be blocked: were one forced on the thread while it is,
 * the kernel would reset its action. */
uint64_t chain_mask(const struct chain *c, bool unblock_stop)
{
	uint64_t m = ~0ull;

	static const int forced[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
	for (size_t i = 0; i < ARRAY_SIZE(forced); i++)
		m &= ~(1ull << (forced[i] - 1));
	if (unblock_stop)
		m &= ~(1ull << (c->sig - 1));
	return m;
}

/*
 * A thread preempted inside a restartable sequence goes on at its abort
 * handler. The kernel decides that on the way back to user mode, by the
 * instruction pointer: ours would make it forget the sequence, and the
 * thread would go on in the middle of one that is no longer guarded. So do
 * first what the kernel would have done.
 */
static void abort_rseq(struct tracee *t, pid_t pid, const struct remote_known *known)
{
	struct {
		uint64_t pointer;
		uint32_t size, signature, flags, pad;
	} config = {0};
	uint64_t descriptor = 0;
	struct {
		uint32_t version, flags;
		uint64_t start, length, abort;
	} cs;

	/* Inside a system call it is inside no sequence. */
	if ((int64_t)t->regs.orig_rax >= 0)
		return;
	if (known)
		config.pointer = known->rseq;
	else if (ptrace(PTRACE_GET_RSEQ_CONFIGURATION, t->tid, (void *)sizeof(config), &config) < 0)
		return;
	if (!config.pointer)
		return;
	if (vm_read(pid, config.pointer + 8, &descriptor, sizeof(descriptor)) < 0 || !descriptor ||
	    vm_read(pid, descriptor, &cs, sizeof(cs)) < 0)
		return;
	if (t->regs.rip - cs.start < cs.length)
		t->regs.rip = cs.abort;
}

/* Finds the room for xstate, data and links bytes of chain, and keeps what is there. */
static int chain_place(struct chain *c, const struct remote_batch *b, size_t data_len, size_t links,
		       const unsigned char *xstate)
{
	c->end = c->t->regs.rsp - RED_ZONE;
	c->xstate_addr = ALIGN_DOWN(c->end - c->xstate_len, 64u);
	c->data_addr = ALIGN_DOWN(c->xstate_addr - data_len, 16u);
	c->frames_addr = ALIGN_DOWN(c->data_addr - links, 16u);
	if (c->end > c->t->regs.rsp || c->frames_addr > c->end)
		return -ENOSPC;
	/* Small stacks may lie side by side: what one chain has borrowed is not there to be kept by
	 * another. */
	for (size_t i = 0; i < c->nr_others; i++)
		if (c->others[i].begun && c->others[i].frames_addr < c->end &&
		    c->frames_addr < c->others[i].end)
			return -EINPROGRESS;
	size_t len = c->end - c->frames_addr;
	c->saved = malloc(len);
	c->image = malloc(len);
	if (!c->saved || !c->image)
		return -ENOMEM;
	if (vm_read(c->target->pid, c->frames_addr, c->saved, len) < 0)
		return -ENOSPC;
	memcpy(c->image, c->saved, len);
	memcpy(c->image + (c->xstate_addr - c->frames_addr), xstate, c->xstate_len);
	memcpy(c->image + (c->data_addr - c->frames_addr), b->data, b->data_len);
	return 0;
}

static int chain_store(const struct chain *c)
{
	int r = vm_write(c->target->pid, c->frames_addr, c->image, c->end - c->frames_addr);

	if (r < 0) /* a part may have been */
		vm_write(c->target->pid, c->frames_addr, c->saved, c->end - c->frames_addr);
	return r < 0 ? -ENOSPC : 0;
}

static int build_frames(struct chain *c, const struct remote_batch *b, pid_t tgid, pid_t tid,
			const unsigned char *xstate, struct user_regs_struct *ret_regs)
{
	/* Calls, the stop, the way back; call 0 needs no frame. */
	unsigned nr_frames = b->nr_calls + 1;
	int r = chain_place(c, b, b->data_len, nr_frames * sizeof(struct frame), xstate);
	if (r < 0)
		return r;

	struct remote_call stop = {
		SYS_tgkill, {(uint64_t)tgid, (uint64_t)tid, (uint64_t)c->sig}, 0};
	struct frame first, *f = (struct frame *)c->image;
	uint64_t sp = c->frames_addr;
	for (unsigned i = 0; i <= b->nr_calls; i++) {
		bool last = i == b->nr_calls;

		frame_call(c, i == 0 ? &first : &f[i - 1], last ? &stop : &b->calls[i], sp,
			   chain_mask(c, last));
		sp += sizeof(struct frame);
	}
	frame_own(c, &f[nr_frames - 1]);
	r = chain_store(c);
	frame_to_regs(c, &first, ret_regs);
	return r;
}

/*
 * The same without signal frames between the calls: each returns into pops of
 * the next one's registers. r10 is 8 throughout, the size of a signal set; the
 * calls of a batch have no other fourth argument. Only the way back, taken
 * when there is no tracer any more, is a frame.
 */
static int build_returns(struct chain *c, const struct remote_batch *b, pid_t tgid, pid_t tid,
			 const unsigned char *xstate, struct user_regs_struct *ret_regs)
{
	enum {
		CALL_WORDS = 10
	};
	const struct remote_gadgets *g = c->g;
	/* The calls, one that unblocks the signal, and the one that sends it. */
	unsigned nr = b->nr_calls + 2, mask_offset = b->data_len;
	size_t words = ALIGN_UP((size_t)nr * CALL_WORDS, (size_t)2);
	int r = chain_place(c, b, b->data_len + sizeof(uint64_t),
			    words * sizeof(uint64_t) + sizeof(struct frame), xstate);
	if (r < 0)
		return r;

	uint64_t mask = chain_mask(c, true);
	memcpy(c->image + (c->data_addr - c->frames_addr) + mask_offset, &mask, sizeof(mask));
	struct remote_call last[] = {
		{SYS_rt_sigprocmask, {SIG_SETMASK, mask_offset, 0}, 1u << 1},
		{SYS_tgkill, {(uint64_t)tgid, (uint64_t)tid, (uint64_t)c->sig}, 0},
	};
	uint64_t *w = (uint64_t *)c->image;
	for (unsigned i = 0; i < nr; i++) {
		const struct remote_call *call =
			i < b->nr_calls ? &b->calls[i] : &last[i - b->nr_calls];
		uint64_t a[3];

		for (int k = 0; k < 3; k++)
			a[k] = call->args[k] + (call->data_args >> k & 1 ? c->data_addr : 0);
		*w++ = g->pop_rdx;
		*w++ = a[2];
		if (g->rdx_junk)
			*w++ = 0;
		*w++ = g->pop_rsi;
		*w++ = a[1];
		*w++ = g->pop_rdi;
		*w++ = a[0];
		*w++ = g->pop_rax;
		*w++ = call->nr;
		*w++ = g->syscall_ret;
	}
	/* Right behind: its first word is the restorer, which the last call returns to. */
	struct frame own;
	frame_own(c, &own);
	memcpy(w, &own, sizeof(own));
	r = chain_store(c);

	struct frame first;
	struct remote_call nothing = {.nr = SYS_getpid};
	frame_call(c, &first, &nothing, c->frames_addr, 0);
	frame_to_regs(c, &first, ret_regs);
	ret_regs->r10 = sizeof(uint64_t);
	return r;
}

/* Builds the chain for a batch and writes it below the stack. */
int chain_build(struct chain *c, const struct remote_batch *b, struct user_regs_struct *ret_regs)
{
	_Alignas(64) unsigned char xstate[XSTATE_MAX];
	pid_t tgid, tid;
	int r = load_xstate(c, xstate, sizeof(xstate));

	if (r < 0)
		return r;
	if (c->known)
		c->own_mask = c->known->sigmask;
	else if (ptrace(PTRACE_GETSIGMASK, c->t->tid, (void *)sizeof(c->own_mask), &c->own_mask) <
		 0)
		return -errno;
	r = ids_inside(c->target, c->t->tid, c->g, &tgid, &tid);
	if (r < 0)
		return r;
	abort_rseq(c->t, c->target->pid, c->known);

	return c->by_returns ? build_returns(c, b, tgid, tid, xstate, ret_regs)
			     : build_frames(c, b, tgid, tid, xstate, ret_regs);
}
