/*
 * The kernel's own code and clock pages.
 *
 * A program keeps addresses in the vdso. Where this kernel's is the same as
 * the image's, it is mapped where it was. Where it is not, the image's code
 * comes as ordinary memory whose entries lead to this kernel's vdso, mapped
 * elsewhere. Its clock pages ([vvar]) become zeros: code that was interrupted
 * within the vdso finds a clock without a hardware counter there, and makes a
 * system call.
 */
#include <asm/prctl.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/procfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <unistd.h>

#include "common/io.h"
#include "common/le.h"
#include "common/util.h"
#include "image/image.h"
#include "restore/rmem_internal.h"

#ifndef ARCH_MAP_VDSO_64
#define ARCH_MAP_VDSO_64 0x2003
#endif

/* ---- this kernel's ---------------------------------------------------------------------- */

struct own_vdso {
	const unsigned char *bytes; /* NULL: none */
	uint64_t len;
	uint64_t lead; /* of [vvar] and the like, right before */
};

static int find_own(struct own_vdso *o, struct usnap_err *err)
{
	cleanup_free char *text = NULL;
	uint64_t lead_start = 0, lead_end = 0;
	int r = io_read_file_at(-1, "/proc/self/maps", MIB(16), &text, NULL);

	*o = (struct own_vdso){0};
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot read '/proc/self/maps'");
	for (char *line = text, *end; line && *line; line = end + 1) {
		uint64_t start, stop;

		end = strchr(line, '\n');
		if (!end)
			break;
		*end = '\0';
		if (sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &stop) != 2)
			continue;
		if (strstr(line, "[vvar")) {
			if (start != lead_end)
				lead_start = start;
			lead_end = stop;
		} else if (strstr(line, "[vdso]")) {
			o->bytes = (const unsigned char *)(uintptr_t)start;
			o->len = stop - start;
			o->lead = lead_end == start ? start - lead_start : 0;
		}
	}
	return 0;
}

/* ---- the plan --------------------------------------------------------------------------- */

/* Whether this kernel's block can lie where the image's vdso was. */
static bool block_fits(const struct rmem *m, const struct own_vdso *o, const struct rmem_region *g)
{
	if (g->start < o->lead)
		return false;
	uint64_t start = g->start - o->lead;
	for (size_t i = 0; i < m->nr_regions; i++) {
		const struct rmem_region *v = &m->regions[i];

		if (v->role != REGION_NOTHING && v->role != REGION_KERNEL && v->start < g->end &&
		    v->end > start)
			return false;
	}
	return true;
}

/* Register 16 of a thread: rip (struct user_regs_struct). */
static int instruction_of(struct restore *r, size_t thread, uint64_t *ret)
{
	const void *notes;
	size_t len;
	int c = usnap_image_get_notes(r->img, thread, &notes, &len);

	if (c < 0)
		return c;
	/* Back to back, as the image module has checked. */
	for (const unsigned char *p = notes; len;) {
		uint64_t name_len = ALIGN_UP((uint64_t)le_get32(p), 4);
		uint64_t desc = ALIGN_UP((uint64_t)le_get32(p + 4), 4);
		struct elf_prstatus s;

		if (le_get32(p + 8) == NT_PRSTATUS && desc >= sizeof(s)) {
			memcpy(&s, p + 12 + name_len, sizeof(s));
			*ret = ((struct user_regs_struct *)(void *)&s.pr_reg)->rip;
			return 0;
		}
		p += 12 + name_len + desc;
		len -= 12 + (size_t)(name_len + desc);
	}
	return -ENOENT;
}

/* Whether a thread that stands at offset of the old code can go on: not among bytes that change,
 * and only behind a system call, which is all that is left to do there. */
static bool can_go_on(const struct rmem_vdso *v, const struct vdso *theirs, uint64_t offset)
{
	for (size_t i = 0; i < theirs->nr_symbols; i++)
		if (offset > theirs->symbols[i].offset &&
		    offset < theirs->symbols[i].offset + VDSO_JUMP_BYTES)
			return false;
		else if (offset == theirs->symbols[i].offset)
			return true;
	return offset >= 2 && v->bytes[offset - 2] == 0x0f && v->bytes[offset - 1] == 0x05;
}

static int check_threads(struct restore *r, const struct rmem *m, const struct vdso *theirs,
			 struct usnap_err *err)
{
	const struct rmem_region *g = &m->regions[m->vdso.region];
	size_t n;

	if (usnap_image_get_nr_threads(r->img, &n) < 0)
		return usnap_fail(err, -EBADMSG, "%s", usnap_image_error(r->img));
	for (size_t i = 0; i < n; i++) {
		uint64_t ip;

		if (instruction_of(r, i, &ip) < 0 || ip < g->start || ip >= g->end ||
		    can_go_on(&m->vdso, theirs, ip - g->start))
			continue;
		int ret = restore_problem(r, RESTORE_REFUSE, "vdso",
					  "a thread was reading the clock in code of another "
					  "kernel, at 0x%" PRIx64,
					  ip);
		if (ret < 0)
			return usnap_fail_errno(err, ret, "cannot restore the memory");
	}
	return 0;
}

static int plan_foreign(struct restore *r, struct rmem *m, const struct own_vdso *o,
			const struct vdso *theirs, const struct vdso *ours, struct usnap_err *err)
{
	const struct rmem_region *g = &m->regions[m->vdso.region];
	size_t len = (size_t)(g->end - g->start);
	cleanup_free unsigned char *trial = malloc(len);
	const char *symbol = "";

	m->vdso.mode = VDSO_FOREIGN;
	if (!trial)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the memory");
	memcpy(trial, m->vdso.bytes, len);
	int ret = vdso_redirect(trial, len, theirs, ours, 0, &symbol);
	if (ret < 0)
		ret = restore_problem(r, RESTORE_FATAL, "vdso",
				      "it has code of another kernel, whose '%.64s' has no "
				      "counterpart here",
				      symbol);
	else
		ret = restore_problem(r, RESTORE_NOTE, "vdso",
				      "it has code of another kernel, which is led to this one's");
	if (ret < 0)
		return usnap_fail_errno(err, ret, "cannot restore the memory");
	return check_threads(r, m, theirs, err);
}

int rmem_plan_vdso(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	struct vdso theirs, ours;
	struct own_vdso o;
	size_t i = 0;
	int ret;

	while (i < m->nr_regions && strcmp(m->regions[i].path, "[vdso]") != 0)
		i++;
	if (i == m->nr_regions || m->regions[i].role != REGION_KERNEL)
		return 0;
	const struct rmem_region *g = &m->regions[i];
	size_t len = (size_t)(g->end - g->start);
	if (len > VDSO_MAX_BYTES)
		return usnap_fail(err, -EBADMSG,
				  "cannot restore: [vdso] of process.json is too large");
	if ((ret = find_own(&o, err)) < 0)
		return ret;
	m->vdso.region = i;
	m->vdso.lead = o.lead;
	m->vdso.own_bytes = o.len;
	m->vdso.bytes = malloc(len);
	if (!m->vdso.bytes)
		return usnap_fail_errno(err, -ENOMEM, "cannot restore the memory");
	ret = usnap_image_read(r->img, g->start, m->vdso.bytes, len);
	if (ret < 0)
		return usnap_fail(err, ret, "%s", usnap_image_error(r->img));

	bool parsed = o.bytes && o.len <= VDSO_MAX_BYTES &&
		      vdso_parse(&theirs, m->vdso.bytes, len) == 0 &&
		      vdso_parse(&ours, o.bytes, (size_t)o.len) == 0;
	bool same = o.bytes && o.len == len &&
		    (!memcmp(m->vdso.bytes, o.bytes, len) ||
		     (parsed && vdso_same_build(&theirs, &ours)));
	if (same && block_fits(m, &o, g)) {
		m->vdso.mode = VDSO_SAME;
		m->vdso.block = g->start - o.lead;
		return 0;
	}
	if (parsed)
		return plan_foreign(r, m, &o, &theirs, &ours, err);
	ret = restore_problem(r, RESTORE_FATAL, "vdso",
			      "it has code of another kernel, which cannot be read");
	return ret < 0 ? usnap_fail_errno(err, ret, "cannot restore the memory") : 0;
}

/* ---- made ------------------------------------------------------------------------------- */

/* The kernel takes the address as a wish: what it did is looked up. */
static int check_mapped(struct restore *r, const struct rmem *m, struct usnap_err *err)
{
	cleanup_free char *text = NULL;
	char path[64], want[64];

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)r->builder);
	int ret = io_read_file_at(-1, path, MIB(1024), &text, NULL);
	if (ret < 0)
		return usnap_fail_errno(err, ret, "cannot read '%s'", path);
	snprintf(want, sizeof(want), "%08" PRIx64 "-", m->vdso.block + m->vdso.lead);
	for (char *line = text; line && *line;) {
		char *end = strchr(line, '\n'), *found = strstr(line, "[vdso]");

		if (end && found && found < end)
			return !strncmp(line, want, strlen(want))
				       ? 0
				       : usnap_fail(err, -EEXIST,
						    "cannot map the vdso at 0x%" PRIx64
						    ": the kernel chose another address",
						    m->vdso.block + m->vdso.lead);
		line = end ? end + 1 : NULL;
	}
	return usnap_fail(err, -ENOENT, "cannot map the vdso: it is not there");
}

/* Ordinary memory in place of the image's vdso and its clock pages. */
static int map_old(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	cleanup_free struct rmem_calls *c = malloc(sizeof(*c));

	if (!c)
		return usnap_fail_errno(err, -ENOMEM, "cannot map the vdso");
	calls_begin(c, r, err);
	for (size_t i = 0; i < m->nr_regions; i++) {
		const struct rmem_region *g = &m->regions[i];

		if (g->role != REGION_KERNEL)
			continue;
		bool code = i == m->vdso.region;
		calls_room(c, 1);
		calls_add(c, false, "map", g, SYS_mmap, g->start, g->end - g->start,
			  code ? PROT_READ | PROT_WRITE : PROT_READ,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, (uint64_t)-1, 0);
	}
	return calls_run(c);
}

int rmem_map_vdso(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	int ret;

	if (m->vdso.mode == VDSO_NONE)
		return 0;
	if (m->vdso.mode == VDSO_FOREIGN) {
		if ((ret = map_old(r, m, err)) < 0)
			return ret;
		m->vdso.block = rmem_gap(m, r->stub, m->vdso.lead + m->vdso.own_bytes);
	}
	int64_t got =
		stub_call(r->stub, SYS_arch_prctl, ARCH_MAP_VDSO_64, m->vdso.block, 0, 0, 0, 0);
	if (got < 0 && got >= -4095) {
		usnap_fail_errno(err, (int)got, "cannot map the vdso at 0x%" PRIx64, m->vdso.block);
		return got == -EINVAL
			       ? usnap_hint(err, "the kernel needs CONFIG_CHECKPOINT_RESTORE")
			       : (int)got;
	}
	return check_mapped(r, m, err);
}

int rmem_finish_vdso(struct restore *r, struct rmem *m, struct usnap_err *err)
{
	const struct rmem_region *g = &m->regions[m->vdso.region];
	struct vdso theirs, ours;
	struct own_vdso o;
	const char *symbol;

	if (m->vdso.mode != VDSO_FOREIGN)
		return 0;
	size_t len = (size_t)(g->end - g->start);
	int ret = find_own(&o, err);
	if (ret < 0)
		return ret;
	if ((ret = vdso_parse(&theirs, m->vdso.bytes, len)) < 0 ||
	    (ret = vdso_parse(&ours, o.bytes, (size_t)o.len)) < 0 ||
	    (ret = vdso_redirect(m->vdso.bytes, len, &theirs, &ours, m->vdso.block + m->vdso.lead,
				 &symbol)) < 0)
		return usnap_fail_errno(err, ret, "cannot lead the vdso to this kernel's");
	struct iovec local = {m->vdso.bytes, len}, remote = {(void *)(uintptr_t)g->start, len};
	ssize_t n = process_vm_writev(r->builder, &local, 1, &remote, 1, 0);
	if (n != (ssize_t)len)
		return usnap_fail_errno(err, n < 0 ? -errno : -EFAULT, "cannot fill the vdso");
	int64_t done =
		stub_call(r->stub, SYS_mprotect, g->start, len, PROT_READ | PROT_EXEC, 0, 0, 0);
	return done < 0 ? usnap_fail_errno(err, (int)done, "cannot protect the vdso") : 0;
}
