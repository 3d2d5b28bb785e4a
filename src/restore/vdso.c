/* The vdso as an ELF object; vdso.h has the rules. */
#include "restore/vdso.h"

#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

#include "common/le.h"
#include "common/util.h"

#ifndef SYS_getrandom
#define SYS_getrandom 318
#endif

/* ---- reading ---------------------------------------------------------------------------- */

struct span {
	const unsigned char *p;
	uint64_t len;
};

/* Part of the object: where its tables lie, by the addresses that it was linked for. */
struct layout {
	struct span all;
	uint64_t base; /* address that the first byte was linked for */
	uint64_t code_start, code_end; /* offsets */
	uint64_t symtab, strtab, strtab_len, hash, gnu_hash; /* offsets; 0: none */
};

static bool within(const struct span *s, uint64_t offset, uint64_t len)
{
	return offset <= s->len && len <= s->len - offset;
}

static int read_build_id(struct vdso *v, const struct span *all, uint64_t at, uint64_t len)
{
	while (len >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr n;

		memcpy(&n, all->p + at, sizeof(n));
		uint64_t name = ALIGN_UP((uint64_t)n.n_namesz, 4);
		uint64_t desc = ALIGN_UP((uint64_t)n.n_descsz, 4);
		if (name + desc > len - sizeof(n))
			return -EBADMSG;
		const unsigned char *p = all->p + at + sizeof(n);
		if (n.n_type == NT_GNU_BUILD_ID && n.n_namesz == 4 && !memcmp(p, "GNU", 4) &&
		    n.n_descsz <= VDSO_MAX_BUILD_ID) {
			v->build_id_len = n.n_descsz;
			memcpy(v->build_id, p + name, n.n_descsz);
		}
		at += sizeof(n) + name + desc;
		len -= sizeof(n) + name + desc;
	}
	return 0;
}

static void read_dynamic(struct layout *l, uint64_t at, uint64_t len)
{
	for (; len >= sizeof(Elf64_Dyn); at += sizeof(Elf64_Dyn), len -= sizeof(Elf64_Dyn)) {
		Elf64_Dyn d;

		memcpy(&d, l->all.p + at, sizeof(d));
		if (d.d_tag == DT_NULL)
			return;
		if (d.d_tag == DT_SYMTAB)
			l->symtab = d.d_un.d_ptr - l->base;
		else if (d.d_tag == DT_STRTAB)
			l->strtab = d.d_un.d_ptr - l->base;
		else if (d.d_tag == DT_STRSZ)
			l->strtab_len = d.d_un.d_val;
		else if (d.d_tag == DT_HASH)
			l->hash = d.d_un.d_ptr - l->base;
		else if (d.d_tag == DT_GNU_HASH)
			l->gnu_hash = d.d_un.d_ptr - l->base;
	}
}

static int read_headers(struct vdso *v, struct layout *l)
{
	const struct span *all = &l->all;
	Elf64_Ehdr e;
	bool loaded = false;

	if (!within(all, 0, sizeof(e)))
		return -EBADMSG;
	memcpy(&e, all->p, sizeof(e));
	if (memcmp(e.e_ident, ELFMAG, SELFMAG) != 0 || e.e_ident[EI_CLASS] != ELFCLASS64 ||
	    e.e_machine != EM_X86_64 || e.e_phentsize != sizeof(Elf64_Phdr) ||
	    !within(all, e.e_phoff, (uint64_t)e.e_phnum * sizeof(Elf64_Phdr)))
		return -EBADMSG;
	/* Twice: the dynamic section speaks in addresses, which the load segment explains. */
	for (int pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < e.e_phnum; i++) {
			Elf64_Phdr p;

			memcpy(&p, all->p + e.e_phoff + i * sizeof(p), sizeof(p));
			if (!within(all, p.p_offset, p.p_filesz))
				return -EBADMSG;
			if (pass == 0 && p.p_type == PT_LOAD && !loaded) {
				loaded = true;
				l->base = p.p_vaddr - p.p_offset;
				l->code_start = p.p_offset;
				l->code_end = p.p_offset + p.p_filesz;
			} else if (pass == 1 && p.p_type == PT_DYNAMIC) {
				read_dynamic(l, p.p_offset, p.p_filesz);
			} else if (pass == 1 && p.p_type == PT_NOTE &&
				   read_build_id(v, all, p.p_offset, p.p_filesz) < 0) {
				return -EBADMSG;
			}
		}
	}
	return loaded && l->symtab && within(all, l->strtab, l->strtab_len) ? 0 : -EBADMSG;
}

/* The table of symbols does not say how long it is; the hash tables do. */
static int count_symbols(const struct layout *l, uint64_t *ret)
{
	const struct span *all = &l->all;

	if (l->hash) {
		if (!within(all, l->hash, 8))
			return -EBADMSG;
		*ret = le_get32(all->p + l->hash + 4);
		return 0;
	}
	if (!l->gnu_hash || !within(all, l->gnu_hash, 16))
		return -EBADMSG;
	uint64_t nr_buckets = le_get32(all->p + l->gnu_hash);
	uint64_t first = le_get32(all->p + l->gnu_hash + 4);
	uint64_t buckets = l->gnu_hash + 16 + 8 * (uint64_t)le_get32(all->p + l->gnu_hash + 8);
	uint64_t chains = buckets + 4 * nr_buckets, last = 0;
	if (!within(all, buckets, 4 * nr_buckets))
		return -EBADMSG;
	for (uint64_t i = 0; i < nr_buckets; i++)
		last = MAX(last, (uint64_t)le_get32(all->p + buckets + 4 * i));
	if (last < first) {
		*ret = first;
		return 0;
	}
	/* The chain of the last bucket ends with the last symbol: its lowest bit is set. */
	for (;; last++) {
		uint64_t at = chains + 4 * (last - first);

		if (!within(all, at, 4))
			return -EBADMSG;
		if (le_get32(all->p + at) & 1)
			break;
	}
	*ret = last + 1;
	return 0;
}

static int read_symbols(struct vdso *v, const struct layout *l)
{
	const struct span *all = &l->all;
	uint64_t n;
	int r = count_symbols(l, &n);

	if (r < 0)
		return r;
	if (n > all->len / sizeof(Elf64_Sym) || !within(all, l->symtab, n * sizeof(Elf64_Sym)))
		return -EBADMSG;
	for (uint64_t i = 0; i < n; i++) {
		Elf64_Sym s;

		memcpy(&s, all->p + l->symtab + i * sizeof(s), sizeof(s));
		if (s.st_shndx == SHN_UNDEF || ELF64_ST_TYPE(s.st_info) != STT_FUNC)
			continue;
		uint64_t at = s.st_value - l->base;
		if (s.st_name >= l->strtab_len || at < l->code_start || at >= l->code_end)
			return -EBADMSG;
		const char *name = (const char *)all->p + l->strtab + s.st_name;
		if (!memchr(name, 0, (size_t)(l->strtab_len - s.st_name)) ||
		    v->nr_symbols == VDSO_MAX_SYMBOLS)
			return -EBADMSG;
		v->symbols[v->nr_symbols++] = (struct vdso_symbol){
			.name = name,
			.offset = (uint32_t)at,
			.room = (uint32_t)(l->code_end - at),
		};
	}
	return 0;
}

int vdso_parse(struct vdso *v, const unsigned char *bytes, size_t len)
{
	struct layout l = {.all = {bytes, len}};

	*v = (struct vdso){0};
	if (len > VDSO_MAX_BYTES)
		return -EBADMSG;
	int r = read_headers(v, &l);
	if (r == 0)
		r = read_symbols(v, &l);
	if (r < 0)
		return r;
	for (size_t i = 0; i < v->nr_symbols; i++) {
		struct vdso_symbol *s = &v->symbols[i];

		for (size_t k = 0; k < v->nr_symbols; k++)
			if (v->symbols[k].offset > s->offset)
				s->room = MIN(s->room, v->symbols[k].offset - s->offset);
	}
	return 0;
}

const struct vdso_symbol *vdso_find(const struct vdso *v, const char *name)
{
	for (size_t i = 0; i < v->nr_symbols; i++)
		if (!strcmp(v->symbols[i].name, name))
			return &v->symbols[i];
	return NULL;
}

bool vdso_same_build(const struct vdso *a, const struct vdso *b)
{
	return a->build_id_len && a->build_id_len == b->build_id_len &&
	       !memcmp(a->build_id, b->build_id, a->build_id_len);
}

/* ---- changing --------------------------------------------------------------------------- */

/* jmp *0(%rip), and the address behind it: changes no register. */
static void put_jump(unsigned char *at, uint64_t to)
{
	static const unsigned char jump[] = {0xff, 0x25, 0, 0, 0, 0};

	memcpy(at, jump, sizeof(jump));
	le_put64(at + sizeof(jump), to);
}

/* mov $nr, %eax; syscall; ret */
static void put_syscall(unsigned char *at, uint32_t nr)
{
	at[0] = 0xb8;
	le_put32(at + 1, nr);
	at[5] = 0x0f;
	at[6] = 0x05;
	at[7] = 0xc3;
}

/* The system call that does the same, or -1. The arguments are the same, as far as it has them. */
static long call_of(const char *name)
{
	static const struct {
		const char *name;
		long nr;
	} calls[] = {
		{"clock_gettime", SYS_clock_gettime},
		{"gettimeofday", SYS_gettimeofday},
		{"time", SYS_time},
		{"getcpu", SYS_getcpu},
		{"clock_getres", SYS_clock_getres},
		{"getrandom", SYS_getrandom},
	};

	if (!strncmp(name, "__vdso_", 7))
		name += 7;
	for (size_t i = 0; i < ARRAY_SIZE(calls); i++)
		if (!strcmp(calls[i].name, name))
			return calls[i].nr;
	return -1;
}

int vdso_redirect(unsigned char *bytes, size_t len, const struct vdso *theirs,
		  const struct vdso *ours, uint64_t ours_addr, const char **ret_name)
{
	/* Names lie in the bytes: all are looked up before any byte changes. */
	const struct vdso_symbol *to[VDSO_MAX_SYMBOLS];
	long call[VDSO_MAX_SYMBOLS];

	for (size_t i = 0; i < theirs->nr_symbols; i++) {
		const struct vdso_symbol *s = &theirs->symbols[i];

		to[i] = vdso_find(ours, s->name);
		call[i] = call_of(s->name);
		*ret_name = s->name;
		if ((!to[i] && call[i] < 0) || s->offset > len ||
		    MIN(s->room, len - s->offset) < VDSO_JUMP_BYTES)
			return -EOPNOTSUPP;
	}
	for (size_t i = 0; i < theirs->nr_symbols; i++) {
		unsigned char *at = bytes + theirs->symbols[i].offset;

		if (to[i])
			put_jump(at, ours_addr + to[i]->offset);
		else
			put_syscall(at, (uint32_t)call[i]);
	}
	return 0;
}
