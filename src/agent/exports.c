#include "agent/exports.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>

#include "agent/agent.h"
#include "agent/gate.h"
#include "agent/raw.h"

#define EXPORTED __attribute__((visibility("default")))

const char export_names[NR_EXPORTS][8] = {
	[EXPORT_MUNMAP] = "munmap", [EXPORT_MADVISE] = "madvise", [EXPORT_MREMAP] = "mremap",
	[EXPORT_MMAP] = "mmap",	    [EXPORT_MMAP64] = "mmap64",
};

void *export_next[NR_EXPORTS];

static int64_t finish(int64_t result)
{
	if (!raw_failed(result))
		return result;
	errno = (int)-result;
	return -1;
}

static uint64_t word(const void *p)
{
	return (uintptr_t)p;
}

EXPORTED int munmap(void *addr, size_t len)
{
	int (*next)(void *, size_t) = export_next[EXPORT_MUNMAP];

	if (next)
		return next(addr, len);
	return (int)finish(gate_make(SYS_munmap, word(addr), len, 0, 0, 0, 0));
}

EXPORTED int madvise(void *addr, size_t len, int advice)
{
	int (*next)(void *, size_t, int) = export_next[EXPORT_MADVISE];

	if (next)
		return next(addr, len, advice);
	return (int)finish(
		gate_make(SYS_madvise, word(addr), len, (uint64_t)(int64_t)advice, 0, 0, 0));
}

EXPORTED void *mremap(void *addr, size_t old_len, size_t len, int flags, ...)
{
	void *(*next)(void *, size_t, size_t, int, ...) = export_next[EXPORT_MREMAP];
	void *to = NULL;

	if (flags & MREMAP_FIXED) {
		va_list ap;

		va_start(ap, flags);
		to = va_arg(ap, void *);
		va_end(ap);
	}
	if (next)
		return next(addr, old_len, len, flags, to);
	const struct gate_call call = {
		SYS_mremap, {word(addr), old_len, len, (uint64_t)(int64_t)flags, word(to)}};

	return (void *)(uintptr_t)finish(gate_mremap(&agent_control, &call));
}

static void *map(enum export which, void *addr, size_t len, int prot, int flags, int fd,
		 off64_t offset)
{
	void *(*next)(void *, size_t, int, int, int, off64_t) = export_next[which];

	if (next)
		return next(addr, len, prot, flags, fd, offset);
	return (void *)(uintptr_t)finish(
		gate_make(SYS_mmap, word(addr), len, (uint64_t)(int64_t)prot,
			  (uint64_t)(int64_t)flags, (uint64_t)(int64_t)fd, (uint64_t)offset));
}

EXPORTED void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return map(EXPORT_MMAP, addr, len, prot, flags, fd, offset);
}

EXPORTED void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t offset)
{
	return map(EXPORT_MMAP64, addr, len, prot, flags, fd, offset);
}
