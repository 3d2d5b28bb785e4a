#include "capture/uffd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "capture/futexes.h"
#include "common/io.h"
#include "common/util.h"

enum {
	TRIES = 8
};
#define STOP_NS UINT64_C(300000000)
/* For one that has to wait for a processor, where others run on. */
#define STOP_MOST_NS (8 * STOP_NS)

static int call(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg) < 0 ? -errno : 0;
}

int uffd_register(int fd, uint64_t start, uint64_t len, uint64_t mode)
{
	struct uffdio_register r = {.range = {start, len}, .mode = mode};

	return call(fd, UFFDIO_REGISTER, &r);
}

int uffd_unregister(int fd, uint64_t start, uint64_t len)
{
	struct uffdio_range r = {start, len};

	return call(fd, UFFDIO_UNREGISTER, &r);
}

int uffd_protect(int fd, uint64_t start, uint64_t len)
{
	struct uffdio_writeprotect w = {{start, len}, UFFDIO_WRITEPROTECT_MODE_WP};

	return call(fd, UFFDIO_WRITEPROTECT, &w);
}

int uffd_unprotect(int fd, uint64_t start, uint64_t len)
{
	struct uffdio_writeprotect w = {{start, len}, 0};

	return call(fd, UFFDIO_WRITEPROTECT, &w);
}

int uffd_wake(int fd, uint64_t start, uint64_t len)
{
	struct uffdio_range r = {start, len};

	return call(fd, UFFDIO_WAKE, &r);
}

int uffd_zeropage(int fd, uint64_t start, uint64_t len, uint64_t *ret_done)
{
	struct uffdio_zeropage z = {.range = {start, len}};
	int r = call(fd, UFFDIO_ZEROPAGE, &z);

	*ret_done = z.zeropage > 0 ? (uint64_t)z.zeropage : 0;
	/* A partial fill says EAGAIN although nothing is pending: what stopped it was a page. */
	if (r == -EAGAIN && *ret_done)
		return -EEXIST;
	return r;
}

int uffd_copy(int fd, uint64_t dst, const void *src, uint64_t len)
{
	struct uffdio_copy c = {.dst = dst, .src = (uintptr_t)src, .len = len};

	return call(fd, UFFDIO_COPY, &c);
}

bool uffd_event_pending(int fd)
{
	/* An empty range is refused with EINVAL, but first with EAGAIN while
	 * mmap_changing is set (fs/userfaultfd.c, userfaultfd_writeprotect). */
	struct uffdio_writeprotect w = {{0, 0}, 0};

	return ioctl(fd, UFFDIO_WRITEPROTECT, &w) < 0 && errno == EAGAIN;
}

/* ---- taking one ------------------------------------------------------------------------------ */

struct take {
	const struct target *target;
	int device; /* /dev/userfaultfd as we opened it, or -1 */
	int fd; /* result */
	struct uffd_known *known;
};

static int fetch_fd(const struct remote_helper *h, const struct take *take, int64_t remote_fd)
{
	cleanup_fd int pidfd =
		h->own_files ? (int)syscall(SYS_pidfd_open, h->tid, PIDFD_THREAD) : -1;
	if (h->own_files && pidfd < 0)
		return -errno;
	int fd = (int)syscall(SYS_pidfd_getfd, h->own_files ? pidfd : take->target->pidfd,
			      (int)remote_fd, 0);
	return fd < 0 ? -errno : fd;
}

/* Gives the helper our /dev/userfaultfd, through a socket pair of its own: it
 * needs no right to open the device, and the namespaces do not matter. */
static int64_t pass_device(struct remote_helper *h, const struct take *take, int64_t sockets[2])
{
	int pair[2];
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	char byte = 'u';
	struct iovec iov = {&byte, 1};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	/* The helper's own message header, in its scratch: header, iovec, byte, control. */
	struct {
		struct msghdr msg;
		struct iovec iov;
		uint64_t byte;
		char control[sizeof(control.space)];
	} there = {0};

	int64_t r = remote_helper_call(h, SYS_socketpair, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0,
				       h->data, 0);
	if (r < 0)
		return r;
	struct iovec local = {pair, sizeof(pair)},
		     remote = {(void *)(uintptr_t)h->data, sizeof(pair)};
	if (process_vm_readv(h->tid, &local, 1, &remote, 1, 0) != sizeof(pair))
		return -EFAULT;
	sockets[0] = pair[0];
	sockets[1] = pair[1];

	cleanup_fd int ours = fetch_fd(h, take, pair[0]);
	if (ours < 0)
		return ours;
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &take->device, sizeof(int));
	if (sendmsg(ours, &msg, 0) < 0)
		return -errno;

	there.msg.msg_iov = (void *)(uintptr_t)(h->data + offsetof(__typeof__(there), iov));
	there.msg.msg_iovlen = 1;
	there.msg.msg_control = (void *)(uintptr_t)(h->data + offsetof(__typeof__(there), control));
	there.msg.msg_controllen = sizeof(there.control);
	there.iov.iov_base = (void *)(uintptr_t)(h->data + offsetof(__typeof__(there), byte));
	there.iov.iov_len = 1;
	local = remote = (struct iovec){&there, sizeof(there)};
	remote.iov_base = (void *)(uintptr_t)h->data;
	if (process_vm_writev(h->tid, &local, 1, &remote, 1, 0) != (ssize_t)sizeof(there))
		return -EFAULT;
	r = remote_helper_call(h, SYS_recvmsg, (uint64_t)pair[1], h->data, MSG_CMSG_CLOEXEC, 0, 0);
	if (r < 0)
		return r;
	if (process_vm_readv(h->tid, &local, 1, &remote, 1, 0) != (ssize_t)sizeof(there))
		return -EFAULT;
	int passed;
	memcpy(&passed, there.control + CMSG_LEN(0), sizeof(passed));
	return there.msg.msg_controllen < CMSG_LEN(sizeof(int)) ? -EBADF : passed;
}

static int take_in_helper(struct remote_helper *h, void *arg, struct usnap_err *err)
{
	struct take *take = arg;
	int64_t sockets[2] = {-1, -1}, device = -1;
	int64_t fd = remote_helper_call(h, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK, 0, 0, 0, 0);
	bool refused = fd < 0;

	if (refused && fd != -ESRCH && take->device >= 0) {
		device = pass_device(h, take, sockets);
		fd = device < 0 ? device
				: remote_helper_call(h, SYS_ioctl, (uint64_t)device,
						     USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK, 0,
						     0);
	}
	int r = fd < 0 ? (int)fd : fetch_fd(h, take, fd);
	if (r >= 0)
		facts_ask(h, &take->known->facts);
	if (!h->own_files) {
		int64_t open[] = {fd, device, sockets[0], sockets[1]};

		for (size_t i = 0; i < ARRAY_SIZE(open); i++)
			if (open[i] >= 0)
				remote_helper_call(h, SYS_close, (uint64_t)open[i], 0, 0, 0, 0);
	}
	if (r >= 0) {
		take->fd = r;
		return 0;
	}
	usnap_fail_errno(err, r, "cannot make a userfaultfd in process %d", take->target->pid);
	if (r == -EPERM || r == -EACCES)
		usnap_hint(err, "run as root, give your user read access to /dev/userfaultfd, or "
				"set vm.unprivileged_userfaultfd=1");
	else if (r == -ENOSYS)
		usnap_hint(err, "the kernel lacks CONFIG_USERFAULTFD, or a seccomp filter forbids "
				"userfaultfd(2): 'uffd-snap check' tells");
	return r;
}

/* Threads, those that wait in the kernel first: being stopped costs them nothing. Last of all those whose
 * wait would start again with a write. */
static size_t idle_threads(const struct target *t, pid_t *ret, size_t max)
{
	pid_t last[TRIES];
	size_t n = 0, nr_idle = 0, nr_last = 0;
	cleanup_fd int fd = openat(t->procfd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;

	if (!d)
		return 0;
	fd = -1;
	while ((e = readdir(d)) && n < max) {
		char path[300];
		cleanup_free char *stat = NULL;
		pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);

		snprintf(path, sizeof(path), "task/%s/stat", e->d_name);
		if (tid <= 0 || io_read_file_at(t->procfd, path, 4096, &stat, NULL) < 0)
			continue;
		const char *p = strrchr(stat, ')');
		char state = p && p[1] ? p[2] : 'Z';
		if (state == 'Z' || state == 'X')
			continue;
		if (futexes_is_waiter(t, e->d_name)) {
			if (nr_last < ARRAY_SIZE(last))
				last[nr_last++] = tid;
			continue;
		}
		ret[n++] = tid;
		/* The first is the main one, on a stack of the kernel's making: see on_main_stack(). */
		if (state == 'S' || (tid == t->pid && state == 'R')) {
			ret[n - 1] = ret[nr_idle];
			ret[nr_idle++] = tid;
		}
	}
	for (size_t i = 0; i < nr_last && n < max; i++)
		ret[n++] = last[i];
	return n;
}

/*
 * A batch borrows memory below the stack pointer. Where the kernel made the
 * stack that is nobody else's; a stack of the program's own making (of a
 * coroutine, say) may be small and lie beside memory that other threads use:
 * then they must stand still meanwhile.
 */
static bool on_main_stack(const struct tracee *t, const struct maps *maps)
{
	const struct vma *v = maps_find(maps, t->regs.rsp);

	return v && strcmp(v->path, "[stack]") == 0 && t->regs.rsp - v->start >= KIB(32);
}

/* *ret_waits: no answer because it waits for a processor. */
static int ask_thread(const struct target *t, pid_t tid, uint64_t stop_ns, const struct maps *maps,
		      const struct remote_gadgets *g, struct wait_note *wait, remote_helper_fn *fn,
		      void *arg, bool *ret_waits, struct usnap_err *err)
{
	struct tracees ts = {0};
	struct wait_clocks clocks = {0};

	/* Stopped, its wait will look like one that has just begun. */
	wait_look(t, tid, &clocks, wait);
	int r = tracees_seize_one(&ts, t, tid, err);

	if (r == 0)
		r = tracees_stop(&ts, t, false, now_ns() + stop_ns, err);
	*ret_waits = r == -EAGAIN && ts.straggler == 'R';
	if (r < 0 || !wait_unbroken(t, wait))
		wait->since_ns = 0;
	if (r == 0 && !on_main_stack(&ts.t[0], maps)) {
		/* The first stays the first. */
		r = tracees_stop(&ts, t, true, now_ns() + STOP_NS, err);
		if (r == 0 && ts.t[0].tid != tid)
			r = -ESRCH;
	}
	if (r == 0)
		r = remote_with_helper(&ts.t[0], t, g, wait_is(wait, &ts.t[0].regs) ? wait->nr : 0,
				       fn, arg, err);
	tracees_release(&ts, t);
	return r;
}

int uffd_with_helper(const struct target *t, const struct maps *maps,
		     const struct remote_gadgets *g, struct wait_note *ret_wait,
		     remote_helper_fn *fn, void *arg, struct usnap_err *err)
{
	pid_t tids[TRIES];
	struct usnap_err why = {0};
	bool waits = true;
	int r = -ESRCH;

	for (uint64_t stop_ns = STOP_NS; waits && r < 0 && stop_ns <= STOP_MOST_NS; stop_ns *= 2) {
		size_t n = idle_threads(t, tids, TRIES);

		waits = false;
		for (size_t i = 0; i < n && r < 0; i++) {
			bool this_waits;

			why = (struct usnap_err){0};
			r = ask_thread(t, tids[i], stop_ns, maps, g, ret_wait, fn, arg, &this_waits,
				       &why);
			waits |= this_waits;
			if (r == -EPERM || r == -ENOSYS) {
				waits = false;
				break;
			}
		}
	}
	if (r < 0 && err && !err->code)
		*err = why;
	return r;
}

int uffd_take(int *ret_fd, uint64_t *ret_features, struct uffd_known *ret_known,
	      const struct target *t, const struct maps *maps, const struct remote_gadgets *g,
	      struct usnap_err *err)
{
	static const uint64_t needed = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_EVENT_REMOVE |
				       UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP;
	static const uint64_t wanted = UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MISSING_SHMEM |
				       UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	/* Reading is what it takes (fs/userfaultfd.c), which CAP_DAC_READ_SEARCH gives, too. */
	cleanup_fd int device = open("/dev/userfaultfd", O_RDONLY | O_CLOEXEC);
	struct take take = {.target = t, .device = device, .fd = -1, .known = ret_known};
	struct usnap_err why = {0};
	int r = uffd_with_helper(t, maps, g, &ret_known->wait, take_in_helper, &take, &why);

	if (take.fd < 0) {
		if (!why.code)
			usnap_fail(&why, -ESRCH, "cannot snapshot process %d: it has ended",
				   t->pid);
		if (err && !err->code)
			*err = why;
		return why.code;
	}

	for (int all = 1; all >= 0; all--) {
		struct uffdio_api api = {.api = UFFD_API, .features = needed | (all ? wanted : 0)};

		r = call(take.fd, UFFDIO_API, &api);
		if (r == 0) {
			*ret_fd = take.fd;
			*ret_features = needed | (all ? wanted : 0);
			return 0;
		}
	}
	close(take.fd);
	usnap_fail_errno(err, r, "cannot use userfaultfd write protection");
	return usnap_hint(err, "Linux 5.7 or newer on x86-64 is needed: 'uffd-snap check' tells");
}
