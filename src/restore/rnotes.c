/*
 * threads/TID.notes: ELF core notes back to back, as pstate_notes.c writes
 * them. Hostile: lengths, then every register that the kernel would trust.
 */
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/procfs.h>

#include "common/util.h"
#include "restore/rthreads_internal.h"

/* 64-bit code, its stack and data: arch/x86/include/asm/segment.h. */
#define USER_CS 0x33
#define USER_DS 0x2b
/* CF PF AF ZF SF TF DF OF RF NT AC: what ptrace(2) lets through
 * (arch/x86/kernel/ptrace.c). */
#define EFLAGS_OWN 0x54dd5ull
#define EFLAGS_FIXED 0x202ull /* interrupts, and the bit that is always one */

struct found {
	const unsigned char *prstatus, *xstate, *fpregs;
	size_t xstate_len;
};

static int damaged(const struct rthread *th, struct usnap_err *err, size_t offset, const char *why)
{
	return usnap_fail(err, -EBADMSG, "cannot restore thread %d: its notes at offset %zu: %s",
			  (int)th->image_tid, offset, why);
}

static int find_notes(const struct rthread *th, const unsigned char *p, size_t len,
		      struct found *ret, struct usnap_err *err)
{
	Elf64_Nhdr h;

	*ret = (struct found){0};
	for (size_t at = 0; at < len;) {
		if (len - at < sizeof(h))
			return damaged(th, err, at, "cut off");
		memcpy(&h, p + at, sizeof(h));
		size_t name = ALIGN_UP((size_t)h.n_namesz, (size_t)4);
		size_t desc = ALIGN_UP((size_t)h.n_descsz, (size_t)4);
		if (name > len || desc > len || name + desc > len - at - sizeof(h))
			return damaged(th, err, at, "cut off");
		const unsigned char *d = p + at + sizeof(h) + name;
		switch (h.n_type) {
		case NT_PRSTATUS:
			if (ret->prstatus || h.n_descsz != sizeof(struct elf_prstatus))
				return damaged(th, err, at, "no NT_PRSTATUS of x86-64");
			ret->prstatus = d;
			break;
		case NT_PRFPREG:
			if (ret->fpregs || h.n_descsz != sizeof(struct user_fpregs_struct))
				return damaged(th, err, at, "no NT_PRFPREG of x86-64");
			ret->fpregs = d;
			break;
		case NT_X86_XSTATE:
			if (ret->xstate || h.n_descsz > XSTATE_MAX_BYTES)
				return damaged(th, err, at, "no NT_X86_XSTATE");
			ret->xstate = d;
			ret->xstate_len = h.n_descsz;
			break;
		default:
			break; /* for debuggers */
		}
		at += sizeof(h) + name + desc;
	}
	if (!ret->prstatus || (!ret->xstate && !ret->fpregs))
		return damaged(th, err, len, "registers are missing");
	if (!ret->xstate) {
		ret->xstate = ret->fpregs;
		ret->xstate_len = sizeof(struct user_fpregs_struct);
	}
	return 0;
}

static bool selector_is_plain(uint64_t v)
{
	return v == 0 || v == USER_DS;
}

/* With five levels of page tables addresses have 57 bits. */
static bool is_user_address(uint64_t v)
{
	return v < (uint64_t)1 << 56;
}

static int check_regs(const struct rthread *th, struct user_regs_struct *g, struct usnap_err *err)
{
	pid_t tid = th->image_tid;

	if (g->cs != USER_CS || g->ss != USER_DS)
		return usnap_fail(err, -EOPNOTSUPP,
				  "cannot restore thread %d: it runs no 64-bit code (cs 0x%llx)",
				  (int)tid, (unsigned long long)g->cs);
	if (!selector_is_plain(g->ds) || !selector_is_plain(g->es) || !selector_is_plain(g->fs) ||
	    !selector_is_plain(g->gs))
		return usnap_fail(err, -EOPNOTSUPP,
				  "cannot restore thread %d: it uses segments of its own",
				  (int)tid);
	/* Of the stack pointer nothing is asked: programs may put there what they
   * like. */
	if (!is_user_address(g->rip) || !is_user_address(g->fs_base) ||
	    !is_user_address(g->gs_base))
		return usnap_fail(err, -EBADMSG,
				  "cannot restore thread %d: its registers point at no address of "
				  "a process",
				  (int)tid);
	g->eflags = (g->eflags & EFLAGS_OWN) | EFLAGS_FIXED;
	return 0;
}

int rnotes_parse(struct rthread *th, const struct xlayout *here, const void *notes, size_t len,
		 struct xmissing *missing, struct usnap_err *err)
{
	struct elf_prstatus pr;
	struct found f;
	const char *why;

	int r = find_notes(th, notes, len, &f, err);
	if (r < 0)
		return r;
	memcpy(&pr, f.prstatus, sizeof(pr));
	_Static_assert(sizeof(pr.pr_reg) == sizeof(th->regs), "elf_gregset_t is user_regs_struct");
	memcpy(&th->regs, &pr.pr_reg, sizeof(th->regs));
	r = check_regs(th, &th->regs, err);
	if (r < 0)
		return r;
	free(th->xstate);
	th->xstate = malloc(here->size);
	if (!th->xstate)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore thread %d",
					(int)th->image_tid);
	r = xstate_relay(f.xstate, f.xstate_len, here, th->xstate, missing, &why);
	if (r < 0)
		return usnap_fail(err, r, "cannot restore thread %d: its extended state: %s",
				  (int)th->image_tid, why);
	return 0;
}
