#include "agent/elfsym.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* More are not believed. */
#define MAX_SYMBOLS (1u << 20)

struct tables {
	const ElfW(Sym) * symbols;
	const char *strings;
	const uint32_t *gnu_hash, *hash;
	size_t strings_len;
};

/* glibc has made the pointers absolute; other linkers, and the vdso, have not. */
static const void *at(const struct dl_phdr_info *info, uint64_t ptr)
{
	return (const void *)(uintptr_t)(ptr < info->dlpi_addr ? ptr + info->dlpi_addr : ptr);
}

static bool find_tables(const struct dl_phdr_info *info, struct tables *ret)
{
	*ret = (struct tables){0};
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		if (info->dlpi_phdr[i].p_type != PT_DYNAMIC)
			continue;
		const ElfW(Dyn) *d =
			(const void *)(uintptr_t)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);

		for (; d->d_tag != DT_NULL; d++) {
			switch (d->d_tag) {
			case DT_SYMTAB:
				ret->symbols = at(info, d->d_un.d_ptr);
				break;
			case DT_STRTAB:
				ret->strings = at(info, d->d_un.d_ptr);
				break;
			case DT_STRSZ:
				ret->strings_len = d->d_un.d_val;
				break;
			case DT_GNU_HASH:
				ret->gnu_hash = at(info, d->d_un.d_ptr);
				break;
			case DT_HASH:
				ret->hash = at(info, d->d_un.d_ptr);
				break;
			}
		}
	}
	return ret->symbols && ret->strings && (ret->gnu_hash || ret->hash);
}

static bool is_it(const struct tables *t, uint32_t index, const char *name)
{
	const ElfW(Sym) *s = &t->symbols[index];

	return s->st_shndx != SHN_UNDEF && ELF64_ST_TYPE(s->st_info) == STT_FUNC &&
	       s->st_name < t->strings_len && strcmp(t->strings + s->st_name, name) == 0;
}

/* The layout is that of binutils' .gnu.hash: header, bloom filter, buckets, chains. */
static uint32_t find_gnu(const struct tables *t, const char *name)
{
	const uint32_t *h = t->gnu_hash, nr_buckets = h[0], first = h[1], bloom_words = h[2];
	const uint32_t *buckets = h + 4 + bloom_words * (sizeof(ElfW(Addr)) / 4);
	const uint32_t *chains = buckets + nr_buckets;
	uint32_t hash = 5381;

	for (const unsigned char *p = (const unsigned char *)name; *p; p++)
		hash = hash * 33 + *p;
	if (!nr_buckets)
		return 0;
	for (uint32_t i = buckets[hash % nr_buckets]; i >= first && i < MAX_SYMBOLS; i++) {
		uint32_t other = chains[i - first];

		if ((other | 1) == (hash | 1) && is_it(t, i, name))
			return i;
		if (other & 1)
			break;
	}
	return 0;
}

static uint32_t find_sysv(const struct tables *t, const char *name)
{
	const uint32_t nr = t->hash[1];

	for (uint32_t i = 1; i < nr && i < MAX_SYMBOLS; i++)
		if (is_it(t, i, name))
			return i;
	return 0;
}

int elfsym_find(const struct dl_phdr_info *info, const char *name, struct elf_symbol *ret)
{
	struct tables t;

	if (!find_tables(info, &t))
		return 0;
	uint32_t i = t.gnu_hash ? find_gnu(&t, name) : find_sysv(&t, name);
	if (!i)
		return 0;
	*ret = (struct elf_symbol){info->dlpi_addr + t.symbols[i].st_value, t.symbols[i].st_size};
	return 1;
}
