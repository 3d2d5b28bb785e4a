#include "process/agent_find.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

/* Nothing is mapped above; with five levels of page tables. */
#define TOP (UINT64_C(1) << 56)

static bool read_memory(pid_t pid, uint64_t addr, void *buf, size_t len)
{
	struct iovec local = {buf, len}, remote = {(void *)(uintptr_t)addr, len};

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)len;
}

bool agent_beacon_fits(const struct vma *v)
{
	return v->kind == VMA_ANON && !v->shared && v->prot == PROT_READ &&
	       v->end - v->start == (uint64_t)AGENT_BEACON_PAGES * AGENT_PAGE;
}

int agent_look(pid_t pid, uint64_t beacon, struct agent_found *ret)
{
	struct agent_beacon b;

	if (!read_memory(pid, beacon, &b, sizeof(b)) ||
	    memcmp(b.magic, AGENT_MAGIC, sizeof(b.magic)) != 0 || b.self != beacon ||
	    b.control % sizeof(uint64_t) || b.control > TOP - sizeof(ret->block))
		return 0;
	if (!read_memory(pid, b.control, &ret->block, sizeof(ret->block)) ||
	    memcmp(ret->block.magic, AGENT_MAGIC, sizeof(ret->block.magic)) != 0 ||
	    ret->block.version != AGENT_VERSION || ret->block.size != sizeof(ret->block) ||
	    ret->block.beacon != beacon)
		return 0;
	ret->beacon = beacon;
	ret->control = b.control;
	return 1;
}

int agent_find(pid_t pid, const struct maps *maps, struct agent_found *ret)
{
	for (size_t i = 0; i < maps->n; i++)
		if (agent_beacon_fits(&maps->v[i]) && agent_look(pid, maps->v[i].start, ret))
			return 1;
	return 0;
}
