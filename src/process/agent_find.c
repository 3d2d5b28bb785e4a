#include "process/agent_find.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/util.h"

/* Nothing is mapped above; with five levels of page tables. */
#define TOP (UINT64_C(1) << 56)

static bool read_memory(pid_t pid, uint64_t addr, void *buf, size_t len)
{
	struct iovec local = {buf, len}, remote = {(void *)(uintptr_t)addr, len};

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)len;
}

/* Whether reading [addr, addr + len) would wait for nobody: all of it is there, in memory of the
 * process's own. What is not may be another's to supply (userfaultfd, FUSE), or not to supply. */
static bool is_there(pid_t pid, uint64_t addr, uint64_t len)
{
	const uint64_t present = UINT64_C(1) << 63, swapped = UINT64_C(1) << 62,
		       of_file = UINT64_C(1) << 61;
	const uint64_t first = addr / AGENT_PAGE, n = (addr + len - 1) / AGENT_PAGE - first + 1;
	uint64_t page[2 + sizeof(struct agent_control) / AGENT_PAGE];
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || n > ARRAY_SIZE(page) ||
	    pread(fd, page, n * sizeof(page[0]), (off_t)(first * sizeof(page[0]))) !=
		    (ssize_t)(n * sizeof(page[0])))
		return false;
	for (uint64_t i = 0; i < n; i++)
		if (!(page[i] & (present | swapped)) || page[i] & of_file)
			return false;
	return true;
}

bool agent_beacon_fits(const struct vma *v)
{
	return v->kind == VMA_ANON && !v->shared && v->prot == PROT_READ &&
	       v->end - v->start == (uint64_t)AGENT_BEACON_PAGES * AGENT_PAGE;
}

int agent_look(pid_t pid, uint64_t beacon, struct agent_found *ret)
{
	struct agent_beacon b;

	if (!is_there(pid, beacon, sizeof(b)) || !read_memory(pid, beacon, &b, sizeof(b)) ||
	    memcmp(b.magic, AGENT_MAGIC, sizeof(b.magic)) != 0 || b.self != beacon ||
	    b.control % sizeof(uint64_t) || b.control > TOP - sizeof(ret->block))
		return 0;
	if (!is_there(pid, b.control, sizeof(ret->block)) ||
	    !read_memory(pid, b.control, &ret->block, sizeof(ret->block)) ||
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
	struct agent_found next;
	int found = 0;

	for (size_t i = 0; i < maps->n; i++) {
		if (!agent_beacon_fits(&maps->v[i]) || !agent_look(pid, maps->v[i].start, &next))
			continue;
		/* Of two copies of the library, the calls of libc itself go to one. */
		if (!found || (next.block.flags & ~ret->block.flags & AGENT_PATCHED))
			*ret = next;
		found = 1;
	}
	return found;
}
