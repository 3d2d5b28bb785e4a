#include "agent/patch.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "agent/agent.h"
#include "agent/elfsym.h"
#include "agent/exports.h"
#include "agent/gate.h"
#include "agent/raw.h"

enum {
	INSTRUCTION = 5, /* bytes, of what is replaced and of the jump */
	JUMP = 0xe9,
	PATTERN_MAX = 25,
};

/* What libc's code must look like, as in glibc 2.36 and its neighbours. */
struct site {
	const char *symbol; /* NULL: anywhere in the dynamic linker */
	unsigned char code[PATTERN_MAX];
	unsigned char len;
	unsigned char at; /* offset of the instruction that is replaced */
	unsigned char back; /* and of where it goes on */
};

#define MOV_SYSCALL(name, nr)                                                                      \
	{                                                                                          \
		name, {0xb8, nr, 0, 0, 0, 0x0f, 0x05}, 7, 0, 7                                     \
	}

static const struct site sites[GATE_SITES] = {
	[GATE_MUNMAP] = MOV_SYSCALL("munmap", 0x0b),
	[GATE_MADVISE] = MOV_SYSCALL("madvise", 0x1c),
	[GATE_MREMAP] = MOV_SYSCALL("mremap", 0x19),
	[GATE_MMAP] = MOV_SYSCALL("mmap", 0x09),
	[GATE_BRK] = MOV_SYSCALL("brk", 0x0c),
	[GATE_EXECVE] = MOV_SYSCALL("execve", 0x3b),
	/* mov $11,%eax; syscall; cmp $-4095,%rax; jae; ret: all of munmap(). */
	[GATE_LD_MUNMAP] = {NULL,
			    {0xb8, 0x0b, 0, 0, 0, 0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff,
			     0x73, 0x01, 0xc3},
			    16,
			    0,
			    7},
	/* rax = rdi, rdi = rsi, rsi = rdx, rdx = rcx, r10 = r8, r8 = r9; mov 8(%rsp),%r9; syscall.
	 * Goes on at the instruction, or behind it (gatecall.S). */
	[GATE_SYSCALL] = {"syscall",
			  {0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xd6,
			   0x48, 0x89, 0xca, 0x4d, 0x89, 0xc2, 0x4d, 0x89, 0xc8,
			   0x4c, 0x8b, 0x4c, 0x24, 0x08, 0x0f, 0x05},
			  25,
			  18,
			  23},
	/* mov $231,%esi; mov $60,%edx; jmp to where both are tried. */
	[GATE_EXIT] = {"_exit", {0xbe, 0xe7, 0, 0, 0, 0xba, 0x3c, 0, 0, 0}, 10, 0, 5},
};

struct objects {
	struct dl_phdr_info libc, linker;
	bool has_libc, has_linker, seen_own;
	struct {
		void *fn;
		bool libc;
	} next[NR_EXPORTS];
};

/* ---- code ---------------------------------------------------------------------------------------- */

/* Threads that libc knows of: those of a program that loads the agent late. */
extern char __libc_single_threaded __attribute__((weak));

static bool single_threaded(void)
{
	return &__libc_single_threaded && __libc_single_threaded;
}

/* The one place in [from, to) that looks like it; NULL: none, or several. */
static unsigned char *find_code(const struct site *s, uint64_t from, uint64_t to)
{
	unsigned char *found = NULL;

	for (uint64_t a = from; a + s->len <= to; a++) {
		unsigned char *p = (unsigned char *)(uintptr_t)a;

		if (p[0] != s->code[0] || memcmp(p, s->code, s->len) != 0)
			continue;
		if (found)
			return NULL;
		found = p;
	}
	return found;
}

/* The segment of code that holds addr. */
static bool find_segment(const struct dl_phdr_info *info, uint64_t addr, struct agent_range *ret)
{
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		uint64_t start = info->dlpi_addr + p->p_vaddr;

		if (p->p_type != PT_LOAD || p->p_flags != (PF_R | PF_X) || addr < start ||
		    addr - start >= p->p_memsz)
			continue;
		*ret = (struct agent_range){start & ~(uint64_t)(AGENT_PAGE - 1),
					    (start + p->p_memsz + AGENT_PAGE - 1) &
						    ~(uint64_t)(AGENT_PAGE - 1)};
		return true;
	}
	return false;
}

/* Replaces five bytes that start an instruction of that length. Another thread finds the old one or
 * the new one where they lie in one word; elsewhere there must be none. */
static bool write_jump(unsigned char *at, uint64_t to)
{
	int64_t distance = (int64_t)(to - ((uintptr_t)at + INSTRUCTION));
	uint64_t word = (uintptr_t)at & ~(uint64_t)7, old;
	unsigned char jump[INSTRUCTION] = {JUMP};

	if (distance != (int32_t)distance)
		return false;
	memcpy(jump + 1, &(int32_t){(int32_t)distance}, 4);
	if ((uintptr_t)at + INSTRUCTION > word + 8) {
		if (!single_threaded())
			return false;
		memcpy(at, jump, INSTRUCTION);
		return true;
	}
	memcpy(&old, (const void *)(uintptr_t)word, 8);
	memcpy((unsigned char *)&old + ((uintptr_t)at - word), jump, INSTRUCTION);
	__atomic_store_n((uint64_t *)(uintptr_t)word, old, __ATOMIC_SEQ_CST);
	return true;
}

/* Where the sites of an object are; NULL: none. */
static void find_sites(const struct dl_phdr_info *info, bool linker, unsigned char *ret[GATE_SITES])
{
	for (unsigned i = 0; i < GATE_SITES; i++) {
		const struct site *s = &sites[i];
		struct elf_symbol symbol = {0};
		bool wait = i == GATE_EXECVE || i == GATE_EXIT;

		ret[i] = NULL;
		if (linker != !s->symbol || (wait && !(agent_control.flags & AGENT_ON_EXIT_WAIT)))
			continue;
		if (linker) {
			for (unsigned k = 0; k < info->dlpi_phnum; k++)
				if (info->dlpi_phdr[k].p_type == PT_LOAD &&
				    info->dlpi_phdr[k].p_flags == (PF_R | PF_X)) {
					symbol.addr = info->dlpi_addr + info->dlpi_phdr[k].p_vaddr;
					symbol.size = info->dlpi_phdr[k].p_filesz;
				}
		} else if (!elfsym_find(info, s->symbol, &symbol)) {
			continue;
		}
		ret[i] = find_code(s, symbol.addr, symbol.addr + symbol.size);
	}
}

/* Returns the sites that are led to the gate, a bit each. */
static unsigned patch_object(const struct dl_phdr_info *info, bool linker)
{
	const uint64_t rwx = PROT_READ | PROT_WRITE | PROT_EXEC;
	unsigned char *found[GATE_SITES];
	struct agent_range text = {0};
	unsigned done = 0;

	find_sites(info, linker, found);
	for (unsigned i = 0; i < GATE_SITES; i++) {
		if (!found[i] || (text.end && ((uintptr_t)found[i] < text.start ||
					       (uintptr_t)found[i] >= text.end)))
			continue;
		/* All of it, so that it stays one mapping. A policy that forbids this does so here
		 * already, and nothing has happened. */
		if (!text.end &&
		    (!find_segment(info, (uintptr_t)found[i], &text) ||
		     raw_call(SYS_mprotect, text.start, text.end - text.start, rwx, 0, 0, 0) < 0))
			return 0;
		gate_back[i] = (uintptr_t)found[i] + sites[i].back;
		if (write_jump(found[i] + sites[i].at, gate_entry(i)))
			done |= 1u << i;
	}
	if (text.end)
		raw_call(SYS_mprotect, text.start, text.end - text.start, PROT_READ | PROT_EXEC, 0,
			 0, 0);
	return done;
}

/* ---- objects ------------------------------------------------------------------------------------- */

static bool holds(const struct dl_phdr_info *info, const void *p)
{
	uint64_t addr = (uintptr_t)p;

	for (unsigned i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_LOAD &&
		    addr - (info->dlpi_addr + info->dlpi_phdr[i].p_vaddr) <
			    info->dlpi_phdr[i].p_memsz)
			return true;
	return false;
}

static int look(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct objects *o = arg;
	struct elf_symbol s;
	bool is_libc = !o->has_libc && elfsym_find(info, "__libc_start_main", &s);

	if (is_libc) {
		o->has_libc = true;
		o->libc = *info;
	}
	if (info->dlpi_addr && info->dlpi_addr == getauxval(AT_BASE)) {
		o->has_linker = true;
		o->linker = *info;
	}
	if (holds(info, &agent_control)) {
		o->seen_own = true;
		return 0;
	}
	for (unsigned i = 0; i < NR_EXPORTS && o->seen_own; i++)
		if (!o->next[i].fn && elfsym_find(info, export_names[i], &s)) {
			o->next[i].fn = (void *)(uintptr_t)s.addr;
			o->next[i].libc = is_libc;
		}
	return 0;
}

void patch_start(void)
{
	const unsigned needed = 1u << GATE_MUNMAP | 1u << GATE_MADVISE | 1u << GATE_MREMAP |
				1u << GATE_MMAP | 1u << GATE_BRK;
	struct objects o = {0};
	unsigned done = 0;

	dl_iterate_phdr(look, &o);
	if (o.has_libc)
		done = patch_object(&o.libc, false);
	if (o.has_linker)
		patch_object(&o.linker, true);
	if ((done & needed) == needed)
		agent_control.flags |= AGENT_PATCHED;
	for (unsigned i = 0; i < NR_EXPORTS; i++)
		if (!o.next[i].libc || agent_control.flags & AGENT_PATCHED)
			export_next[i] = o.next[i].fn;
}
