/*
 * Batches of remote system calls; remote.h has the design.
 *
 * Layout in the target, below the red zone, addresses growing downwards:
 *
 *   rsp - 128 ->  xstate of the thread (64-aligned): every frame points at it
 *                 data of the batch
 *                 frame n     the thread's own context
 *                 ...
 *                 frame 1     context of call 1
 *   first sp ->   (call 0 needs no frame: the tracer sets its registers)
 *
 * x86-64 only: the frame is struct rt_sigframe of arch/x86.
 */
#include "process/remote.h"

#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/io.h"
#include "common/util.h"
#include "process/maps.h"

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
#ifndef PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG /* Linux 6.4 */
#define PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG 0x4211
#endif
#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

enum {
	RED_ZONE = 128,
	XSTATE_MAX = 16384,
	FX_SW_BYTES = 464, /* offset of struct _fpx_sw_bytes in the fxsave area */
	XSTATE_MIN = 576, /* fxsave area and xsave header */
};

/* struct rt_sigframe without the siginfo, which rt_sigreturn does not read.
 * arch/x86/include/asm/sigframe.h, asm/ucontext.h. */
struct frame {
	uint64_t pretcode;
	uint64_t uc_flags;
	uint64_t uc_link;
	struct {
		uint64_t sp;
		int32_t flags, pad;
		uint64_t size;
	} uc_stack;
	struct sigcontext mcontext;
	uint64_t uc_sigmask;
} __attribute__((aligned(16)));

enum {
	UC_FP_XSTATE_FLAG = 1,
	UC_SIGCONTEXT_SS_FLAG = 2,
	UC_STRICT_RESTORE_SS_FLAG = 4,
	/* sigaltstack() refuses these ss_flags, and rt_sigreturn ignores that it does:
	 * the thread's alternate stack stays as it is (kernel/signal.c, restore_altstack). */
	SS_FLAGS_INVALID = 7,
};

/* ---- batches ---------------------------------------------------------------------------- */

void remote_batch_init(struct remote_batch *b)
{
	b->nr_calls = 0;
	b->data_len = 0;
}

int remote_batch_data(struct remote_batch *b, const void *init, size_t len)
{
	size_t room = ALIGN_UP(len, (size_t)8);

	if (room > REMOTE_MAX_DATA - b->data_len)
		return -ENOSPC;
	int offset = (int)b->data_len;
	if (init)
		memcpy(b->data + offset, init, len);
	else
		memset(b->data + offset, REMOTE_FILL, len);
	b->data_len += (unsigned)room;
	return offset;
}

int remote_batch_call(struct remote_batch *b, long nr, unsigned data_args, uint64_t a0, uint64_t a1,
		      uint64_t a2, uint64_t a3, uint64_t a4)
{
	if (b->nr_calls == REMOTE_MAX_CALLS)
		return -ENOSPC;
	b->calls[b->nr_calls] = (struct remote_call){
		.nr = (uint64_t)nr,
		.args = {a0, a1, a2, a3, a4},
		.data_args = (uint8_t)data_args,
	};
	return (int)b->nr_calls++;
}

int remote_batch_untouched(const struct remote_batch *b, unsigned offset, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (b->data[offset + i] != REMOTE_FILL)
			return 0;
	return 1;
}

/* ---- what to find beforehand -------------------------------------------------------------- */

static const unsigned char code_syscall_ret[] = {0x0f, 0x05, 0xc3};
/* mov $15, %rax; syscall   and   mov $15, %eax; syscall */
static const unsigned char code_restorer[] = {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05};
static const unsigned char code_restorer_short[] = {0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05};

static const unsigned char code_pop_rax[] = {0x58, 0xc3};
static const unsigned char code_pop_rdi[] = {0x5f, 0xc3};
static const unsigned char code_pop_rsi[] = {0x5e, 0xc3};
static const unsigned char code_pop_rdx[] = {0x5a, 0xc3};
static const unsigned char code_pop_rdx_rbx[] = {0x5a, 0x5b, 0xc3};

static void search(uint64_t *ret, uint64_t addr, const unsigned char *text, size_t len,
		   const unsigned char *code, size_t code_len)
{
	const unsigned char *p;

	if (!*ret && (p = memmem(text, len, code, code_len)))
		*ret = addr + (uint64_t)(p - text);
}

#define SEARCH(field, code) search(&g->field, addr, text, len, code, sizeof(code))

static void search_text(struct remote_gadgets *g, uint64_t addr, const unsigned char *text,
			size_t len)
{
	SEARCH(syscall_ret, code_syscall_ret);
	SEARCH(restorer, code_restorer);
	SEARCH(restorer, code_restorer_short);
	SEARCH(pop_rax, code_pop_rax);
	SEARCH(pop_rdi, code_pop_rdi);
	SEARCH(pop_rsi, code_pop_rsi);
	if (!g->pop_rdx) {
		SEARCH(pop_rdx, code_pop_rdx);
		if (!g->pop_rdx) {
			SEARCH(pop_rdx, code_pop_rdx_rbx);
			g->rdx_junk = g->pop_rdx ? 1 : 0;
		}
	}
}

/* All that there is to be found. */
static bool search_done(const struct remote_gadgets *g)
{
	return g->syscall_ret && g->restorer && g->pop_rax && g->pop_rdi && g->pop_rsi &&
	       g->pop_rdx;
}

static void search_vma(struct remote_gadgets *g, const struct target *t, const struct vma *v,
		       unsigned char *buf, size_t room)
{
	/* Windows overlap by the longest pattern. */
	for (uint64_t a = v->start; a + sizeof(code_restorer) < v->end;
	     a += room - sizeof(code_restorer)) {
		struct iovec local = {buf, MIN(room, v->end - a)};
		struct iovec remote = {(void *)(uintptr_t)a, local.iov_len};
		ssize_t n = process_vm_readv(t->pid, &local, 1, &remote, 1, 0);

		if (n <= 0 || search_done(g))
			return;
		search_text(g, a, buf, (size_t)n);
	}
}

static uint64_t status_field(const char *status, const char *name, int base)
{
	const char *p = strstr(status, name);

	return p ? strtoull(p + strlen(name), NULL, base) : 0;
}

int remote_find_gadgets(struct remote_gadgets *ret, const struct target *t, const struct maps *maps,
			struct usnap_err *err)
{
	static const int candidates[] = {SIGURG, SIGWINCH, SIGCHLD};
	struct remote_gadgets g = {0};
	size_t room = MIB(1);
	cleanup_free unsigned char *buf = malloc(room);
	if (!buf)
		return usnap_fail_errno(err, -ENOMEM, "cannot search the text of process %d",
					t->pid);

	/* The dynamic loader and libc hold both; they are the smaller ones, so look at small
	 * texts first and at large ones (a statically linked program) only when need be. */
	for (int large = 0; large <= 1 && !(g.syscall_ret && g.restorer); large++)
		for (size_t i = 0; i < maps->n && !search_done(&g); i++) {
			const struct vma *v = &maps->v[i];

			if ((v->prot & (PROT_READ | PROT_EXEC)) != (PROT_READ | PROT_EXEC) ||
			    v->kind != VMA_FILE || (v->end - v->start > MIB(4)) != (large == 1))
				continue;
			search_vma(&g, t, v, buf, room);
		}
	if (!g.syscall_ret || !g.restorer) {
		usnap_fail(err, -EOPNOTSUPP,
			   "cannot make system calls in process %d: its text holds no %s", t->pid,
			   g.syscall_ret ? "signal restorer" : "plain system call");
		return usnap_hint(err,
				  "programs that link libc, dynamically or statically, hold both");
	}

	cleanup_free char *status = NULL;
	int r = io_read_file_at(t->procfd, "status", 65536, &status, NULL);
	if (r < 0)
		return usnap_fail(err, -ESRCH, "cannot snapshot process %d: it has ended", t->pid);
	const char *features = strstr(status, "\nx86_Thread_features:");
	if (features && memmem(features, strcspn(features + 1, "\n") + 1, "shstk", 5))
		return usnap_fail(err, -EOPNOTSUPP,
				  "cannot make system calls in process %d: it has a shadow stack",
				  t->pid);
	uint64_t caught = status_field(status, "\nSigCgt:", 16);
	g.seccomp = status_field(status, "\nSeccomp:", 10) == 2;
	g.stop_signal = candidates[0];
	for (size_t i = 0; i < ARRAY_SIZE(candidates); i++)
		if (!(caught >> (candidates[i] - 1) & 1)) {
			g.stop_signal = candidates[i];
			break;
		}
	struct stat own, theirs;
	g.other_pidns = stat("/proc/self/ns/pid", &own) == 0 &&
			fstatat(t->procfd, "ns/pid", &theirs, 0) == 0 &&
			own.st_ino != theirs.st_ino;
	*ret = g;
	return 0;
}

/* Process and thread ID as the target itself knows them. */
static int ids_inside(const struct target *t, pid_t tid, const struct remote_gadgets *g,
		      pid_t *ret_tgid, pid_t *ret_tid)
{
	*ret_tgid = t->pid;
	*ret_tid = tid;
	if (!g->other_pidns)
		return 0;

	char path[64];
	cleanup_free char *status = NULL;
	snprintf(path, sizeof(path), "task/%d/status", tid);
	int r = io_read_file_at(t->procfd, path, 65536, &status, NULL);
	if (r < 0)
		return r;
	static const char *const names[] = {"\nNStgid:", "\nNSpid:"};
	pid_t *out[] = {ret_tgid, ret_tid};
	for (size_t i = 0; i < 2; i++) {
		char *p = strstr(status, names[i]);
		if (!p)
			continue;
		/* One number for each namespace, the innermost last. */
		char *end;
		for (p += strlen(names[i]); *p && *p != '\n'; p = end) {
			long v = strtol(p, &end, 10);
			if (end == p)
				break;
			*out[i] = (pid_t)v;
		}
	}
	return 0;
}

/* ---- the chain ------------------------------------------------------------------------------ */

#define XTILE (1ull << 17 | 1ull << 18) /* AMX: configuration and data of tiles */

struct chain {
	struct tracee *t;
	const struct target *target;
	const struct remote_gadgets *g;
	struct waits *waits;
	const struct remote_known *known; /* or NULL */
	int sig; /* that stops the thread at the end */
	/* In a timed wait, see remote_is_slow(): */
	bool stepped; /* call by call */
	bool by_returns; /* chained by returns */
	bool running; /* has been let go */
	bool begun; /* its registers and stack are the chain's */
	bool tiles; /* AMX: xstate is kept whole */
	unsigned char *xstate;
	size_t xstate_full;
	/* Chains of the same run, begun before this one. */
	const struct chain *others;
	size_t nr_others;
	uint64_t own_mask; /* the thread's signal mask */
	uint64_t xstate_addr, data_addr, frames_addr;
	uint64_t xstate_len; /* with its trailing magic */
	uint64_t end; /* first byte above what is used */
	unsigned char *saved; /* [frames_addr, end) as it was */
	unsigned char *image; /* what is written there */
};

/* Signals that must not be blocked: were one forced on the thread while it is,
 * the kernel would reset its action. */
static uint64_t chain_mask(const struct chain *c, bool unblock_stop)
{
	uint64_t m = ~0ull;

	static const int forced[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
	for (size_t i = 0; i < ARRAY_SIZE(forced); i++)
		m &= ~(1ull << (forced[i] - 1));
	if (unblock_stop)
		m &= ~(1ull << (c->sig - 1));
	return m;
}

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
static int load_xstate(struct chain *c, unsigned char *buf, size_t room)
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

static void frame_call(const struct chain *c, struct frame *f, const struct remote_call *call,
		       uint64_t sp, uint64_t mask)
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
static void frame_to_regs(const struct chain *c, const struct frame *f,
			  struct user_regs_struct *ret)
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

/* The thread's own context, for the case that no tracer gives it back: an
 * interrupted system call is started again here as the kernel would have. */
static void frame_own(const struct chain *c, struct frame *f)
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
			ax = SYS_restart_syscall;
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
}

/*
 * Waiting for one thread while others are traced as well. Should the process
 * be killed, the kernel reports its leader only when every other traced thread
 * has been waited for; so whatever is reported is taken, and kept for whoever
 * asks for it.
 */
struct waits {
	struct wait_result {
		pid_t tid;
		int status;
	} r[64];
	size_t n;
};

static int wait_tid(struct waits *w, pid_t tid, int *ret_status)
{
	for (size_t i = 0; i < w->n; i++)
		if (w->r[i].tid == tid) {
			*ret_status = w->r[i].status;
			w->r[i] = w->r[--w->n];
			return 0;
		}
	for (;;) {
		int status;
		pid_t got = waitpid(-1, &status, __WALL | __WNOTHREAD);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -ESRCH;
		if (got == tid) {
			*ret_status = status;
			return 0;
		}
		/* A thread beyond those at work can only have been killed. */
		if (w->n < ARRAY_SIZE(w->r))
			w->r[w->n++] = (struct wait_result){got, status};
	}
}

static int vm_read(pid_t pid, uint64_t addr, void *buf, size_t len)
{
	struct iovec local = {buf, len}, remote = {(void *)(uintptr_t)addr, len};
	ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);

	return n < 0 ? -errno : (size_t)n == len ? 0 : -EFAULT;
}

static int vm_write(pid_t pid, uint64_t addr, const void *buf, size_t len)
{
	struct iovec local = {(void *)buf, len}, remote = {(void *)(uintptr_t)addr, len};
	ssize_t n = process_vm_writev(pid, &local, 1, &remote, 1, 0);

	return n < 0 ? -errno : (size_t)n == len ? 0 : -EFAULT;
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

/* A signal that is pending for the thread already would merge with ours. (One that is pending for
 * the process would not: it comes second, and by then it is blocked again.) */
static bool is_pending(pid_t tid, int sig)
{
	siginfo_t info[16];
	struct __ptrace_peeksiginfo_args args = {.nr = ARRAY_SIZE(info)};
	long n;

	do {
		n = ptrace(PTRACE_PEEKSIGINFO, tid, &args, info);
		for (long i = 0; i < n; i++)
			if (info[i].si_signo == sig)
				return true;
		args.off += ARRAY_SIZE(info);
	} while (n == (long)ARRAY_SIZE(info));
	return false;
}

static void chain_free(struct chain *c)
{
	free(c->saved);
	free(c->image);
	free(c->xstate);
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
static int chain_build(struct chain *c, const struct remote_batch *b,
		       struct user_regs_struct *ret_regs)
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

/* A stop of a thread at work for a signal that is not ours. SIGSTOP cannot be blocked, and those
 * that a fault forces on a thread are not: sent by somebody, they are delivered at the release.
 * -EFAULT: it is a fault, the chain broke (a filter, text that is not what it was). */
static int other_signal(struct chain *c, const siginfo_t *info)
{
	if (info->si_code > 0)
		return -EFAULT;
	if (!c->t->sig) {
		c->t->sig = info->si_signo;
		c->t->siginfo = *info;
	} else if (c->t->sig != info->si_signo) {
		c->t->more |= 1ull << (info->si_signo - 1);
	}
	return 0;
}

/* Lets the thread run until the chain's last call stops it. on_event is told
 * of a clone event (the helper). */
static int chain_wait(struct chain *c, int (*on_event)(struct chain *, void *), void *arg)
{
	for (;;) {
		int status;

		if (!c->running && ptrace(PTRACE_CONT, c->t->tid, NULL, NULL) < 0)
			return -ESRCH;
		c->running = false;
		if (wait_tid(c->waits, c->t->tid, &status) < 0)
			return -ESRCH;
		if (!WIFSTOPPED(status)) {
			c->t->stopped = false;
			return -ESRCH;
		}
		int event = status >> 16;
		if (event == PTRACE_EVENT_CLONE || event == PTRACE_EVENT_VFORK) {
			int r = on_event ? on_event(c, arg) : 0;
			if (r < 0)
				return r;
			continue;
		}
		if (event)
			continue; /* a group stop, or an interrupt that was still due */
		siginfo_t info;
		if (ptrace(PTRACE_GETSIGINFO, c->t->tid, NULL, &info) < 0)
			return -ESRCH;
		if (WSTOPSIG(status) == c->sig) {
			/* One of the same number that was for the process came first: it is
			 * unblocked at the end only, and the stop is as good. */
			if (info.si_code != SI_TKILL && !c->t->sig) {
				c->t->sig = c->sig;
				c->t->siginfo = info;
			} else if (info.si_code != SI_TKILL) {
				c->t->more |= 1ull << (c->sig - 1);
			}
			c->t->in_signal_stop = true;
			return 0;
		}
		int r = other_signal(c, &info);
		if (r < 0) {
			c->t->in_signal_stop = true;
			return r;
		}
	}
}

/* Gives back what was borrowed: memory, registers, signal mask. The xstate needs nothing: every
 * frame restored it. */
static int chain_finish(struct chain *c, struct remote_batch *b)
{
	int r = 0;

	if (b && b->data_len)
		r = vm_read(c->target->pid, c->data_addr, b->data, b->data_len);
	/* Tiles may have kept a frame from restoring the rest: give it back whole. */
	if (c->tiles) {
		struct iovec iov = {c->xstate, c->xstate_full};
		ptrace(PTRACE_SETREGSET, c->t->tid, (void *)NT_X86_XSTATE, &iov);
	}
	/* The stack last: until the registers are back they point into it, should we die here. */
	struct user_regs_struct regs = c->t->regs;
	if (ptrace(PTRACE_SETSIGMASK, c->t->tid, (void *)sizeof(c->own_mask), &c->own_mask) < 0 ||
	    ptrace(PTRACE_SETREGS, c->t->tid, NULL, &regs) < 0)
		r = -ESRCH;
	if (vm_write(c->target->pid, c->frames_addr, c->saved, c->end - c->frames_addr) < 0 &&
	    r == 0)
		r = -EFAULT;
	return r;
}

/* Up to the point where the thread can be let go: from then on it would complete by itself. */
static int chain_begin(struct chain *c, struct remote_batch *b)
{
	struct user_regs_struct regs;
	uint64_t mask;
	int r = chain_build(c, b, &regs);

	if (r < 0)
		return r;
	mask = chain_mask(c, false);
	c->begun = true;
	/* In this order: whatever is done when we die, the thread is either as it was or on a way
	 * that gives its mask back. */
	if (ptrace(PTRACE_SETREGS, c->t->tid, NULL, &regs) < 0 ||
	    ptrace(PTRACE_SETSIGMASK, c->t->tid, (void *)sizeof(mask), &mask) < 0)
		return -ESRCH;
	return 0;
}

/*
 * rt_sigreturn ends a timed wait for good: a thread that was in one would
 * find it interrupted (EINTR) instead of going on with the time that is left
 * (the restart block; arch/x86/kernel/signal_64.c). Such a thread makes its
 * calls one by one, each stopped at its end before it can return to a frame;
 * the frames are there only for the death of the tracer.
 */
bool remote_is_slow(const struct tracee *t)
{
	return (int64_t)t->regs.orig_rax >= 0 && (int64_t)t->regs.rax == -516;
}

/* Steps over one system call of the thread: in, events, out. */
static int step_call(struct chain *c, int (*on_event)(struct chain *, void *), void *arg)
{
	for (bool inside = false;;) {
		int status;

		if (ptrace(PTRACE_SYSCALL, c->t->tid, NULL, NULL) < 0 ||
		    wait_tid(c->waits, c->t->tid, &status) < 0)
			return -ESRCH;
		if (!WIFSTOPPED(status)) {
			c->t->stopped = false;
			return -ESRCH;
		}
		int event = status >> 16;
		if (event == PTRACE_EVENT_CLONE || event == PTRACE_EVENT_VFORK) {
			int r = on_event ? on_event(c, arg) : 0;
			if (r < 0)
				return r;
		} else if (!event && WSTOPSIG(status) == (SIGTRAP | 0x80)) {
			if (inside)
				return 0;
			inside = true;
		} else if (!event) {
			siginfo_t info;
			int r = ptrace(PTRACE_GETSIGINFO, c->t->tid, NULL, &info) < 0
					? -ESRCH
					: other_signal(c, &info);
			if (r < 0)
				return r;
		}
	}
}

/* To a stop inside the kernel's signal handling, where an interrupted call is restarted. */
static int stop_again(struct tracee *t, struct waits *w)
{
	int status;

	if (ptrace(PTRACE_INTERRUPT, t->tid, NULL, NULL) < 0)
		return -ESRCH;
	do {
		if (ptrace(PTRACE_CONT, t->tid, NULL, NULL) < 0 || wait_tid(w, t->tid, &status) < 0)
			return -ESRCH;
		if (!WIFSTOPPED(status)) {
			t->stopped = false;
			return -ESRCH;
		}
	} while (status >> 16 != PTRACE_EVENT_STOP);
	t->in_signal_stop = false;
	return 0;
}

/* As chain_wait() after chain_begin(), call by call. */
static int chain_step(struct chain *c, const struct remote_batch *b,
		      int (*on_event)(struct chain *, void *), void *arg)
{
	struct user_regs_struct regs;
	uint64_t own_frame = c->frames_addr + b->nr_calls * sizeof(struct frame);
	int r = 0;

	for (unsigned i = 0; i < b->nr_calls && r == 0; i++) {
		struct frame f;

		/* Its return address: the thread's own context, without the stop. */
		frame_call(c, &f, &b->calls[i], own_frame, 0);
		frame_to_regs(c, &f, &regs);
		r = ptrace(PTRACE_SETREGS, c->t->tid, NULL, &regs) < 0
			    ? -ESRCH
			    : step_call(c, on_event, arg);
	}
	return r == -ESRCH ? r : stop_again(c->t, c->waits) < 0 ? -ESRCH : r;
}

static int chain_run(struct chain *c, struct remote_batch *b,
		     int (*on_event)(struct chain *, void *), void *arg)
{
	int r = chain_begin(c, b);

	if (r < 0)
		return r;
	r = c->stepped ? chain_step(c, b, on_event, arg) : chain_wait(c, on_event, arg);
	if (r == -ESRCH)
		return r;
	int f = chain_finish(c, b);
	return r < 0 ? r : f;
}

static int fail_remote(struct usnap_err *err, int r, const struct tracee *t)
{
	switch (r) {
	case -ENOSPC:
		return usnap_fail(err, r, "thread %d has no room below its stack pointer", t->tid);
	case -ESRCH:
		return usnap_fail(err, r, "thread %d was killed", t->tid);
	default:
		return usnap_fail_errno(err, r, "cannot make system calls in thread %d", t->tid);
	}
}

static int pick_signal(const struct remote_gadgets *g, pid_t tid)
{
	static const int candidates[] = {SIGURG, SIGWINCH, SIGCHLD};

	if (!is_pending(tid, g->stop_signal))
		return g->stop_signal;
	for (size_t i = 0; i < ARRAY_SIZE(candidates); i++)
		if (!is_pending(tid, candidates[i]))
			return candidates[i];
	return 0;
}

/* A signal that a tracer sees and that comes to nothing without one. */
static bool is_ignored(const struct target *t, pid_t tid, int sig)
{
	static const int ignored[] = {SIGCHLD, SIGURG, SIGWINCH, SIGCONT};
	char path[64];
	cleanup_free char *status = NULL;
	uint64_t bit = 1ull << (sig - 1);

	snprintf(path, sizeof(path), "task/%d/status", tid);
	if (io_read_file_at(t->procfd, path, 65536, &status, NULL) < 0)
		return false;
	if (status_field(status, "\nSigIgn:", 16) & bit)
		return true;
	for (size_t i = 0; i < ARRAY_SIZE(ignored); i++)
		if (sig == ignored[i])
			return !(status_field(status, "\nSigCgt:", 16) & bit);
	return false;
}

static int chain_init(struct chain *c, struct tracee *t, const struct target *target,
		      const struct remote_gadgets *g, struct waits *waits, bool step, bool helper)
{
	*c = (struct chain){.t = t,
			    .target = target,
			    .g = g,
			    .waits = waits,
			    .sig = pick_signal(g, t->tid),
			    .stepped = step};
	/* A signal in hand can be given back only at a stop for a signal, as a chain ends with.
	 * Its handler ends a timed wait anyway; without a handler there is nothing to give back. */
	if (step && t->sig) {
		if (is_ignored(target, t->tid, t->sig))
			t->sig = 0;
		else
			c->stepped = false;
	}
	if (c->stepped && !helper && search_done(g)) {
		c->stepped = false;
		c->by_returns = true;
	}
	return c->sig ? 0 : -EBUSY;
}

static unsigned long trace_options(const struct remote_gadgets *g, pid_t tid, unsigned long options)
{
	/* Filters judge our calls as if they were the thread's own. */
	if (g->seccomp &&
	    ptrace(PTRACE_SETOPTIONS, tid, NULL, (void *)(options | PTRACE_O_SUSPEND_SECCOMP)) == 0)
		return options | PTRACE_O_SUSPEND_SECCOMP;
	ptrace(PTRACE_SETOPTIONS, tid, NULL, (void *)options);
	return options;
}

/* A filter that cannot be suspended may answer an unknown call by killing the process. */
static bool filter_in_the_way(const struct remote_gadgets *g, unsigned long options)
{
	return g->seccomp && !(options & PTRACE_O_SUSPEND_SECCOMP);
}

/* Its system calls are dispatched to a handler of its own (as by Wine): ours would be, too. */
static bool dispatches_calls(pid_t tid)
{
	struct {
		uint64_t mode, selector, offset, len;
	} config = {0};

	return ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, (void *)sizeof(config),
		      &config) == 0 &&
	       config.mode;
}

int remote_run_all(struct remote_job *jobs, size_t n, const struct target *target,
		   const struct remote_gadgets *g, struct remote_meanwhile meanwhile,
		   struct usnap_err *err)
{
	cleanup_free struct chain *chains = calloc(n, sizeof(*chains));
	struct waits waits = {.n = 0};
	int gone = 0;

	if (!chains)
		return usnap_fail_errno(err, -ENOMEM, "cannot make system calls in process %d",
					target->pid);
	/* All are let go before the first is waited for. */
	for (size_t i = 0; i < n; i++) {
		struct chain *c = &chains[i];
		struct remote_job *j = &jobs[i];

		j->result = chain_init(c, j->t, target, g, &waits, remote_is_slow(j->t), false);
		c->known = j->known;
		c->others = chains;
		c->nr_others = i;
		if (j->result == 0 && dispatches_calls(j->t->tid))
			j->result = -EPERM;
		unsigned long options = c->stepped ? PTRACE_O_TRACESYSGOOD : 0;
		if (j->result == 0 && (options || g->seccomp) &&
		    filter_in_the_way(g, trace_options(g, j->t->tid, options)))
			j->result = -EPERM;
		if (j->result == 0)
			j->result = chain_begin(c, j->b);
		if (j->result == 0 && !c->stepped) {
			if (ptrace(PTRACE_CONT, j->t->tid, NULL, NULL) < 0)
				j->result = -ESRCH;
			c->running = true;
		}
	}
	if (meanwhile.fn)
		meanwhile.fn(meanwhile.arg);
	for (size_t i = 0; i < n; i++) {
		struct chain *c = &chains[i];
		struct remote_job *j = &jobs[i];

		if (j->result == 0)
			j->result = c->stepped ? chain_step(c, j->b, NULL, NULL)
					       : chain_wait(c, NULL, NULL);
		if (c->begun && j->result != -ESRCH) {
			int f = chain_finish(c, j->result == 0 ? j->b : NULL);
			if (j->result == 0 || f == -ESRCH)
				j->result = f;
		}
		if (j->result == -ESRCH)
			gone = usnap_fail(err, -ESRCH, "thread %d was killed", j->t->tid);
		else if (c->stepped || g->seccomp)
			ptrace(PTRACE_SETOPTIONS, j->t->tid, NULL, NULL);
		chain_free(c);
	}
	/* Those that were in the way of others, one by one. */
	for (size_t i = 0; i < n && gone == 0; i++)
		if (jobs[i].result == -EINPROGRESS)
			gone = remote_run_all(&jobs[i], 1, target, g, (struct remote_meanwhile){0},
					      err);
	return gone;
}

/* ---- the helper ------------------------------------------------------------------------------ */

struct helper_start {
	struct remote_helper h;
	remote_helper_fn *fn;
	void *arg;
	unsigned data_offset, frame_offset;
	struct usnap_err *err;
	int result;
	bool started;
};

int64_t remote_helper_call(struct remote_helper *h, long nr, uint64_t a0, uint64_t a1, uint64_t a2,
			   uint64_t a3, uint64_t a4)
{
	struct user_regs_struct r = h->regs;

	r.orig_rax = (uint64_t)-1;
	r.rip = h->g->syscall_ret;
	r.rsp = h->stack;
	r.rax = (uint64_t)nr;
	r.rdi = a0;
	r.rsi = a1;
	r.rdx = a2;
	r.r10 = a3;
	r.r8 = a4;
	r.r9 = 0;
	if (ptrace(PTRACE_SETREGS, h->tid, NULL, &r) < 0)
		return -ESRCH;
	/* One stop on the way in, one on the way out. */
	for (int i = 0, others = 0; i < 2; i++) {
		int status;

		if (ptrace(PTRACE_SYSCALL, h->tid, NULL, NULL) < 0)
			return -ESRCH;
		if (wait_tid(h->waits, h->tid, &status) < 0 || !WIFSTOPPED(status))
			return -ESRCH;
		if (status >> 16 || WSTOPSIG(status) != (SIGTRAP | 0x80)) {
			/* A group stop or SIGSTOP passes by: it concerns the threads that stay. */
			if (others++ > 100)
				return -EFAULT;
			i--;
		}
	}
	if (ptrace(PTRACE_GETREGS, h->tid, NULL, &r) < 0)
		return -ESRCH;
	return (int64_t)r.rax;
}

/* The clone event: the helper exists and is about to stop. */
static int helper_started(struct chain *c, void *arg)
{
	struct helper_start *s = arg;
	unsigned long tid = 0;
	int status;

	if (s->started || ptrace(PTRACE_GETEVENTMSG, c->t->tid, NULL, &tid) < 0)
		return 0;
	s->started = true;
	s->h.waits = c->waits;
	s->h.tid = (pid_t)tid;
	if (wait_tid(c->waits, s->h.tid, &status) < 0 || !WIFSTOPPED(status) ||
	    ptrace(PTRACE_GETREGS, s->h.tid, NULL, &s->h.regs) < 0) {
		s->result = usnap_fail(s->err, -ESRCH, "the helper thread was killed");
		return 0;
	}
	s->h.data = c->data_addr + s->data_offset;
	s->h.stack = c->data_addr + s->frame_offset;
	s->result = s->fn(&s->h, s->arg, s->err);

	/* Not let go to find its own way out: while the process is stopped (SIGSTOP) it would
	 * join that stop, and the thread that waits for its end with it. */
	struct user_regs_struct r = s->h.regs;
	r.orig_rax = (uint64_t)-1;
	r.rip = c->g->syscall_ret;
	r.rsp = s->h.stack;
	r.rax = SYS_exit;
	r.rdi = 0;
	if (ptrace(PTRACE_SETREGS, s->h.tid, NULL, &r) < 0)
		return 0;
	do {
		if (ptrace(PTRACE_CONT, s->h.tid, NULL, NULL) < 0)
			break;
	} while (wait_tid(c->waits, s->h.tid, &status) == 0 && WIFSTOPPED(status));
	return 0;
}

static bool have_pidfd_thread(void)
{
	cleanup_fd int fd = (int)syscall(SYS_pidfd_open, gettid(), PIDFD_THREAD);

	return fd >= 0;
}

int remote_with_helper(struct tracee *t, const struct target *target,
		       const struct remote_gadgets *g, remote_helper_fn *fn, void *arg,
		       struct usnap_err *err)
{
	enum {
		HELPER_DATA = 1024
	};
	struct waits waits = {.n = 0};
	struct chain c;
	struct helper_start s = {.fn = fn, .arg = arg, .err = err, .result = -ECHILD};
	cleanup_free struct remote_batch *b = malloc(sizeof(*b));
	if (!b)
		return usnap_fail_errno(err, -ENOMEM, "cannot start a helper");

	if (dispatches_calls(t->tid)) {
		usnap_fail(err, -EPERM,
			   "cannot make system calls in thread %d: it dispatches its own", t->tid);
		return usnap_hint(err, "programs under Wine or another emulator do that");
	}
	if (chain_init(&c, t, target, g, &waits, true, true) < 0)
		return usnap_fail(err, -EBUSY, "thread %d has too many signals pending", t->tid);

	/* A table of its own can only be reached through a descriptor for the thread. */
	s.h = (struct remote_helper){
		.g = g, .own_files = have_pidfd_thread(), .data_len = HELPER_DATA};
	remote_batch_init(b);
	s.data_offset = (unsigned)remote_batch_data(b, NULL, HELPER_DATA);

	/* Its return address: a frame that calls exit(0). It needs no xstate: it ends. */
	struct frame end = {
		.pretcode = g->restorer,
		.uc_flags = UC_SIGCONTEXT_SS_FLAG | UC_STRICT_RESTORE_SS_FLAG,
		.uc_stack = {.flags = SS_FLAGS_INVALID},
		.uc_sigmask = ~0ull,
	};
	end.mcontext.rip = g->syscall_ret;
	end.mcontext.rax = SYS_exit;
	end.mcontext.cs = 0x33;
	end.mcontext.__pad0 = 0x2b;
	end.mcontext.eflags = 0x202;
	int off = remote_batch_data(b, &end, sizeof(end));
	s.frame_offset = (unsigned)off;

	uint64_t flags = CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_VFORK | CLONE_SYSVSEM |
			 (s.h.own_files ? 0 : CLONE_FILES);
	remote_batch_call(b, SYS_clone, 1u << 1, flags, (uint64_t)off, 0, 0, 0);

	unsigned long options = trace_options(
		g, t->tid, PTRACE_O_TRACECLONE | PTRACE_O_TRACEVFORK | PTRACE_O_TRACESYSGOOD);
	if (filter_in_the_way(g, options)) {
		ptrace(PTRACE_SETOPTIONS, t->tid, NULL, NULL);
		usnap_fail(err, -EPERM,
			   "cannot make system calls in process %d: it is under a seccomp filter, "
			   "which might end it for that",
			   target->pid);
		return usnap_hint(err, "as root (CAP_SYS_ADMIN) the filter can be suspended");
	}
	int r = chain_run(&c, b, helper_started, &s);
	ptrace(PTRACE_SETOPTIONS, t->tid, NULL, NULL);
	chain_free(&c);
	if (r < 0)
		return fail_remote(err, r, t);
	if (!s.started) {
		usnap_fail(err, -EAGAIN, "cannot start a helper thread in process %d", target->pid);
		return usnap_hint(err, "it may have reached its limit of threads (pids cgroup, "
				       "ulimit -u), or a seccomp filter forbids clone");
	}
	return s.result;
}
