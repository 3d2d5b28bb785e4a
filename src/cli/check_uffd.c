/* userfaultfd: how it can be had, and what it can do here. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cli/check.h"
#include "common/compat.h"
#include "common/io.h"
#include "common/util.h"

struct feature {
	uint64_t bit;
	const char *name;
	bool required;
	const char *without; /* NULL: named among the others, not needed */
};

static const struct feature features[] = {
	{UFFD_FEATURE_PAGEFAULT_FLAG_WP, "write protection", true,
	 "nothing can be preserved: no snapshot"},
	{UFFD_FEATURE_EVENT_REMOVE, "event: discard", true,
	 "memory given back with madvise could tear an image unseen"},
	{UFFD_FEATURE_EVENT_UNMAP, "event: unmap", true,
	 "memory unmapped during a snapshot could tear an image unseen"},
	{UFFD_FEATURE_EVENT_REMAP, "event: remap", true,
	 "memory moved during a snapshot could tear an image unseen"},
	{UFFD_FEATURE_MISSING_SHMEM, "missing pages of shared memory", false,
	 "targets with shared memory or memfds cannot be taken"},
	{UFFD_FEATURE_MISSING_HUGETLBFS, "missing pages of hugetlb", false,
	 "targets with hugetlb pages cannot be taken"},
	{UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "write protection of shared memory, hugetlb", false,
	 "targets with shared memory, memfds or hugetlb pages cannot be taken"},
	{UFFD_FEATURE_WP_UNPOPULATED, "WP_UNPOPULATED", false, NULL},
	{UFFD_FEATURE_POISON, "POISON", false, NULL},
	{UFFD_FEATURE_WP_ASYNC, "WP_ASYNC", false, NULL},
	{UFFD_FEATURE_MOVE, "MOVE", false, NULL},
};

static int open_by_syscall(int flags)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);

	return fd < 0 ? -errno : fd;
}

static int open_by_device(void)
{
	cleanup_fd int dev = open("/dev/userfaultfd", O_RDONLY | O_CLOEXEC);

	if (dev < 0)
		return -errno;
	int fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

static const char *words(char buf[static 64], int r)
{
	const char *w = r >= 0 ? "yes" : strerrordesc_np(-r);

	snprintf(buf, 64, "%s", w ? w : "unknown error");
	return buf;
}

static int sysctl_unprivileged(void)
{
	cleanup_free char *text = NULL;

	if (io_read_file_at(AT_FDCWD, "/proc/sys/vm/unprivileged_userfaultfd", 64, &text, NULL) < 0)
		return -1;
	return atoi(text);
}

static void settle_access(struct check *c, int by_syscall, int by_device)
{
	char a[64], b[64];
	bool ok = by_syscall >= 0 || by_device >= 0;
	int sysctl = sysctl_unprivileged();

	check_settle(c, ok ? CHECK_OK : CHECK_MISSING,
		     "userfaultfd(2): %s; /dev/userfaultfd: %s; vm.unprivileged_userfaultfd: %s",
		     words(a, by_syscall), words(b, by_device),
		     sysctl < 0 ? "not there" : (sysctl ? "1" : "0"));
	if (ok)
		return;
	if (by_syscall == -ENOSYS)
		check_grant(c, "a kernel with CONFIG_USERFAULTFD, and a container whose seccomp "
			       "profile lets userfaultfd(2) through, or with --device "
			       "/dev/userfaultfd");
	else
		check_grant(c, "run as root or with CAP_SYS_PTRACE; or 'sysctl -w "
			       "vm.unprivileged_userfaultfd=1'; or 'setfacl -m u:USER:r "
			       "/dev/userfaultfd'. In a container: --device /dev/userfaultfd, or a "
			       "seccomp profile that lets userfaultfd(2) through");
}

/* Pages of one kind are registered and protected, as a snapshot does it. The
 * answer is that of the kernel's own table of what goes together. */
static int try_protecting(int uffd, int memfd)
{
	size_t len = (size_t)sysconf(_SC_PAGESIZE);
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       memfd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, memfd, 0);
	int r = 0;

	if (p == MAP_FAILED)
		return -errno;
	memset(p, 1, len);
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)p, .len = len},
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = {.range = reg.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
	if (ioctl(uffd, UFFDIO_REGISTER, &reg) < 0 || ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0)
		r = -errno;
	munmap(p, len);
	return r;
}

static void check_protecting(struct checks *cs, int uffd)
{
	struct check *c = check_add(cs, "protecting a page", true, "no snapshot");
	char buf[64];
	int r = try_protecting(uffd, -1);

	check_settle(c, r < 0 ? CHECK_MISSING : CHECK_OK, "private memory, tried: %s",
		     r < 0 ? words(buf, r) : "works");
	if (r < 0)
		check_grant(c, "Linux 5.7 or newer with CONFIG_HAVE_ARCH_USERFAULTFD_WP");

	c = check_add(cs, "protecting a shared page", false,
		      "targets with shared memory or memfds cannot be taken");
	cleanup_fd int memfd = memfd_create("uffd-snap-check", MFD_CLOEXEC);
	r = memfd < 0 || ftruncate(memfd, sysconf(_SC_PAGESIZE)) < 0 ? -errno
								     : try_protecting(uffd, memfd);
	check_settle(c, r < 0 ? CHECK_MISSING : CHECK_OK, "memfd, tried: %s",
		     r < 0 ? words(buf, r) : "works");
	if (r < 0)
		check_grant(c, "Linux 5.19 or newer with CONFIG_PTE_MARKER_UFFD_WP");
}

static void check_features(struct checks *cs, uint64_t have, bool known)
{
	size_t len = 0;

	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		const struct feature *f = &features[i];
		bool there = have & f->bit;

		if (!f->without) {
			if (there && len < sizeof(cs->other_features))
				len += (size_t)snprintf(cs->other_features + len,
							sizeof(cs->other_features) - len, "%s%s",
							len ? ", " : "", f->name);
			continue;
		}
		struct check *c = check_add(cs, f->name, f->required, f->without);
		if (!known)
			check_settle(c, CHECK_UNKNOWN, "no userfaultfd to ask");
		else if (there)
			check_settle(c, CHECK_OK, "this kernel has it");
		else
			check_settle(c, CHECK_MISSING, "this kernel does not have it");
		if (known && !there)
			check_grant(c, "a newer kernel: 5.7 for private memory, 5.19 for shared "
				       "memory and hugetlb");
	}
}

void check_userfaultfd(struct checks *cs, bool any_target)
{
	/* One target can have what is missing here: check_target() knows better. */
	struct check *c = check_add(cs, "userfaultfd", any_target,
				    "only targets that may create one by themselves can be taken");
	cleanup_fd int by_syscall = open_by_syscall(0);
	cleanup_fd int by_device = open_by_device();

	settle_access(c, by_syscall, by_device);

	/* For asking what the kernel can do, one that sees faults of user code
	 * only would do, and everybody may have that. */
	cleanup_fd int limited = open_by_syscall(UFFD_USER_MODE_ONLY);
	int uffd = by_syscall >= 0 ? by_syscall : (by_device >= 0 ? by_device : limited);
	struct uffdio_api api = {.api = UFFD_API};
	bool known = uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0;

	check_features(cs, known ? api.features : 0, known);
	if (!known)
		return;

	/* UFFDIO_API works once per descriptor, and that one asked for nothing. */
	cleanup_fd int fresh = by_syscall >= 0	? open_by_syscall(0)
			       : by_device >= 0 ? open_by_device()
						: open_by_syscall(UFFD_USER_MODE_ONLY);
	struct uffdio_api wanted = {.api = UFFD_API,
				    .features = api.features & (UFFD_FEATURE_PAGEFAULT_FLAG_WP |
								UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
								UFFD_FEATURE_MISSING_SHMEM)};
	if (fresh >= 0 && ioctl(fresh, UFFDIO_API, &wanted) == 0)
		check_protecting(cs, fresh);
}
