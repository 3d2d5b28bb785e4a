/*
 * Bytes of the target, by one of two ways.
 *
 * process_vm_readv(2) is the faster one for long runs, and reads what several
 * pieces hold at once. But it pins pages, and one that is shared with another
 * process since a fork is copied for that, to stay in the target: memory that
 * was there once is there twice then. /proc/PID/mem copies nothing, needs no
 * permission to read of the mapping, belongs to the memory as of attaching, and
 * never waits for a userfaultfd.
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
	int r = io_pread_full(c->mem_fd, buf, len, addr);

	return r == -ENODATA ? -ESRCH : r; /* the memory is gone */
}

static int read_quickly(const struct capture *c, const struct iovec *pieces, unsigned n, void *buf,
			size_t len)
{
	struct iovec local = {buf, len};

	return process_vm_readv(c->target->pid, &local, 1, pieces, n, 0) == (ssize_t)len ? 0
											 : -EFAULT;
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

int memory_read_all(const struct capture *c, const struct iovec *pieces, unsigned n, void *buf,
		    size_t len, bool quick)
{
	bool exclusive = true;
	char *at = buf;
	int r = 0;

	for (unsigned i = 0; !quick && exclusive && i < n; i++)
		exclusive = is_exclusive(c, &pieces[i]);
	if (exclusive && read_quickly(c, pieces, n, buf, len) == 0)
		return 0;
	/* Some piece cannot be read that way, or is not to be. */
	for (unsigned i = 0; i < n && r == 0; i++) {
		if (!quick || n == 1 || read_quickly(c, &pieces[i], 1, at, pieces[i].iov_len) < 0)
			r = memory_read(c, (uintptr_t)pieces[i].iov_base, at, pieces[i].iov_len);
		at += pieces[i].iov_len;
	}
	return r;
}
