/*
 * Bytes of the target, by one of two ways.
 *
 * process_vm_readv(2) is the faster one for long runs, and reads what several
 * pieces hold at once. But it pins pages, and one that is shared with another
 * process since a fork is copied for that, to stay in the target: memory that
 * was there once is there twice then. /proc/PID/mem copies nothing, needs no
 * permission to read of the mapping, and belongs to the memory as of attaching.
 */
#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/io.h"
#include "common/util.h"

/* Linux 4.2: pagemap, Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_EXCLUSIVE ((uint64_t)1 << 56)

int memory_read(const struct capture *c, uint64_t addr, void *buf, size_t len)
{
	return io_pread_full(c->mem_fd, buf, len, addr);
}

/* Each page is mapped once, and there. */
static bool is_exclusive(const struct capture *c, const struct iovec *piece)
{
	uint64_t entries[BLOCK_PAGES], first = (uintptr_t)piece->iov_base >> PAGE_SHIFT;
	size_t n = piece->iov_len >> PAGE_SHIFT;

	if (n > ARRAY_SIZE(entries) ||
	    io_pread_full(c->target->pagemap_fd, entries, n * sizeof(entries[0]),
			  first * sizeof(entries[0])) < 0)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!(entries[i] & PAGEMAP_EXCLUSIVE))
			return false;
	return true;
}

static int read_each(const struct capture *c, const struct iovec *pieces, unsigned n, char *at)
{
	int r = 0;

	for (unsigned i = 0; i < n && r == 0; i++) {
		r = memory_read(c, (uintptr_t)pieces[i].iov_base, at, pieces[i].iov_len);
		at += pieces[i].iov_len;
	}
	return r;
}

int memory_read_all(const struct capture *c, const struct iovec *pieces, unsigned n, void *buf,
		    size_t len, bool quick)
{
	struct iovec local = {buf, len};
	bool exclusive = true;

	for (unsigned i = 0; !quick && exclusive && i < n; i++)
		exclusive = is_exclusive(c, &pieces[i]);
	if (exclusive && process_vm_readv(c->target->pid, &local, 1, pieces, n, 0) == (ssize_t)len)
		return 0;
	/* Some piece cannot be read that way, or is not to be. */
	return read_each(c, pieces, n, buf);
}
