/* The vdso: this kernel's own, and made-up ones. */
#include <criterion/criterion.h>
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "restore/vdso.h"

/* An object with two functions of 16 bytes that end at once. */
struct made {
	Elf64_Ehdr e;
	Elf64_Phdr p[3];
	Elf64_Dyn dyn[5];
	Elf64_Sym sym[3];
	uint32_t hash[2 + 1 + 3];
	struct {
		Elf64_Nhdr n;
		char name[4];
		unsigned char id[8];
	} note;
	char names[64];
	unsigned char code[32] __attribute__((aligned(16)));
};

#define FAR 0xffffffffff700000ull /* old kernels link theirs for such an address */

static void make(struct made *m, uint64_t base, const char *first, const char *second)
{
	size_t at = 1 + strlen(first) + 1;

	memset(m, 0, sizeof(*m));
	memcpy(m->e.e_ident, ELFMAG, SELFMAG);
	m->e.e_ident[EI_CLASS] = ELFCLASS64;
	m->e.e_machine = EM_X86_64;
	m->e.e_phoff = offsetof(struct made, p);
	m->e.e_phentsize = sizeof(Elf64_Phdr);
	m->e.e_phnum = 3;
	m->p[0] = (Elf64_Phdr){.p_type = PT_DYNAMIC,
			       .p_offset = offsetof(struct made, dyn),
			       .p_filesz = sizeof(m->dyn)};
	m->p[1] = (Elf64_Phdr){.p_type = PT_LOAD, .p_vaddr = base, .p_filesz = sizeof(*m)};
	m->p[2] = (Elf64_Phdr){.p_type = PT_NOTE,
			       .p_offset = offsetof(struct made, note),
			       .p_filesz = sizeof(m->note)};
	m->dyn[0] = (Elf64_Dyn){DT_SYMTAB, {base + offsetof(struct made, sym)}};
	m->dyn[1] = (Elf64_Dyn){DT_STRTAB, {base + offsetof(struct made, names)}};
	m->dyn[2] = (Elf64_Dyn){DT_STRSZ, {sizeof(m->names)}};
	m->dyn[3] = (Elf64_Dyn){DT_HASH, {base + offsetof(struct made, hash)}};
	m->hash[0] = 1;
	m->hash[1] = 3;
	m->note.n = (Elf64_Nhdr){4, sizeof(m->note.id), NT_GNU_BUILD_ID};
	memcpy(m->note.name, "GNU", 4);
	memset(m->note.id, 0x5a, sizeof(m->note.id));
	strcpy(m->names + 1, first);
	strcpy(m->names + at, second);
	for (unsigned i = 0; i < 2; i++)
		m->sym[1 + i] = (Elf64_Sym){.st_name = (uint32_t)(i ? at : 1),
					    .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC),
					    .st_shndx = 1,
					    .st_value = base + offsetof(struct made, code) + 16 * i,
					    .st_size = 16};
	memset(m->code, 0xc3, sizeof(m->code));
}

/* This kernel's own; NULL when there is none. */
static const unsigned char *own_vdso(size_t *ret_len)
{
	FILE *f = fopen("/proc/self/maps", "re");
	const unsigned char *own = NULL;
	unsigned long start, end;
	char line[512];

	while (f && !own && fgets(line, sizeof(line), f))
		if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &start, &end) == 2) {
			own = (const unsigned char *)start;
			*ret_len = end - start;
		}
	if (f)
		fclose(f);
	return own;
}

Test(vdso, names_the_functions_of_this_kernel)
{
	size_t len = 0;
	const unsigned char *own = own_vdso(&len);
	struct vdso v;

	if (!own)
		cr_skip("no vdso");
	cr_assert_eq(vdso_parse(&v, own, len), 0);
	const struct vdso_symbol *s = vdso_find(&v, "__vdso_clock_gettime");
	cr_assert_not_null(s);
	cr_assert(s->room >= VDSO_JUMP_BYTES);
	cr_assert(v.build_id_len > 0);
}

Test(vdso, leads_a_copy_to_this_kernels_own)
{
	size_t len = 0;
	const unsigned char *own = own_vdso(&len);
	struct vdso v, theirs;
	const char *name = "";
	struct timespec a, b;

	if (!own)
		cr_skip("no vdso");
	unsigned char *copy =
		mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(copy, own, len);
	cr_assert_eq(vdso_parse(&v, own, len), 0);
	cr_assert_eq(vdso_parse(&theirs, copy, len), 0);
	cr_assert_eq(vdso_redirect(copy, len, &theirs, &v, (uintptr_t)own, &name), 0, "%s", name);
	cr_assert_eq(mprotect(copy, len, PROT_READ | PROT_EXEC), 0);
	int (*f)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *))(
		uintptr_t)(copy + vdso_find(&v, "__vdso_clock_gettime")->offset);
	cr_assert_eq(clock_gettime(CLOCK_MONOTONIC, &a), 0);
	cr_assert_eq(f(CLOCK_MONOTONIC, &b), 0);
	cr_assert(b.tv_sec >= a.tv_sec && b.tv_sec <= a.tv_sec + 10);
}

Test(vdso, makes_the_system_call_where_there_is_no_counterpart)
{
	struct vdso theirs, ours;
	const char *name = "";
	struct made other;
	unsigned cpu = ~0u;

	struct made *m =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	make(m, FAR, "__vdso_getcpu", "__vdso_time");
	make(&other, 0, "__vdso_a", "__vdso_b");
	cr_assert_eq(vdso_parse(&theirs, (void *)m, sizeof(*m)), 0);
	cr_assert_eq(vdso_parse(&ours, (void *)&other, sizeof(other)), 0);
	cr_assert(vdso_same_build(&theirs, &ours));
	cr_assert_eq(vdso_redirect((void *)m, sizeof(*m), &theirs, &ours, 0x1000, &name), 0);
	cr_assert_eq(mprotect(m, 4096, PROT_READ | PROT_EXEC), 0);
	long (*now)(time_t *) = (long (*)(time_t *))(uintptr_t)(m->code + 16);
	int (*where)(unsigned *, unsigned *, void *) =
		(int (*)(unsigned *, unsigned *, void *))(uintptr_t)m->code;
	cr_assert(labs(now(NULL) - time(NULL)) < 10);
	cr_assert_eq(where(&cpu, NULL, NULL), 0);
	cr_assert_neq(cpu, ~0u);
}

Test(vdso, jumps_to_the_counterpart)
{
	struct vdso theirs, ours;
	struct made m, other;
	const char *name;

	make(&m, 0, "__vdso_time", "__vdso_unheard_of");
	make(&other, FAR, "__vdso_unheard_of", "__vdso_time");
	cr_assert_eq(vdso_parse(&theirs, (void *)&m, sizeof(m)), 0);
	cr_assert_eq(vdso_parse(&ours, (void *)&other, sizeof(other)), 0);
	cr_assert_eq(vdso_redirect((void *)&m, sizeof(m), &theirs, &ours, 0x700000000000, &name),
		     0);
	uint64_t to;
	memcpy(&to, m.code + 6, sizeof(to));
	cr_assert_eq(to, 0x700000000000 + offsetof(struct made, code) + 16);
	cr_assert_eq(m.code[VDSO_JUMP_BYTES], 0xc3);
}

Test(vdso, names_the_function_that_can_do_neither)
{
	struct vdso theirs, ours;
	struct made m, other;
	const char *name;

	make(&m, 0, "__vdso_time", "__vdso_unheard_of");
	make(&other, 0, "__vdso_time", "__vdso_other");
	cr_assert_eq(vdso_parse(&theirs, (void *)&m, sizeof(m)), 0);
	cr_assert_eq(vdso_parse(&ours, (void *)&other, sizeof(other)), 0);
	struct made before = m;
	cr_assert_eq(vdso_redirect((void *)&m, sizeof(m), &theirs, &ours, 0, &name), -EOPNOTSUPP);
	cr_assert_str_eq(name, "__vdso_unheard_of");
	cr_assert_eq(memcmp(&before, &m, sizeof(m)), 0);
}

/* Whatever is parsed lies within the bytes: memory checkers watch. */
Test(vdso, believes_no_number)
{
	struct made m;
	struct vdso v;
	size_t bad = 0;

	for (size_t len = 0; len < sizeof(m); len++) {
		make(&m, 0, "__vdso_time", "__vdso_getcpu");
		unsigned char *exact = malloc(len);
		memcpy(exact, &m, len);
		bad += vdso_parse(&v, exact, len) < 0;
		free(exact);
	}
	cr_assert_eq(bad, sizeof(m));
	for (size_t at = 0; at < offsetof(struct made, code); at++) {
		for (unsigned bit = 0; bit < 8; bit++) {
			unsigned char *exact = malloc(sizeof(m));

			make(&m, 0, "__vdso_time", "__vdso_getcpu");
			memcpy(exact, &m, sizeof(m));
			exact[at] ^= (unsigned char)(1u << bit);
			if (vdso_parse(&v, exact, sizeof(m)) == 0)
				for (size_t i = 0; i < v.nr_symbols; i++)
					cr_assert(v.symbols[i].offset + v.symbols[i].room <=
						  sizeof(m));
			free(exact);
		}
	}
}
