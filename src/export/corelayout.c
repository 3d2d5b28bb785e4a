#include "export/corelayout.h"

#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "common/util.h"

_Static_assert(sizeof(Elf64_Shdr) == CORE_SHDR_BYTES, "elf(5)");

/* The type of file offsets is signed. */
#define FILE_MAX ((uint64_t)INT64_MAX)

void core_layout_init(struct core_layout *l, uint32_t page_size)
{
	*l = (struct core_layout){.page_size = page_size};
}

void core_layout_free(struct core_layout *l)
{
	free(l->seg);
	l->seg = NULL;
	l->n = l->room = 0;
}

/* The segment under construction goes on until end. */
static int layout_close_segment(struct core_layout *l, uint64_t end)
{
	if (l->n == l->room) {
		size_t room = l->room ? l->room * 2 : 256;
		/* p_num is sh_info of section 0, 32 bits, and counts PT_NOTE too. */
		if (l->n >= UINT32_MAX - 1)
			return -E2BIG;
		struct core_segment *bigger = realloc(l->seg, room * sizeof(*bigger));
		if (!bigger)
			return -ENOMEM;
		l->seg = bigger;
		l->room = room;
	}
	l->seg[l->n++] = (struct core_segment){
		.vaddr = l->seg_start,
		.memsz = end - l->seg_start,
		.filesz = l->seg_end - l->seg_start,
		.flags = l->flags,
		.region = l->region,
	};
	return 0;
}

int core_layout_begin(struct core_layout *l, uint64_t start, uint64_t end, uint32_t prot,
		      uint64_t max_gap, uint32_t region)
{
	if (start >= end || start < l->end || start % l->page_size || end % l->page_size)
		return -EINVAL;
	l->start = l->seg_start = l->seg_end = start;
	l->end = end;
	l->max_gap = max_gap;
	l->region = region;
	l->flags = (prot & PROT_READ ? PF_R : 0) | (prot & PROT_WRITE ? PF_W : 0) |
		   (prot & PROT_EXEC ? PF_X : 0);
	return 0;
}

int core_layout_run(struct core_layout *l, uint64_t start, uint64_t end)
{
	int r;

	if (start >= end || start < l->seg_end || end > l->end || start % l->page_size ||
	    end % l->page_size)
		return -EINVAL;
	if (start - l->seg_end > l->max_gap) {
		r = layout_close_segment(l, start);
		if (r)
			return r;
		l->seg_start = start;
	}
	l->seg_end = end;
	return 0;
}

int core_layout_end(struct core_layout *l)
{
	/* The tail of a region with contents is a gap like any other. */
	if (l->seg_end > l->seg_start && l->end - l->seg_end <= l->max_gap)
		l->seg_end = l->end;
	return layout_close_segment(l, l->end);
}

int core_layout_finish(struct core_layout *l, uint64_t notes_len)
{
	uint64_t at = sizeof(Elf64_Ehdr) + (l->n + 1) * sizeof(Elf64_Phdr);

	l->headers_len = at;
	l->notes_offset = at;
	at = ALIGN_UP(at + notes_len, (uint64_t)l->page_size);
	l->data_offset = at;
	for (size_t i = 0; i < l->n; i++) {
		struct core_segment *s = &l->seg[i];

		s->offset = at;
		if (s->filesz > FILE_MAX - at)
			return -EFBIG;
		at += s->filesz;
	}
	l->shdr_offset = 0;
	if (l->n + 1 >= PN_XNUM) {
		l->shdr_offset = at;
		if (CORE_SHDR_BYTES > FILE_MAX - at)
			return -EFBIG;
		at += CORE_SHDR_BYTES;
	}
	l->file_len = at;
	return 0;
}

int core_layout_headers(const struct core_layout *l, uint64_t notes_len, unsigned char **ret)
{
	unsigned char *buf = malloc(l->headers_len);
	if (!buf)
		return -ENOMEM;

	Elf64_Ehdr eh = {
		.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT,
			    ELFOSABI_NONE},
		.e_type = ET_CORE,
		.e_machine = EM_X86_64,
		.e_version = EV_CURRENT,
		.e_phoff = sizeof(eh),
		.e_ehsize = sizeof(eh),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = (uint16_t)MIN(l->n + 1, (size_t)PN_XNUM),
	};
	if (l->shdr_offset) {
		eh.e_shoff = l->shdr_offset;
		eh.e_shentsize = sizeof(Elf64_Shdr);
		eh.e_shnum = 1;
	}
	memcpy(buf, &eh, sizeof(eh));

	unsigned char *p = buf + sizeof(eh);
	Elf64_Phdr note = {
		.p_type = PT_NOTE,
		.p_offset = l->notes_offset,
		.p_filesz = notes_len,
		.p_align = 4,
	};
	memcpy(p, &note, sizeof(note));
	for (size_t i = 0; i < l->n; i++) {
		const struct core_segment *s = &l->seg[i];
		Elf64_Phdr ph = {
			.p_type = PT_LOAD,
			.p_flags = s->flags,
			.p_offset = s->offset,
			.p_vaddr = s->vaddr,
			.p_filesz = s->filesz,
			.p_memsz = s->memsz,
			.p_align = l->page_size,
		};
		p += sizeof(ph);
		memcpy(p, &ph, sizeof(ph));
	}
	*ret = buf;
	return 0;
}

void core_layout_shdr(const struct core_layout *l, unsigned char ret[CORE_SHDR_BYTES])
{
	/* As the kernel does it: fs/binfmt_elf.c, fill_extnum_info(). */
	Elf64_Shdr sh = {.sh_type = SHT_NULL, .sh_size = 1, .sh_info = (uint32_t)(l->n + 1)};

	memcpy(ret, &sh, sizeof(sh));
}
