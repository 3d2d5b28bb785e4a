/*
 * threads/TID.notes: the notes of a core file, back to back (elf(5),
 * include/uapi/linux/elfcore.h). The kernel writes the same in
 * fs/binfmt_elf.c, fill_thread_core_info().
 */
#include <elf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/procfs.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "common/util.h"
#include "process/pstate_internal.h"

static size_t note_size(const char *name, size_t desc_len)
{
	return sizeof(Elf64_Nhdr) + ALIGN_UP(strlen(name) + 1, (size_t)4) +
	       ALIGN_UP(desc_len, (size_t)4);
}

static unsigned char *note_put(unsigned char *p, const char *name, uint32_t type, const void *desc,
			       size_t desc_len)
{
	Elf64_Nhdr h = {.n_namesz = (Elf64_Word)strlen(name) + 1,
			.n_descsz = (Elf64_Word)desc_len,
			.n_type = type};

	memset(p, 0, note_size(name, desc_len));
	memcpy(p, &h, sizeof(h));
	memcpy(p + sizeof(h), name, h.n_namesz);
	memcpy(p + sizeof(h) + ALIGN_UP(h.n_namesz, 4u), desc, desc_len);
	return p + note_size(name, desc_len);
}

/* As seen from the outermost namespace: the first of several. */
static pid_t status_pid(const char *status, const char *key)
{
	uint64_t v = 0;

	text_number(status, key, 0, 10, &v);
	return (pid_t)v;
}

static void fill_prstatus(const struct pstate *ps, const struct thread_state *th,
			  struct elf_prstatus *pr)
{
	const char *status = span_text(th->status);
	uint64_t sigpnd = 0;

	*pr = (struct elf_prstatus){0};
	text_number(status, "SigPnd", 0, 16, &sigpnd);
	pr->pr_sigpend = sigpnd;
	pr->pr_sighold = th->sigmask;
	pr->pr_pid = th->tid;
	pr->pr_ppid = status_pid(status, "PPid");
	pr->pr_pgrp = status_pid(status, "NSpgid");
	pr->pr_sid = status_pid(status, "NSsid");
	pr->pr_fpvalid = 1;
	_Static_assert(sizeof(pr->pr_reg) == sizeof(th->regs), "elf_gregset_t is user_regs_struct");
	memcpy(&pr->pr_reg, &th->regs, sizeof(th->regs));
}

int notes_build(struct pstate *ps, struct thread_state *th)
{
	struct elf_prstatus pr;
	struct user_fpregs_struct fp = {0};
	siginfo_t info = {0};

	fill_prstatus(ps, th, &pr);
	/* The xstate begins with the fxsave area; its last 48 bytes are the
	 * software's and no registers. */
	memcpy(&fp, th->xstate, MIN(th->xstate_len, sizeof(fp) - 48));

	bool has_xstate = th->xstate_len > sizeof(fp);
	size_t len = note_size("CORE", sizeof(pr)) + note_size("CORE", sizeof(fp)) +
		     note_size("CORE", sizeof(info)) +
		     (has_xstate ? note_size("LINUX", th->xstate_len) : 0);
	unsigned char *notes = malloc(len);
	if (!notes)
		return -ENOMEM;
	unsigned char *p = note_put(notes, "CORE", NT_PRSTATUS, &pr, sizeof(pr));
	p = note_put(p, "CORE", NT_PRFPREG, &fp, sizeof(fp));
	if (has_xstate)
		p = note_put(p, "LINUX", NT_X86_XSTATE, th->xstate, th->xstate_len);
	note_put(p, "CORE", NT_SIGINFO, &info, sizeof(info));
	free(th->notes);
	th->notes = notes;
	th->notes_len = len;
	return 0;
}
