#include "export/corenotes.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/procfs.h>
#include <sys/user.h>

#include "common/le.h"
#include "common/util.h"
#include "export/corexsave.h"

#define NOTE_HEADER sizeof(Elf64_Nhdr)
/* NT_X86_SHSTK and NT_X86_XSAVE_LAYOUT, younger than many an <elf.h>. */
#define NOTE_SHSTK 0x204
#define NOTE_XSAVE_LAYOUT 0x205
/* A note's size is 32 bits in the file; readers add them up. */
#define NOTES_MAX ((size_t)1 << 30)

void core_notes_free(struct core_notes *n)
{
	free(n->data);
	*n = (struct core_notes){0};
}

static int notes_reserve(struct core_notes *n, size_t more)
{
	if (more > NOTES_MAX || n->len > NOTES_MAX - more)
		return -E2BIG;
	if (n->len + more <= n->room)
		return 0;

	size_t room = MAX(n->len + more, n->room * 2);
	unsigned char *bigger = realloc(n->data, room);
	if (!bigger)
		return -ENOMEM;
	n->data = bigger;
	n->room = room;
	return 0;
}

static int notes_append(struct core_notes *n, const void *notes, size_t len)
{
	int r = notes_reserve(n, len);

	if (r)
		return r;
	if (len)
		memcpy(n->data + n->len, notes, len);
	n->len += len;
	return 0;
}

int core_notes_add(struct core_notes *n, const char *name, uint32_t type, const void *desc,
		   size_t len)
{
	size_t namesz = strlen(name) + 1;

	if (len > NOTES_MAX)
		return -E2BIG;
	size_t total = NOTE_HEADER + ALIGN_UP(namesz, 4) + ALIGN_UP(len, 4);
	int r = notes_reserve(n, total);
	if (r)
		return r;

	unsigned char *p = n->data + n->len;
	memset(p, 0, NOTE_HEADER + ALIGN_UP(namesz, 4));
	le_put32(p, (uint32_t)namesz);
	le_put32(p + 4, (uint32_t)len);
	le_put32(p + 8, type);
	memcpy(p + NOTE_HEADER, name, namesz);
	p += NOTE_HEADER + ALIGN_UP(namesz, 4);
	memset(p + len, 0, ALIGN_UP(len, 4) - len);
	if (len)
		memcpy(p, desc, len);
	n->len += total;
	return 0;
}

/* What may stand in threads/TID.notes. The sizes are the kernel's for x86-64;
 * NT_X86_XSTATE begins with the 512 bytes of FXSAVE and the header of 64. */
static const struct thread_note {
	const char *name;
	uint32_t type;
	uint32_t min, max; /* bytes of desc */
} thread_notes[] = {
	{"CORE", NT_PRSTATUS, sizeof(struct elf_prstatus), sizeof(struct elf_prstatus)},
	{"CORE", NT_FPREGSET, sizeof(struct user_fpregs_struct), sizeof(struct user_fpregs_struct)},
	{"CORE", NT_SIGINFO, sizeof(siginfo_t), sizeof(siginfo_t)},
	{"LINUX", NT_X86_XSTATE, 576, 65536},
	{"LINUX", NOTE_SHSTK, 8, 8},
	{"LINUX", NOTE_XSAVE_LAYOUT, 0, 4096},
};

static const struct thread_note *thread_note_find(const char *name, size_t namesz, uint32_t type,
						  unsigned *ret_bit)
{
	for (unsigned i = 0; i < ARRAY_SIZE(thread_notes); i++) {
		const struct thread_note *k = &thread_notes[i];

		if (k->type == type && strlen(k->name) + 1 == namesz &&
		    !memcmp(k->name, name, namesz)) {
			*ret_bit = 1u << i;
			return k;
		}
	}
	return NULL;
}

int core_thread_check(struct core_thread *ret, uint32_t tid, const void *notes, size_t len,
		      size_t *ret_offset, const char **ret_why)
{
	struct core_thread t = {.tid = tid, .notes = notes, .len = len};
	const unsigned char *base = notes;
	const char *why = NULL;
	unsigned seen = 0;
	size_t at = 0;

	if (!len)
		why = "no notes";
	while (!why && at < len) {
		size_t left = len - at;
		unsigned bit = 0;

		if (left < NOTE_HEADER) {
			why = "a note's header is cut off";
			break;
		}
		const unsigned char *p = base + at;
		uint32_t namesz = le_get32(p), descsz = le_get32(p + 4), type = le_get32(p + 8);
		size_t total =
			NOTE_HEADER + ALIGN_UP((size_t)namesz, 4) + ALIGN_UP((size_t)descsz, 4);
		const unsigned char *desc = p + NOTE_HEADER + ALIGN_UP((size_t)namesz, 4);
		const struct thread_note *known;

		if (total > left) {
			why = "a note is longer than the member";
			break;
		}
		known = thread_note_find((const char *)p + NOTE_HEADER, namesz, type, &bit);
		if (!known)
			why = "a note of unknown type";
		else if (descsz < known->min || descsz > known->max)
			why = "a note of the wrong size";
		else if (seen & bit)
			why = "a note stands there twice";
		else if (!seen && known->type != NT_PRSTATUS)
			why = "the first note is not NT_PRSTATUS";
		if (why)
			break;

		if (!seen) {
			struct elf_prstatus st;

			memcpy(&st, desc, sizeof(st));
			if (st.pr_pid < 0 || (uint32_t)st.pr_pid != tid) {
				why = "NT_PRSTATUS of another thread";
				break;
			}
			t.signo = st.pr_cursig;
			t.first_len = total;
		}
		if (type == NOTE_XSAVE_LAYOUT)
			t.has_layout = true;
		seen |= bit;
		at += total;
	}
	if (why) {
		*ret_offset = at;
		*ret_why = why;
		return -EBADMSG;
	}
	*ret = t;
	return 0;
}

int core_notes_first(struct core_notes *n, const struct core_thread *t)
{
	return notes_append(n, t->notes, t->first_len);
}

int core_notes_rest(struct core_notes *n, const struct core_thread *t)
{
	const unsigned char *p = t->notes + t->first_len, *end = t->notes + t->len;

	while (p < end) {
		size_t namesz = ALIGN_UP((size_t)le_get32(p), 4), descsz = le_get32(p + 4);
		size_t total = NOTE_HEADER + namesz + ALIGN_UP(descsz, 4), relaid_len;
		unsigned char relaid[CORE_XSAVE_MAX];
		int r;

		if (le_get32(p + 8) == NT_X86_XSTATE && !t->has_layout &&
		    core_xsave_relay(p + NOTE_HEADER + namesz, descsz, relaid, &relaid_len))
			r = core_notes_add(n, "LINUX", NT_X86_XSTATE, relaid, relaid_len);
		else
			r = notes_append(n, p, total);
		if (r)
			return r;
		p += total;
	}
	return 0;
}

static bool signal_is_fatal_fault(int signo)
{
	switch (signo) {
	case SIGSEGV:
	case SIGBUS:
	case SIGILL:
	case SIGFPE:
	case SIGABRT:
	case SIGSYS:
	case SIGTRAP:
		return true;
	default:
		return false;
	}
}

size_t core_first_thread(const struct core_thread *threads, size_t n, uint32_t pid)
{
	size_t first = 0;

	for (size_t i = 0; i < n; i++) {
		if (signal_is_fatal_fault(threads[i].signo))
			return i;
		if (threads[i].tid == pid)
			first = i;
	}
	return first;
}

int core_notes_prpsinfo(struct core_notes *n, const struct core_process *p)
{
	struct elf_prpsinfo info = {0};

	info.pr_sname = 'R';
	info.pr_nice = (char)p->nice;
	info.pr_uid = p->uid;
	info.pr_gid = p->gid;
	info.pr_pid = p->pid;
	info.pr_ppid = p->ppid;
	info.pr_pgrp = p->pgid;
	info.pr_sid = p->sid;
	memcpy(info.pr_fname, p->comm, strnlen(p->comm, sizeof(info.pr_fname) - 1));
	memcpy(info.pr_psargs, p->args, strnlen(p->args, sizeof(info.pr_psargs) - 1));
	return core_notes_add(n, "CORE", NT_PRPSINFO, &info, sizeof(info));
}

int core_notes_auxv(struct core_notes *n, const char *hex)
{
	/* The kernel's vector has some 22 entries; AT_VECTOR_SIZE bounds it well below this. */
	unsigned char auxv[4096];
	size_t digits = strlen(hex);

	if (!digits || digits % (2 * sizeof(Elf64_auxv_t)) || digits > 2 * sizeof(auxv))
		return -EBADMSG;
	for (size_t i = 0; i < digits; i += 2) {
		int hi = hex_digit(hex[i]), lo = hex_digit(hex[i + 1]);

		if (hi < 0 || lo < 0)
			return -EBADMSG;
		auxv[i / 2] = (unsigned char)(hi << 4 | lo);
	}
	return core_notes_add(n, "CORE", NT_AUXV, auxv, digits / 2);
}

/* u64 count, u64 page size, {start, end, offset in pages} of each, then the
 * names, each ended by a NUL (fs/binfmt_elf.c, fill_files_note()). */
int core_notes_file(struct core_notes *n, const struct core_mapping *m, size_t nr,
		    uint32_t page_size)
{
	size_t names = 0;

	if (!nr)
		return 0;
	if (nr > NOTES_MAX / 24)
		return -E2BIG;
	for (size_t i = 0; i < nr; i++) {
		names += strlen(m[i].path) + 1;
		if (names > NOTES_MAX)
			return -E2BIG;
	}

	size_t len = 16 + 24 * nr + names;
	cleanup_free unsigned char *desc = malloc(len);
	if (!desc)
		return -ENOMEM;
	le_put64(desc, nr);
	le_put64(desc + 8, page_size);

	unsigned char *p = desc + 16;
	char *s = (char *)desc + 16 + 24 * nr;
	for (size_t i = 0; i < nr; i++, p += 24) {
		size_t l = strlen(m[i].path) + 1;

		le_put64(p, m[i].start);
		le_put64(p + 8, m[i].end);
		le_put64(p + 16, m[i].offset / page_size);
		memcpy(s, m[i].path, l);
		s += l;
	}
	return core_notes_add(n, "CORE", NT_FILE, desc, len);
}
