/*
 * The agent in the process (agent/control.h) learns that it has been brought
 * back: no snapshot listens any more, and whoever was in usnap_checkpoint() at
 * T0 sees by the count that this is not the process that asked.
 */
#include <errno.h>
#include <stddef.h>
#include <sys/uio.h>

#include "process/agent_find.h"
#include "restore/rmem_internal.h"

static int put(const struct restore *r, uint64_t addr, const void *data, size_t len)
{
	struct iovec local = {(void *)(uintptr_t)data, len},
		     remote = {(void *)(uintptr_t)addr, len};

	return process_vm_writev(r->builder, &local, 1, &remote, 1, 0) == (ssize_t)len ? 0 : -errno;
}

static bool is_beacon(const struct rmem_region *g)
{
	const struct vma v = {.start = g->start,
			      .end = g->end,
			      .prot = g->prot,
			      .shared = g->shared,
			      .kind = g->kind};

	return agent_beacon_fits(&v) && g->nr_pages && !g->skip;
}

int rmem_tell_agent(struct restore *r, struct usnap_err *err)
{
	const uint64_t none = 0;

	for (size_t i = 0; i < r->mem->nr_regions; i++) {
		struct agent_found found;

		if (!is_beacon(&r->mem->regions[i]) ||
		    !agent_look(r->builder, r->mem->regions[i].start, &found))
			continue;
		/* All of it in memory that the process has for itself and may write. */
		const struct rmem_region *g = rmem_find(r->mem, found.control);
		if (!g || g->shared || !(g->prot & PROT_WRITE) || !(g->map_prot & PROT_WRITE) ||
		    g->end - found.control < sizeof(found.block))
			continue;
		uint32_t restored = found.block.restored + 1;
		int ret = put(r, found.control + offsetof(struct agent_control, active), &none,
			      sizeof(none));
		if (ret == 0)
			ret = put(r, found.control + offsetof(struct agent_control, at_work), &none,
				  sizeof(none));
		if (ret == 0)
			ret = put(r, found.control + offsetof(struct agent_control, restored),
				  &restored, sizeof(restored));
		if (ret < 0)
			return usnap_fail_errno(err, ret, "cannot tell the agent at 0x%llx",
						(unsigned long long)found.control);
		r->mem->ready |= found.block.pid == r->pid;
	}
	return 0;
}
