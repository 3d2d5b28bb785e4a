/* The layout of the address space: "mm" and "maps" of process.json. */
#include <string.h>
#include <sys/mman.h>

#include "common/util.h"
#include "process/pstate_internal.h"

/* Where the heap ends: page by page that is told by the mapping which the kernel names so. What a
 * helper was told is exact, and holds as long as the two agree. */
static uint64_t find_brk(const struct pstate *ps, uint64_t start_brk, bool *ret_exact)
{
	const struct maps *m = ps->maps;
	uint64_t end = start_brk, told = ps->facts.brk > 0 ? (uint64_t)ps->facts.brk : 0;

	for (size_t i = 0; i < m->n; i++)
		if (!strcmp(m->v[i].path, "[heap]"))
			end = MAX(end, m->v[i].end);
	*ret_exact = told && ALIGN_UP(told, (uint64_t)4096) == ALIGN_UP(end, (uint64_t)4096);
	return *ret_exact ? told : end;
}

json_t *mm_json(const struct pstate *ps)
{
	static const struct {
		const char *name;
		unsigned field; /* proc(5) */
	} fields[] = {{"start_code", 26}, {"end_code", 27}, {"start_stack", 28},
		      {"start_data", 45}, {"end_data", 46}, {"start_brk", 47},
		      {"arg_start", 48},  {"arg_end", 49},  {"env_start", 50},
		      {"env_end", 51}};
	const char *stat = span_text(ps->stat);
	json_t *o = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		json_object_set_new(o, fields[i].name,
				    json_address(stat_field(stat, fields[i].field)));
	bool exact;
	json_object_set_new(o, "brk", json_address(find_brk(ps, stat_field(stat, 47), &exact)));
	json_object_set_new(o, "brk_exact", json_boolean(exact));
	if (ps->auxv)
		json_object_set_new(o, "auxv", json_hex(ps->auxv, ps->auxv_len));
	return o;
}

static const char *content_of(const struct vma *v)
{
	/* The vdso is code, and debuggers want it; [vvar] is the kernel's clock. */
	if (strcmp(v->path, "[vdso]") == 0)
		return "image";
	switch (v->kind) {
	case VMA_FILE:
	case VMA_FILE_SHARED:
	case VMA_SHMEM_PRIVATE: /* what was not written through the mapping is the file's */
		return "file";
	case VMA_SPECIAL:
	case VMA_DEVICE:
		return "none";
	default:
		return "image";
	}
}

static json_t *vma_json(const struct vma *v)
{
	json_t *o = json_object();
	char text[32];

	json_object_set_new(o, "start", json_address(v->start));
	json_object_set_new(o, "end", json_address(v->end));
	snprintf(text, sizeof(text), "%c%c%c", v->prot & PROT_READ ? 'r' : '-',
		 v->prot & PROT_WRITE ? 'w' : '-', v->prot & PROT_EXEC ? 'x' : '-');
	json_object_set_new(o, "prot", json_string(text));
	json_object_set_new(o, "shared", json_boolean(v->shared));
	json_object_set_new(o, "offset", json_integer((json_int_t)v->offset));
	snprintf(text, sizeof(text), "%02x:%02x", v->dev_major, v->dev_minor);
	json_object_set_new(o, "dev", json_string(text));
	json_object_set_new(o, "inode", json_integer((json_int_t)v->inode));
	json_set_text(o, "path", v->path);
	json_object_set_new(o, "kind", json_string(vma_kind_name(v->kind)));
	json_object_set_new(o, "content", json_string(content_of(v)));
	if (v->has_flags) {
		json_t *flags = json_array();

		for (unsigned f = 0; f < VMF_NR_FLAGS; f++)
			if (v->flags >> f & 1)
				json_array_append_new(flags, json_string(vma_flag_name(f)));
		json_object_set_new(o, "flags", flags);
	}
	json_object_set_new(o, "page_size", json_integer((json_int_t)v->page_size));
	return o;
}

/* *at: the first range that may reach into v. */
static json_t *guards_json(const struct maps *m, const struct vma *v, size_t *at)
{
	json_t *a = NULL;

	while (*at < m->nr_guards && m->guards[*at].end <= v->start)
		++*at;
	for (size_t i = *at; i < m->nr_guards && m->guards[i].start < v->end; i++) {
		if (!a)
			a = json_array();
		json_array_append_new(a, json_pack("[o,o]",
						   json_address(MAX(m->guards[i].start, v->start)),
						   json_address(MIN(m->guards[i].end, v->end))));
	}
	return a;
}

json_t *maps_json(const struct maps *m)
{
	json_t *a = json_array();
	size_t at = 0;

	for (size_t i = 0; i < m->n; i++) {
		json_t *o = vma_json(&m->v[i]), *guards = guards_json(m, &m->v[i], &at);

		if (guards)
			json_object_set_new(o, "guards", guards);
		json_array_append_new(a, o);
	}
	return a;
}
