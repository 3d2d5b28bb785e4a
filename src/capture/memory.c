#include <errno.h>
#include <sys/uio.h>
#include <unistd.h>

#include "capture/session.h"
#include "common/io.h"

int memory_read(const struct capture *c, uint64_t addr, void *buf, size_t len)
{
	struct iovec local = {buf, len}, remote = {(void *)(uintptr_t)addr, len};
	ssize_t n = process_vm_readv(c->target->pid, &local, 1, &remote, 1, 0);

	if (n < 0 && errno != EFAULT)
		return -errno;
	size_t done = n > 0 ? (size_t)n : 0;
	if (done == len)
		return 0;
	/* Memory without read permission (PROT_NONE that holds data): the slower way
	 * in does not ask for it. It belongs to the memory as of attaching. */
	return io_pread_full(c->mem_fd, (char *)buf + done, len - done, addr + done);
}

int memory_read_all(const struct capture *c, const struct iovec *remote, unsigned n, void *buf,
		    size_t len)
{
	struct iovec local = {buf, len};
	char *at = buf;

	if (process_vm_readv(c->target->pid, &local, 1, remote, n, 0) == (ssize_t)len)
		return 0;
	/* Some piece cannot be read this way: one by one. */
	for (unsigned i = 0; i < n; i++) {
		int r = memory_read(c, (uintptr_t)remote[i].iov_base, at, remote[i].iov_len);
		if (r < 0)
			return r;
		at += remote[i].iov_len;
	}
	return 0;
}
