/* Protections, advice, names, mm; rmem_internal.h has the list of the files. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common/compat.h"
#include "common/util.h"
#include "restore/rmem_internal.h"

#ifndef SYS_mseal /* Linux 6.10 */
#define SYS_mseal 462
#endif
#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

static bool is_ours(const struct rmem_region *g)
{
	return g->role == REGION_ANON || g->role == REGION_OBJECT;
}

static void advise(struct rmem_calls *c, const struct rmem_region *g)
{
	static const struct {
		enum vma_flag flag;
		int advice;
		bool hint; /* where the kernel has no use for it, nothing is lost */
	} advices[] = {
		{VMF_DC, MADV_DONTFORK, false},	 {VMF_WF, MADV_WIPEONFORK, false},
		{VMF_DD, MADV_DONTDUMP, false},	 {VMF_MG, MADV_MERGEABLE, true},
		{VMF_SR, MADV_SEQUENTIAL, true}, {VMF_RR, MADV_RANDOM, true},
	};

	for (size_t i = 0; i < ARRAY_SIZE(advices); i++) {
		if (!region_has(g, advices[i].flag))
			continue;
		/* MAP_DROPPABLE has brought these. */
		bool may_fail = advices[i].hint || region_has(g, VMF_DP);
		calls_room(c, 1);
		calls_add(c, may_fail, "advise", g, SYS_madvise, g->start, g->end - g->start,
			  (uint64_t)advices[i].advice, 0, 0, 0);
	}
}

static void name(struct rmem_calls *c, const struct rmem_region *g)
{
	static const char *const prefixes[] = {"[anon:", "[anon_shmem:"};

	for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++) {
		size_t skip = strlen(prefixes[i]), len = strlen(g->path);
		char text[80];

		/* The kernel takes 79 bytes. */
		if (strncmp(g->path, prefixes[i], skip) != 0 || len <= skip + 1 ||
		    len - skip - 1 >= sizeof(text))
			continue;
		snprintf(text, sizeof(text), "%.*s", (int)(len - skip - 1), g->path + skip);
		calls_room(c, 1);
		calls_add(c, true, "name", g, SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME, g->start,
			  g->end - g->start, stub_data(&c->batch, text, strlen(text) + 1), 0);
	}
}

/* Before the protection: locking brings in what is missing, by writing where that is allowed. Guard
 * markers, which locked memory does not take, stop that; it is locked all the same. */
static void lock(struct rmem_calls *c, const struct rmem_region *g)
{
	if (!region_has(g, VMF_LO))
		return;
	calls_room(c, 1);
	calls_add(c, g->prot == PROT_NONE || g->nr_guards, "lock", g, SYS_mlock2, g->start,
		  g->end - g->start, region_has(g, VMF_LF) ? MLOCK_ONFAULT : 0, 0, 0, 0);
}

static void protect(struct rmem_calls *c, const struct rmem_region *g)
{
	if (g->map_prot == g->prot)
		return;
	calls_room(c, 1);
	calls_add(c, false, "protect", g, SYS_mprotect, g->start, g->end - g->start, g->prot, 0, 0,
		  0);
}

/* ---- mm --------------------------------------------------------------------------------- */

/* prctl(2): PR_SET_MM_MAP takes no privilege but for the link to the program. */
static int set_mm(struct rmem_calls *c, struct rmem *m)
{
	struct prctl_mm_map map = m->mm;
	int open_call = -1, fd = -1;
	const char *exe = m->exe;
	char shown[80];

	/* One without a name is found by where it is mapped; by the privileged only. */
	if (m->exe_region) {
		snprintf(shown, sizeof(shown), "/proc/self/map_files/%" PRIx64 "-%" PRIx64,
			 m->exe_region->start, m->exe_region->end);
		exe = shown;
	}
	calls_reset(c);
	if (exe)
		open_call = calls_add(c, true, "open", NULL, SYS_openat, (uint64_t)AT_FDCWD,
				      stub_data(&c->batch, exe, strlen(exe) + 1),
				      O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0, 0, 0);
	int r = calls_run(c);
	if (r < 0)
		return r;
	if (open_call >= 0 && c->batch.calls[open_call].ret >= 0)
		fd = (int)c->batch.calls[open_call].ret;

	calls_reset(c);
	if (m->auxv) {
		map.auxv = (void *)(uintptr_t)stub_data(&c->batch, m->auxv, m->auxv_len);
		map.auxv_size = (uint32_t)m->auxv_len;
	}
	map.exe_fd = (uint32_t)-1;
	uint64_t without = stub_data(&c->batch, &map, sizeof(map));
	map.exe_fd = (uint32_t)fd;
	uint64_t with = stub_data(&c->batch, &map, sizeof(map));
	calls_add(c, false, "set the layout", NULL, SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, without,
		  sizeof(map), 0, 0);
	if (fd >= 0) {
		calls_add(c, true, "set the program", NULL, SYS_prctl, PR_SET_MM, PR_SET_MM_MAP,
			  with, sizeof(map), 0, 0);
		calls_add(c, false, "close the program", NULL, SYS_close, (uint64_t)fd, 0, 0, 0, 0,
			  0);
	}
	return calls_run(c);
}

/* The agent once allowed all processes of its user to trace this one, where yama asks for that; where
 * there is no yama, this fails. */
static int allow_tracing(struct rmem_calls *c, const struct rmem *m)
{
	calls_reset(c);
	if (m->ready)
		calls_add(c, true, "allow tracing", NULL, SYS_prctl, PR_SET_PTRACER, (uint64_t)-1,
			  0, 0, 0, 0);
	return calls_run(c);
}

static int seal(struct rmem_calls *c, const struct rmem *m)
{
	calls_reset(c);
	for (size_t i = 0; i < m->nr_regions; i++) {
		const struct rmem_region *g = &m->regions[i];

		if (!is_ours(g) || !region_has(g, VMF_SL))
			continue;
		calls_room(c, 1);
		calls_add(c, false, "seal", g, SYS_mseal, g->start, g->end - g->start, 0, 0, 0, 0);
	}
	return calls_run(c);
}

int rmem_finish(struct restore *r, struct usnap_err *err)
{
	cleanup_free struct rmem_calls *c = malloc(sizeof(*c));
	struct rmem *m = r->mem;
	int ret;

	if (!c)
		return usnap_fail_errno(err, -ENOMEM, "cannot finish the memory");
	if ((ret = rmem_finish_vdso(r, m, err)) < 0)
		return ret;
	calls_begin(c, r, err);
	for (size_t i = 0; i < m->nr_regions; i++) {
		const struct rmem_region *g = &m->regions[i];

		if (!is_ours(g))
			continue;
		rmem_install_guards(c, g);
		lock(c, g);
		protect(c, g);
		advise(c, g);
		name(c, g);
	}
	if ((ret = calls_run(c)) == 0 && (ret = set_mm(c, m)) == 0 &&
	    (ret = allow_tracing(c, m)) == 0)
		ret = seal(c, m);
	if (ret == -EPERM && !strncmp(err->text, "cannot lock", 11))
		usnap_hint(err, "allow more locked memory: ulimit -l, or CAP_IPC_LOCK");
	return ret;
}
