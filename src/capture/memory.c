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
