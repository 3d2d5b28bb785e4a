/* The plan for the memory; rmem_internal.h has the list of the files. */
#include "restore/rmem.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "common/util.h"
#include "image/image.h"
#include "restore/rjson.h"
#include "restore/rmem_internal.h"

enum {
	MAX_REGIONS = 1 << 20,
	MAX_AUXV = 1024, /* the kernel keeps some 400 bytes */
};

const char *rmem_name(const struct rmem_region *g, char buf[160])
{
	snprintf(buf, 160, "%s%.100s%s at 0x%" PRIx64, g->path[0] ? "'" : "memory", g->path,
		 g->path[0] ? "'" : "", g->start);
	return buf;
}

struct rmem_region *rmem_find(struct rmem *m, uint64_t addr)
{
	size_t a = 0, b = m->nr_regions;

	while (a < b) {
		size_t mid = a + (b - a) / 2;

		if (m->regions[mid].end <= addr)
			a = mid + 1;
		else
			b = mid;
	}
	return a < m->nr_regions && m->regions[a].start <= addr ? &m->regions[a] : NULL;
}

/* Upwards from where nothing lies as a rule; with a distance, since stacks grow. */
uint64_t rmem_gap(const struct rmem *m, const struct stub *s, uint64_t len)
{
	const uint64_t distance = MIB(16), stub_end = stub_addr(s) + stub_len(s);
	uint64_t at = UINT64_C(1) << 32;

	for (size_t i = 0; i <= m->nr_taken; i++) {
		const struct stub_range *t = &m->taken[i];

		if (i < m->nr_taken && t->end + distance <= at)
			continue;
		/* [at, next) is free of regions. */
		uint64_t next = i < m->nr_taken ? t->start : RMEM_OWN_TOP;
		if (at < stub_end + distance && stub_addr(s) < at + len + distance)
			at = ALIGN_UP(stub_end + distance, (uint64_t)MIB(2));
		if (next > at && next - at > len + distance)
			return at;
		if (i < m->nr_taken)
			at = MAX(at, ALIGN_UP(t->end + distance, (uint64_t)MIB(2)));
	}
	return 0;
}

/* ---- regions ---------------------------------------------------------------------------- */

static int bad_region(size_t i, const char *what, struct usnap_err *err)
{
	return usnap_fail(err, -EBADMSG, "cannot restore: maps[%zu] of process.json: %s", i, what);
}

static int parse_prot(const char *s, uint32_t *ret)
{
	static const char letters[] = "rwx";
	static const uint32_t bits[] = {PROT_READ, PROT_WRITE, PROT_EXEC};

	*ret = 0;
	if (strlen(s) != 3)
		return -EBADMSG;
	for (unsigned i = 0; i < 3; i++) {
		if (s[i] == letters[i])
			*ret |= bits[i];
		else if (s[i] != '-')
			return -EBADMSG;
	}
	return 0;
}

static int parse_dev(const char *s, uint32_t *ret_major, uint32_t *ret_minor)
{
	char *end;

	if (!strchr("0123456789abcdef", s[0]) || !s[0])
		return -EBADMSG;
	unsigned long major = strtoul(s, &end, 16);
	if (*end != ':' || !end[1] || !strchr("0123456789abcdef", end[1]))
		return -EBADMSG;
	unsigned long minor = strtoul(end + 1, &end, 16);
	if (*end || major > UINT32_MAX || minor > UINT32_MAX)
		return -EBADMSG;
	*ret_major = (uint32_t)major;
	*ret_minor = (uint32_t)minor;
	return 0;
}

static bool parse_kind(const char *s, enum vma_kind *ret)
{
	for (int k = VMA_ANON; k <= VMA_DEVICE; k++)
		if (!strcmp(s, vma_kind_name((enum vma_kind)k))) {
			*ret = (enum vma_kind)k;
			return true;
		}
	return false;
}

/* Letters that this program does not know say nothing that it could restore. */
static void parse_flags(const json_t *list, struct rmem_region *g)
{
	json_t *v;
	size_t i;

	g->has_flags = list != NULL;
	json_array_foreach (list, i, v)
		for (int f = 0; f < VMF_NR_FLAGS && json_is_string(v); f++)
			if (!strcmp(json_string_value(v), vma_flag_name((enum vma_flag)f)))
				g->flags |= UINT64_C(1) << f;
}

static int parse_fields(const json_t *o, struct rmem_region *g, struct usnap_err *err)
{
	const char *prot, *dev, *kind;
	int64_t offset, inode;
	json_t *flags;
	int r;

	if ((r = rjson_word(o, "start", &g->start, err)) < 0 ||
	    (r = rjson_word(o, "end", &g->end, err)) < 0 ||
	    (r = rjson_text(o, "prot", &prot, err)) < 0 ||
	    (r = rjson_bool_or(o, "shared", false, &g->shared, err)) < 0 ||
	    (r = rjson_int_or(o, "offset", 0, INT64_MAX, 0, &offset, err)) < 0 ||
	    (r = rjson_text_or(o, "dev", "0:0", &dev, err)) < 0 ||
	    (r = rjson_int_or(o, "inode", 0, INT64_MAX, 0, &inode, err)) < 0 ||
	    (r = rjson_text(o, "kind", &kind, err)) < 0 ||
	    (r = rjson_word_or(o, "page_size", 4096, &g->page_size, err)) < 0 ||
	    (r = rjson_array(o, "flags", 100, &flags, err)) < 0 ||
	    (r = rjson_path(o, "path", &g->path, err)) < 0)
		return r;
	if (!g->path && !(g->path = strdup("")))
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the memory");
	g->offset = (uint64_t)offset;
	g->inode = (uint64_t)inode;
	parse_flags(flags, g);
	if (parse_prot(prot, &g->prot) < 0)
		return usnap_fail(err, -EBADMSG, "cannot restore: a prot of process.json is wrong");
	if (parse_dev(dev, &g->dev_major, &g->dev_minor) < 0)
		return usnap_fail(err, -EBADMSG, "cannot restore: a dev of process.json is wrong");
	if (!parse_kind(kind, &g->kind))
		return usnap_fail(err, -EPROTONOSUPPORT,
				  "cannot restore: process.json has memory of the kind '%.40s', "
				  "which this version does not know",
				  kind);
	return 0;
}

static void choose_role(struct rmem_region *g)
{
	switch (g->kind) {
	case VMA_ANON:
		g->role = REGION_ANON;
		break;
	case VMA_SPECIAL:
		g->role = REGION_KERNEL;
		break;
	case VMA_DEVICE:
		g->role = REGION_VOID;
		break;
	case VMA_HUGETLB:
		/* Nobody else has the file behind it. */
		g->role = g->shared || strncmp(g->path, "/anon_hugepage", 14) != 0 ? REGION_OBJECT
										   : REGION_ANON;
		break;
	default:
		g->role = REGION_OBJECT;
	}
	if (region_has(g, VMF_SS))
		g->role = REGION_VOID;
	/* The kernel may drop these pages at any time, and what lies in them is secret: random
	 * numbers must not come twice. */
	if (region_has(g, VMF_DP))
		g->skip = true;
}

static int check_region(const struct rmem_region *g, uint64_t above, size_t i,
			struct usnap_err *err)
{
	uint64_t unit = g->kind == VMA_HUGETLB ? g->page_size : 4096;

	if (g->page_size < 4096 || g->page_size & (g->page_size - 1) ||
	    g->page_size > UINT64_C(1) << 34)
		return bad_region(i, "an impossible page size", err);
	if (g->start >= g->end || (g->start | g->end | g->offset) & (unit - 1))
		return bad_region(i, "not a range of pages", err);
	if (g->start < above)
		return bad_region(i, "overlaps the one before", err);
	if (g->end > RMEM_TOP)
		return bad_region(i, "beyond the memory of a process", err);
	if (g->offset > (uint64_t)INT64_MAX - (g->end - g->start))
		return bad_region(i, "an impossible offset", err);
	if (g->kind == VMA_ANON && g->shared)
		return bad_region(i, "both anonymous and shared", err);
	return 0;
}

static int plan_regions(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	json_t *list, *o;
	uint64_t above = 0;
	size_t i;
	int ret = rjson_array(r->process, "maps", MAX_REGIONS, &list, err);

	if (ret < 0)
		return ret;
	size_t n = list ? json_array_size(list) : 0;
	if (!n)
		return usnap_fail(err, -EBADMSG, "cannot restore: process.json has no maps");
	m->regions = calloc(n, sizeof(*m->regions));
	m->taken = calloc(n, sizeof(*m->taken));
	if (!m->regions || !m->taken)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the memory");
	json_array_foreach (list, i, o) {
		struct rmem_region *g = &m->regions[m->nr_regions++];

		if ((ret = parse_fields(o, g, err)) < 0)
			return ret;
		choose_role(g);
		/* Above all that a process can map, and everywhere the same. */
		if (g->kind == VMA_SPECIAL && !strcmp(g->path, "[vsyscall]")) {
			g->role = REGION_NOTHING;
			continue;
		}
		if ((ret = check_region(g, above, i, err)) < 0 ||
		    (ret = rmem_parse_guards(o, g, err)) < 0)
			return ret;
		above = g->end;
		m->taken[m->nr_taken++] = (struct stub_range){g->start, g->end};
	}
	return 0;
}

/* ---- pages ------------------------------------------------------------------------------ */

/* Walks pages and regions side by side: every page must lie in a region. */
static int count_pages(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	size_t i = 0;
	int ret = img_load_index(r->img);

	if (ret < 0)
		return usnap_fail(err, ret, "%s", usnap_image_error(r->img));
	/* What is missing is told before anything is made, and by --dry-run. */
	if ((ret = img_open_chain(r->img, err)) < 0)
		return ret;
	for (uint64_t p = 0; p < r->img->nr_pages; p++) {
		uint64_t addr = img_page_addr(r->img, p);

		if (addr >= RMEM_CONTENT)
			break;
		while (i < m->nr_regions && m->regions[i].end <= addr)
			i++;
		struct rmem_region *g = i < m->nr_regions ? &m->regions[i] : NULL;
		if (!g || addr < g->start || g->role == REGION_NOTHING)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore '%s': page 0x%" PRIx64
					  " lies in no region of process.json",
					  r->o->image, addr);
		/* What is mapped of a file stays in the file. */
		if (g->kind == VMA_FILE_SHARED)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore '%s': page 0x%" PRIx64
					  " is of a file that is mapped shared, which an image has "
					  "nothing of",
					  r->o->image, addr);
		g->nr_pages++;
	}
	return 0;
}

/* Private memory that was writable once is accounted for ever after, and neighbours of which one is
 * and one is not do not merge. */
static bool was_writable(const struct rmem_region *g)
{
	return !g->shared && region_has(g, VMF_AC) && !(g->prot & PROT_WRITE);
}

/* What is filled must be writable meanwhile. What is not comes as it shall be, so that the kernel
 * accounts for no more than it did. */
static void choose_protection(struct rmem *m)
{
	for (size_t i = 0; i < m->nr_regions; i++) {
		struct rmem_region *g = &m->regions[i];

		if (g->role != REGION_ANON && g->role != REGION_OBJECT)
			g->skip = true;
		bool fill = g->nr_pages && !g->skip;
		g->map_prot = fill || was_writable(g) ? PROT_READ | PROT_WRITE : g->prot;
		if (fill)
			m->fill_pages += g->nr_pages;
	}
}

/* ---- mm --------------------------------------------------------------------------------- */

static int plan_mm(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	const struct {
		const char *key;
		__u64 *to;
	} fields[] = {
		{"start_code", &m->mm.start_code},   {"end_code", &m->mm.end_code},
		{"start_data", &m->mm.start_data},   {"end_data", &m->mm.end_data},
		{"start_brk", &m->mm.start_brk},     {"brk", &m->mm.brk},
		{"start_stack", &m->mm.start_stack}, {"arg_start", &m->mm.arg_start},
		{"arg_end", &m->mm.arg_end},	     {"env_start", &m->mm.env_start},
		{"env_end", &m->mm.env_end},
	};
	json_t *o;
	int ret = rjson_object(r->process, "mm", &o, err);

	if (ret < 0)
		return ret;
	if (!o)
		return usnap_fail(err, -EBADMSG, "cannot restore: process.json has no mm");
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		uint64_t v;

		if ((ret = rjson_word(o, fields[i].key, &v, err)) < 0)
			return ret;
		if (v > RMEM_TOP)
			return usnap_fail(err, -EBADMSG,
					  "cannot restore: mm.%s of process.json is no address",
					  fields[i].key);
		*fields[i].to = v;
	}
	return rjson_hex(o, "auxv", MAX_AUXV, &m->auxv, &m->auxv_len, err);
}

static int plan_exe(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	cleanup_free char *exe = NULL;
	struct stat st;
	int ret = rjson_path(r->process, "exe", &exe, err);

	if (ret < 0 || !exe)
		return ret;
	/* To open a device can do something. */
	if (exe[0] == '/' && stat(exe, &st) == 0 && S_ISREG(st.st_mode)) {
		m->exe = exe;
		exe = NULL;
		return 0;
	}
	for (size_t i = 0; i < m->nr_regions && !m->exe_region; i++)
		if (m->regions[i].role == REGION_OBJECT && !strcmp(m->regions[i].path, exe))
			m->exe_region = &m->regions[i];
	ret = restore_problem(r, RESTORE_NOTE, "program",
			      "'%.2000s' is no longer there: /proc/PID/exe leads to %s", exe,
			      m->exe_region ? "what the image has of it, or without "
					      "CAP_CHECKPOINT_RESTORE to uffd-snap"
					    : "uffd-snap");
	return ret < 0 ? usnap_fail_errno(err, ret, "cannot restore the memory") : 0;
}

/* ---- the plan --------------------------------------------------------------------------- */

int rmem_plan(struct restore *r, struct usnap_err *err)
{
	struct rmem *m = calloc(1, sizeof(*m));
	int ret;

	if (!m)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the memory");
	r->mem = m;
	if ((ret = plan_regions(r, m, err)) < 0 || (ret = plan_mm(r, m, err)) < 0 ||
	    (ret = plan_exe(r, m, err)) < 0 || (ret = count_pages(r, m, err)) < 0)
		return ret;
	choose_protection(m);
	if ((ret = rmem_plan_objects(r, m, err)) < 0 || (ret = rmem_plan_guards(r, m, err)) < 0)
		return ret;
	return rmem_plan_vdso(r, m, err);
}

void rmem_free(struct rmem *m)
{
	if (!m)
		return;
	for (size_t i = 0; i < m->nr_regions; i++) {
		free(m->regions[i].path);
		free(m->regions[i].guards);
	}
	for (size_t i = 0; i < m->nr_objects; i++) {
		free(m->objects[i].open_path);
		if (m->objects[i].content_fd >= 0)
			close(m->objects[i].content_fd);
	}
	free(m->regions);
	free(m->objects);
	free(m->order);
	free(m->taken);
	free(m->auxv);
	free(m->exe);
	free(m->vdso.bytes);
	free(m);
}

const struct stub_range *rmem_taken(const struct restore *r, size_t *ret_n)
{
	*ret_n = r->mem->nr_taken;
	return r->mem->taken;
}

void rmem_describe(const struct restore *r, json_t *o)
{
	static const char *const vdso[] = {"none", "same", "foreign"};
	const struct rmem *m = r->mem;
	uint64_t mapped = 0;

	for (size_t i = 0; i < m->nr_taken; i++)
		mapped += m->taken[i].end - m->taken[i].start;
	json_object_set_new(o, "memory",
			    json_pack("{s:I,s:I,s:I,s:s}", "regions", (json_int_t)m->nr_regions,
				      "mapped_bytes", (json_int_t)mapped, "stored_bytes",
				      (json_int_t)(m->fill_pages * r->info.page_size), "vdso",
				      vdso[m->vdso.mode]));
}
