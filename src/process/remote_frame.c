/*
 * Signal frames as rt_sigreturn(2) restores them, and the extended registers
 * (xstate) that they point at. x86-64 only: the frame is struct rt_sigframe of
 * arch/x86.
 */
#include "process/remote_internal.h"

#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "common/util.h"

enum {
	FX_SW_BYTES = 464, /* offset of struct _fpx_sw_bytes in the fxsave area */
	XSTATE_MIN = 576, /* fxsave area and xsave header */
};

enum {
	UC_FP_XSTATE_FLAG = 1,
	UC_SIGCONTEXT_SS_FLAG = 2,
	UC_STRICT_RESTORE_SS_FLAG = 4,
	/* sigaltstack() refuses these ss_flags, and rt_sigreturn ignores that it does:
	 * the thread's alternate stack stays as it is (kernel/signal.c, restore_altstack). */
	SS_FLAGS_INVALID = 7,
};

#define XTILE (1ull << 17 | 1ull << 18) /* AMX: configuration and data of tiles */

/* Size of the user xstate for a set of features, from CPUID leaf 0xD. */
static uint32_t xstate_size(uint64_t features)
{
	static _Thread_local uint64_t known_features;
	static _Thread_local uint32_t known_size;
	uint32_t size = XSTATE_MIN;

	/* In a virtual machine every CPUID is an exit of microseconds. */
	if (known_size && known_features == features)
		return known_size;
	for (unsigned i = 2; i < 63; i++) {
		unsigned eax, ebx, ecx, edx;

		if (!(features >> i & 1))
			continue;
		__cpuid_count(0xD, i, eax, ebx, ecx, edx);
		size = MAX(size, eax + ebx);
	}
	known_features = features;
	known_size = size;
	return size;
}

/* The thread's xstate, in the form in which a signal frame holds it
 * (arch/x86/kernel/fpu/signal.c). */
int load_xstate(struct chain *c, unsigned char *buf, size_t room)
{
	struct iovec iov = {buf, room - 8};

	if (c->known) {
		iov.iov_len = MIN(c->known->xstate_len, iov.iov_len);
		memcpy(buf, c->known->xstate, iov.iov_len);
	} else if (ptrace(PTRACE_GETREGSET, c->t->tid, (void *)NT_X86_XSTATE, &iov) < 0) {
		return -errno;
	}
	if (iov.iov_len < XSTATE_MIN)
		return -EOPNOTSUPP;

	/* ptrace leaves the enabled features (XCR0) in the first software word. */
	uint64_t features;
	memcpy(&features, buf + FX_SW_BYTES, sizeof(features));
	/* AMX shows as enabled for the machine; a thread has room for tiles only once it asked for
	 * it, and a frame that has more is not restored as a whole. */
	uint64_t in_use;
	memcpy(&in_use, buf + 512, sizeof(in_use));
	c->tiles = features & XTILE;
	if (c->tiles) {
		c->xstate_full = iov.iov_len;
		c->xstate = malloc(iov.iov_len);
		if (!c->xstate)
			return -ENOMEM;
		memcpy(c->xstate, buf, iov.iov_len);
		if (!(in_use & XTILE))
			features &= ~XTILE;
	}
	uint32_t size = xstate_size(features);
	if (size > iov.iov_len)
		return -EOPNOTSUPP;
	struct _fpx_sw_bytes sw = {
		.magic1 = FP_XSTATE_MAGIC1,
		.extended_size = size + sizeof(uint32_t),
		.xstate_bv = features,
		.xstate_size = size,
	};
	memcpy(buf + FX_SW_BYTES, &sw, sizeof(sw));
	uint32_t magic2 = FP_XSTATE_MAGIC2;
	memcpy(buf + size, &magic2, sizeof(magic2));
	c->xstate_len = size + sizeof(uint32_t);
	return 0;
}

static void frame_init(const struct chain *c, struct frame *f, uint64_t mask)
{
	*f = (struct frame){
		.pretcode = c->g->restorer,
		.uc_flags = UC_FP_XSTATE_FLAG | UC_SIGCONTEXT_SS_FLAG | UC_STRICT_RESTORE_SS_FLAG,
		.uc_stack = {.flags = SS_FLAGS_INVALID},
		.uc_sigmask = mask,
	};
	f->mcontext.fpstate = (struct _fpstate *)(uintptr_t)c->xstate_addr;
	f->mcontext.cs = 0x33; /* __USER_CS */
	f->mcontext.__pad0 = 0x2b; /* __USER_DS, as ss */
	f->mcontext.eflags = 0x202; /* IF and the bit that is always set */
}

void frame_call(const struct chain *c, struct frame *f, const struct remote_call *call, uint64_t sp,
		uint64_t mask)
{
	uint64_t a[6];

	for (int i = 0; i < 6; i++)
		a[i] = call->args[i] + (call->data_args >> i & 1 ? c->data_addr : 0);
	frame_init(c, f, mask);
	f->mcontext.rip = c->g->syscall_ret;
	f->mcontext.rsp = sp;
	f->mcontext.rax = call->nr;
	f->mcontext.rdi = a[0];
	f->mcontext.rsi = a[1];
	f->mcontext.rdx = a[2];
	f->mcontext.r10 = a[3];
	f->mcontext.r8 = a[4];
	f->mcontext.r9 = a[5];
}

/* The registers with which a call begins without its frame being restored. */
void frame_to_regs(const struct chain *c, const struct frame *f, struct user_regs_struct *ret)
{
	const struct sigcontext *m = &f->mcontext;

	*ret = c->t->regs;
	ret->orig_rax = (uint64_t)-1;
	ret->rip = m->rip;
	ret->rsp = m->rsp;
	ret->rax = m->rax;
	ret->rdi = m->rdi;
	ret->rsi = m->rsi;
	ret->rdx = m->rdx;
	ret->r10 = m->r10;
	ret->r8 = m->r8;
	ret->r9 = m->r9;
	ret->eflags &= ~0x500ul; /* DF, as the ABI wants it at a call, and TF */
}

/*
 * A timed wait is made anew: restoring a frame, the kernel forgets how it would have gone on
 * (restart_syscall(2) then says EINTR, to a program that need not expect it). For the time that is
 * left where there was room to tell, which the kernel has done when it was interrupted; else for the
 * whole. Which call it was is not known of one that had been interrupted before.
 */
static void wait_anew(const struct chain *c, struct sigcontext *m)
{
	const long nr = c->wait_nr ? c->wait_nr : (long)c->t->regs.orig_rax;

	switch (nr) {
	case SYS_nanosleep:
		m->rdi = m->rsi ? m->rsi : m->rdi;
		break;
	case SYS_clock_nanosleep:
		m->rdx = m->r10 ? m->r10 : m->rdx;
		break;
	case SYS_poll:
	case SYS_futex:
		break;
	default:
		m->rax = SYS_restart_syscall;
		return;
	}
	m->rax = (uint64_t)nr;
}

/* The thread's own context, for the case that no tracer gives it back: an
 * interrupted system call is started again here as the kernel would have. */
void frame_own(const struct chain *c, struct frame *f)
{
	const struct user_regs_struct *r = &c->t->regs;
	uint64_t ip = r->rip, ax = r->rax;

	if ((int64_t)r->orig_rax >= 0) {
		switch ((int64_t)r->rax) {
		case -512: /* ERESTARTSYS */
		case -513: /* ERESTARTNOINTR */
		case -514: /* ERESTARTNOHAND */
			ax = r->orig_rax;
			ip -= 2;
			break;
		case -516: /* ERESTART_RESTARTBLOCK */
			ip -= 2;
			break;
		}
	}
	frame_init(c, f, c->own_mask);
	struct sigcontext *m = &f->mcontext;
	m->cs = (uint16_t)r->cs;
	m->__pad0 = (uint16_t)r->ss;
	m->rip = ip;
	m->rax = ax;
	m->rsp = r->rsp;
	m->eflags = r->eflags;
	m->rbx = r->rbx;
	m->rcx = r->rcx;
	m->rdx = r->rdx;
	m->rsi = r->rsi;
	m->rdi = r->rdi;
	m->rbp = r->rbp;
	m->r8 = r->r8;
	m->r9 = r->r9;
	m->r10 = r->r10;
	m->r11 = r->r11;
	m->r12 = r->r12;
	m->r13 = r->r13;
	m->r14 = r->r14;
	m->r15 = r->r15;
	if (remote_is_slow(c->t))
		wait_anew(c, m);
}

/* It needs no xstate: the thread ends. */
void frame_exit(const struct remote_gadgets *g, struct frame *f)
{
	*f = (struct frame){
		.pretcode = g->restorer,
		.uc_flags = UC_SIGCONTEXT_SS_FLAG | UC_STRICT_RESTORE_SS_FLAG,
		.uc_stack = {.flags = SS_FLAGS_INVALID},
		.uc_sigmask = ~0ull,
	};
	f->mcontext.rip = g->syscall_ret;
	f->mcontext.rax = SYS_exit;
	f->mcontext.cs = 0x33; /* __USER_CS */
	f->mcontext.__pad0 = 0x2b; /* __USER_DS, as ss */
	f->mcontext.eflags = 0x202; /* IF and the bit that is always set */
}
