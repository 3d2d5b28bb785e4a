/* System calls and permissions besides userfaultfd. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/check.h"
#include "common/compat.h"
#include "common/io.h"
#include "common/util.h"

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif

static const char grant_ptrace[] =
	"run as root or with CAP_SYS_PTRACE ('setcap cap_sys_ptrace+ep' on the program); in a "
	"container: --cap-add SYS_PTRACE";

static void settle_errno(struct check *c, int r, const char *what)
{
	const char *w = r < 0 ? strerrordesc_np(-r) : "works";

	check_settle(c, r < 0 ? CHECK_MISSING : CHECK_OK, "%s: %s", what, w ? w : "unknown error");
}

/* ENOSYS and EPERM of a system call that asks for no privilege mean an old
 * kernel, or a seccomp filter that answers for it. */
static void grant_syscall(struct check *c, const char *since)
{
	check_grant(c,
		    "Linux %s or newer; in a container: a seccomp profile that lets the call "
		    "through, as docker's own does with --cap-add SYS_PTRACE",
		    since);
}

static void check_pidfd(struct checks *cs)
{
	struct check *c = check_add(cs, "pidfd_getfd", true,
				    "the userfaultfd cannot be fetched from the target");
	cleanup_fd int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	int r = pidfd < 0 ? -errno : 0;
	cleanup_fd int pipe_read = -1, pipe_write = -1, copy = -1;
	int p[2];

	if (r == 0 && pipe2(p, O_CLOEXEC) == 0) {
		pipe_read = p[0];
		pipe_write = p[1];
		copy = (int)syscall(SYS_pidfd_getfd, pidfd, pipe_read, 0);
		r = copy < 0 ? -errno : 0;
	}
	settle_errno(c, r, "pidfd_open(2), pidfd_getfd(2)");
	if (r < 0)
		grant_syscall(c, "5.6");

	c = check_add(cs, "pidfd of a thread", false,
		      "the userfaultfd shows up for a moment among the target's descriptors");
	cleanup_fd int thread = (int)syscall(SYS_pidfd_open, gettid(), PIDFD_THREAD);
	settle_errno(c, thread < 0 ? -errno : 0, "pidfd_open(2) with PIDFD_THREAD");
	if (thread < 0)
		grant_syscall(c, "6.9");
}

static void check_vm_read(struct checks *cs)
{
	struct check *c = check_add(cs, "process_vm_readv", true, "no memory can be copied");
	volatile char from = 1, to = 0;
	struct iovec local = {(void *)&to, 1}, remote = {(void *)&from, 1};
	int r = process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1 ? 0 : -errno;

	settle_errno(c, r, "process_vm_readv(2)");
	if (r < 0)
		grant_syscall(c, "3.2 with CONFIG_CROSS_MEMORY_ATTACH");
}

static void check_pagemap_scan(struct checks *cs)
{
	struct check *c = check_add(cs, "PAGEMAP_SCAN", true,
				    "the populated pages of a target cannot be found");
	cleanup_fd int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	struct page_region region;
	char here;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = ALIGN_DOWN((uintptr_t)&here, page),
		.end = ALIGN_DOWN((uintptr_t)&here, page) + page,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT,
	};
	int r = 0;

	if (fd < 0 || ioctl(fd, PAGEMAP_SCAN, &arg) < 0)
		r = -errno;
	settle_errno(c, r, fd < 0 ? "/proc/self/pagemap" : "ioctl on /proc/PID/pagemap");
	if (r < 0)
		check_grant(c, "Linux 6.7 or newer with CONFIG_PROC_PAGE_MONITOR");
}

/* A child that only waits; it dies with us, come what may. */
static pid_t start_child(void)
{
	pid_t parent = getpid();
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(0);
	}
	return pid < 0 ? -errno : pid;
}

static int seize_and_stop(pid_t pid)
{
	int status;

	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0 ||
	    ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) < 0)
		return -errno;
	while (waitpid(pid, &status, __WALL) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return WIFSTOPPED(status) ? 0 : -ECHILD;
}

static void check_ptrace(struct checks *cs)
{
	struct check *c = check_add(cs, "ptrace", true, "no thread can be stopped");
	pid_t pid = start_child();
	int r = pid < 0 ? pid : seize_and_stop(pid);

	settle_errno(c, r, "a child seized and stopped");
	if (r < 0)
		check_grant(c, "%s", grant_ptrace);

	c = check_add(cs, "rseq of a thread", false,
		      "restartable sequences of threads are not recorded");
	uint64_t config[4];
	if (r == 0) {
		int q = ptrace(PTRACE_GET_RSEQ_CONFIGURATION, pid, (void *)sizeof(config), config) <
					0
				? -errno
				: 0;
		settle_errno(c, q, "PTRACE_GET_RSEQ_CONFIGURATION");
		if (q < 0)
			grant_syscall(c, "5.13 with CONFIG_RSEQ");
	}

	c = check_add(cs, CHECK_SUSPENDING, false,
		      "targets under a seccomp filter that forbids the calls a snapshot needs "
		      "cannot be taken");
	if (r == 0) {
		int q = ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)PTRACE_O_SUSPEND_SECCOMP) < 0
				? -errno
				: 0;
		settle_errno(c, q, "PTRACE_O_SUSPEND_SECCOMP");
		if (q < 0)
			check_grant(c, "run as root or with CAP_SYS_ADMIN, not under a seccomp "
				       "filter oneself");
	}
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, __WALL);
	}
}

static void check_kcmp(struct checks *cs)
{
	struct check *c = check_add(cs, "kcmp", false,
				    "descriptors that share one open file are not told apart from "
				    "those that do not");
	int r = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, STDIN_FILENO, STDIN_FILENO) < 0
			? -errno
			: 0;

	/* Whatever descriptor 0 may be: that it is compared is what counts. */
	if (r == -EBADF)
		r = 0;
	settle_errno(c, r, "kcmp(2)");
	if (r < 0)
		grant_syscall(c, "3.5 with CONFIG_KCMP");
}

static void check_unnamed_file(struct checks *cs)
{
	struct check *c =
		check_add(cs, "O_TMPFILE here", false,
			  "a killed snapshot leaves a hidden '.part' file in this directory");
	cleanup_fd int fd = open(".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);

	settle_errno(c, fd < 0 ? -errno : 0, "an unnamed file in the working directory");
	if (fd < 0)
		check_grant(c,
			    "write images to a file system that has it: ext4, xfs, btrfs, tmpfs");
}

void check_kernel(struct checks *cs)
{
	check_pagemap_scan(cs);
	check_pidfd(cs);
	check_vm_read(cs);
	check_ptrace(cs);
	check_kcmp(cs);
	check_unnamed_file(cs);
}

/* --- permissions ----------------------------------------------------------- */

static int read_number(int dirfd, const char *path, int otherwise)
{
	cleanup_free char *text = NULL;

	return io_read_file_at(dirfd, path, 64, &text, NULL) < 0 ? otherwise : atoi(text);
}

static unsigned long long status_field(int procfd, const char *key, int base)
{
	cleanup_free char *text = NULL;

	if (io_read_file_at(procfd, "status", KIB(256), &text, NULL) < 0)
		return 0;
	const char *s = strstr(text, key);
	return s ? strtoull(s + strlen(key), NULL, base) : 0;
}

unsigned long long check_capabilities(int procfd)
{
	return status_field(procfd, "\nCapEff:", 16);
}

static void check_attach(struct checks *cs, unsigned long long caps)
{
	struct check *c = check_add(cs, "attaching to processes", true,
				    "only processes started by this very command could be taken");
	int yama = read_number(AT_FDCWD, "/proc/sys/kernel/yama/ptrace_scope", 0);
	bool capable = caps & (1ull << CAP_SYS_PTRACE);

	if (yama >= 3) {
		check_settle(c, CHECK_MISSING, "kernel.yama.ptrace_scope is 3: nobody can");
		check_grant(c, "boot with kernel.yama.ptrace_scope below 3");
	} else if (capable) {
		check_settle(c, CHECK_OK, "CAP_SYS_PTRACE: any process");
	} else if (yama == 0) {
		check_settle(c, CHECK_OK, "processes of uid %u that hold no capabilities",
			     (unsigned)geteuid());
	} else {
		check_settle(c, CHECK_MISSING,
			     "no CAP_SYS_PTRACE, and kernel.yama.ptrace_scope is %d", yama);
		check_grant(c, "%s%s", grant_ptrace,
			    yama == 1
				    ? "; or 'sysctl -w kernel.yama.ptrace_scope=0'; or preload the "
				      "agent into the target, which lets processes of its user"
				    : "");
	}
}

void check_permissions(struct checks *cs, bool any_target)
{
	cleanup_fd int self = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	unsigned long long caps = check_capabilities(self);

	/* Where there is one target, it is asked itself. */
	if (any_target)
		check_attach(cs, caps);

	struct check *c = check_add(cs, "checkpoint capability", false,
				    "files that a target has mapped and deleted are known by their "
				    "name only");
	if (caps & (1ull << CAP_CHECKPOINT_RESTORE | 1ull << CAP_SYS_ADMIN)) {
		check_settle(c, CHECK_OK, "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN is there");
	} else {
		check_settle(c, CHECK_MISSING, "neither CAP_CHECKPOINT_RESTORE nor CAP_SYS_ADMIN");
		check_grant(c, "run as root, or 'setcap cap_sys_ptrace,cap_checkpoint_restore+ep' "
			       "on the program");
	}
}
