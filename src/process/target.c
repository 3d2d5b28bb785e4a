/*
 * Every refusal names its cause: the person in front of it knows a PID and
 * seldom what lies behind.
 */
#include "process/target.h"

#include <dirent.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/io.h"
#include "common/timens.h"
#include "common/util.h"

#define PF_KTHREAD 0x00200000u /* include/linux/sched.h; field 9 of stat, proc(5) */

#if defined(__x86_64__)
#define NATIVE_MACHINE EM_X86_64
#elif defined(__aarch64__)
#define NATIVE_MACHINE EM_AARCH64
#else
#error "unsupported architecture"
#endif

/* What is asked of /proc/PID/status and stat. */
struct facts {
	char state;
	pid_t tgid, tracer;
	uid_t uid; /* effective */
	unsigned long nr_threads;
	bool kthread;
};

static int refuse(struct usnap_err *err, int code, const struct target *t, const char *reason)
{
	return usnap_fail(err, code, "cannot attach to process %d (%s): %s", (int)t->pid, t->comm,
			  reason);
}

/* The number in a line "Key:\t...", the nth of several. */
static bool status_number(const char *text, const char *key, unsigned nth, unsigned long *ret)
{
	size_t len = strlen(key);

	for (const char *s = text; s && *s; s = strchr(s, '\n') ? strchr(s, '\n') + 1 : NULL) {
		if (strncmp(s, key, len) || s[len] != ':')
			continue;
		char *end = NULL;
		unsigned long v = strtoul(s + len + 1, &end, 10);
		if (end == s + len + 1)
			return false;
		while (nth--) {
			const char *from = end;

			v = strtoul(from, &end, 10);
			if (end == from)
				return false;
		}
		*ret = v;
		return true;
	}
	return false;
}

/* "PID (COMM) S ...": COMM may hold parentheses and blanks, so the last one
 * closes it. */
static int parse_stat(const char *text, struct target *t, struct facts *f)
{
	const char *open = strchr(text, '('), *close = strrchr(text, ')');
	unsigned long long field = 0;

	if (!open || !close || close < open || close[1] != ' ')
		return -EPROTO;
	size_t len = MIN((size_t)(close - open - 1), sizeof(t->comm) - 1);
	memcpy(t->comm, open + 1, len);
	t->comm[len] = '\0';

	const char *s = close + 2;
	f->state = *s;
	for (unsigned nr = 3; nr < 22; nr++) {
		s = strchr(s, ' ');
		if (!s)
			return -EPROTO;
		s++;
		if (nr + 1 == 9 || nr + 1 == 20 || nr + 1 == 22)
			field = strtoull(s, NULL, 10);
		if (nr + 1 == 9)
			f->kthread = field & PF_KTHREAD;
		else if (nr + 1 == 20)
			f->nr_threads = (unsigned long)field;
	}
	t->start_ticks = timens_start_ticks(field);
	return 0;
}

static int read_facts(struct target *t, struct facts *f)
{
	cleanup_free char *stat = NULL, *status = NULL;
	unsigned long v;

	int r = io_read_file_at(t->procfd, "stat", KIB(16), &stat, NULL);
	if (r < 0)
		return r;
	r = parse_stat(stat, t, f);
	if (r < 0)
		return r;
	r = io_read_file_at(t->procfd, "status", KIB(256), &status, NULL);
	if (r < 0)
		return r;
	if (!status_number(status, "Tgid", 0, &v))
		return -EPROTO;
	f->tgid = (pid_t)v;
	f->tracer = status_number(status, "TracerPid", 0, &v) ? (pid_t)v : 0;
	f->uid = status_number(status, "Uid", 1, &v) ? (uid_t)v : 0;
	return 0;
}

/* The thread group of one of all the threads there are; 0: gone. */
static pid_t group_of(pid_t tid)
{
	char path[64];
	cleanup_free char *status = NULL;
	unsigned long v;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)tid);
	if (io_read_file_at(AT_FDCWD, path, KIB(256), &status, NULL) < 0)
		return 0;
	return status_number(status, "Tgid", 0, &v) ? (pid_t)v : 0;
}

pid_t target_tracer_of(const struct target *t, pid_t tid)
{
	char path[64];
	cleanup_free char *status = NULL;
	unsigned long v;

	snprintf(path, sizeof(path), "task/%d/status", (int)tid);
	if (io_read_file_at(t->procfd, path, KIB(256), &status, NULL) < 0)
		return 0;
	return status_number(status, "TracerPid", 0, &v) ? (pid_t)v : 0;
}

static pid_t own_tracer(void)
{
	cleanup_free char *status = NULL;
	unsigned long v = 0;

	if (io_read_file_at(AT_FDCWD, "/proc/thread-self/status", KIB(256), &status, NULL) < 0 ||
	    !status_number(status, "TracerPid", 0, &v) || !v)
		return 0;
	return group_of((pid_t)v);
}

int target_refuse_traced(const struct target *t, pid_t tracer, struct usnap_err *err)
{
	char path[64];
	cleanup_free char *comm = NULL;
	size_t len = 0;
	pid_t group = group_of(tracer);

	if (group)
		tracer = group;
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)tracer);
	if (io_read_file_at(AT_FDCWD, path, 256, &comm, &len) == 0 && len)
		comm[len - 1] = '\0';
	usnap_fail(err, -EBUSY,
		   "cannot attach to process %d (%s): it is being traced by %s (pid %d)",
		   (int)t->pid, t->comm, comm ? comm : "another process", (int)tracer);
	return usnap_hint(err,
			  "a process has one tracer at a time: detach the debugger, or let the "
			  "other snapshot finish");
}

static int yama_scope(void)
{
	cleanup_free char *text = NULL;

	if (io_read_file_at(AT_FDCWD, "/proc/sys/kernel/yama/ptrace_scope", 64, &text, NULL) < 0)
		return 0;
	return atoi(text);
}

static int refuse_permission(struct usnap_err *err, const struct target *t, const struct facts *f,
			     int code)
{
	int yama = yama_scope();

	usnap_fail_errno(err, code, "cannot attach to process %d (%s)", (int)t->pid, t->comm);
	if (yama >= 3)
		return usnap_hint(err,
				  "kernel.yama.ptrace_scope is 3: nobody can attach to a process "
				  "until the next boot without it");
	if (f->uid != geteuid())
		return usnap_hint(err,
				  "it belongs to uid %u: run as root, with CAP_SYS_PTRACE, or as "
				  "that user",
				  (unsigned)f->uid);
	if (yama == 2)
		return usnap_hint(err, "kernel.yama.ptrace_scope is 2: run as root or with "
				       "CAP_SYS_PTRACE");
	if (yama == 1)
		return usnap_hint(err, "kernel.yama.ptrace_scope is 1: run as root or with "
				       "CAP_SYS_PTRACE, or set it to 0 with sysctl");
	return usnap_hint(err,
			  "it changed its credentials, forbade core dumps, holds capabilities or "
			  "lies in another user namespace: run as root or with CAP_SYS_PTRACE");
}

/* The kernel's check for ptrace and the one for opening mem are the same
 * (PTRACE_MODE_ATTACH, security modules included), and the latter changes
 * nothing. */
static int check_permission(struct target *t, const struct facts *f, struct usnap_err *err)
{
	int fd = openat(t->procfd, "mem", O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		int r = -errno;

		if (r == -EACCES || r == -EPERM)
			return refuse_permission(err, t, f, r);
		return usnap_fail_errno(err, r, "cannot attach to process %d (%s)", (int)t->pid,
					t->comm);
	}
	close(fd);

	t->pagemap_fd = openat(t->procfd, "pagemap", O_RDONLY | O_CLOEXEC);
	if (t->pagemap_fd < 0) {
		int r = -errno;

		if (r == -EACCES || r == -EPERM)
			return refuse_permission(err, t, f, r);
		return usnap_fail_errno(err, r, "cannot open '/proc/%d/pagemap'", (int)t->pid);
	}
	return 0;
}

/* The kernel runs programs of other kinds beside its own (32-bit, x32); their
 * registers, signal frames and vdso are not what the rest is written for. */
static int check_machine(const struct target *t, struct usnap_err *err)
{
	Elf64_Ehdr eh;
	cleanup_fd int fd = openat(t->procfd, "exe", O_RDONLY | O_CLOEXEC);

	/* A program may be executable and not readable; then nothing is known. */
	if (fd < 0 || io_pread_full(fd, &eh, sizeof(eh), 0) < 0 ||
	    memcmp(eh.e_ident, ELFMAG, SELFMAG))
		return 0;
	if (eh.e_ident[EI_CLASS] != ELFCLASS64)
		return refuse(err, -EOPNOTSUPP, t,
			      "it is a 32-bit program; only 64-bit programs can be a target");
	if (eh.e_machine != NATIVE_MACHINE)
		return refuse(err, -EOPNOTSUPP, t, "it is a program for another kind of machine");
	return 0;
}

/* Two userfaultfds cannot share a region, and a program with one of its own
 * has a handler that a stopped thread would keep waiting. */
static int check_userfaultfd(const struct target *t, struct usnap_err *err)
{
	static const char name[] = "anon_inode:[userfaultfd]";
	char link[sizeof(name) + 1];
	int fd = openat(t->procfd, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;

	if (!dir) {
		int r = -errno;

		if (fd >= 0)
			close(fd);
		return usnap_fail_errno(err, r, "cannot list the descriptors of process %d (%s)",
					(int)t->pid, t->comm);
	}
	for (const struct dirent *e; (e = readdir(dir));) {
		if (e->d_name[0] == '.')
			continue;
		ssize_t n = readlinkat(fd, e->d_name, link, sizeof(link));
		if (n != (ssize_t)sizeof(name) - 1 || memcmp(link, name, sizeof(name) - 1))
			continue;
		usnap_fail(err, -EBUSY,
			   "cannot attach to process %d (%s): it uses a userfaultfd of its own "
			   "(descriptor %s)",
			   (int)t->pid, t->comm, e->d_name);
		return usnap_hint(err, "the kernel lets a region belong to one userfaultfd only");
	}
	return 0;
}

static int check_state(const struct target *t, const struct facts *f, struct usnap_err *err)
{
	if (f->tgid != t->pid) {
		usnap_fail(err, -EINVAL,
			   "cannot attach to process %d (%s): it is a thread of process "
			   "%d",
			   (int)t->pid, t->comm, (int)f->tgid);
		return usnap_hint(err, "give the process: %d", (int)f->tgid);
	}
	if (f->kthread)
		return refuse(err, -EINVAL, t, "it is a kernel thread");
	if ((f->state == 'Z' || f->state == 'X') && f->nr_threads > 1)
		return refuse(err, -EOPNOTSUPP, t, "its main thread has ended while others run on");
	if (f->state == 'Z' || f->state == 'X')
		return refuse(err, -ESRCH, t, "it has ended already (a zombie)");
	if (f->tracer)
		return target_refuse_traced(t, f->tracer, err);
	if (own_tracer() == t->pid)
		return refuse(err, -EDEADLK, t, "it is tracing this very command");
	return 0;
}

static int open_checked(struct target *t, struct usnap_err *err)
{
	struct facts f = {0};
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d", (int)t->pid);
	t->procfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t->procfd < 0 && errno == ENOENT)
		return usnap_fail(err, -ESRCH, "cannot attach to process %d: no such process",
				  (int)t->pid);
	if (t->procfd < 0)
		return usnap_fail_errno(err, -errno, "cannot open '%s'", path);

	t->pidfd = (int)syscall(SYS_pidfd_open, t->pid, 0);
	int pidfd_code = t->pidfd < 0 ? -errno : 0;

	/* Read after pidfd_open: that procfd still speaks shows that the PID was
	 * not used again in between. */
	int r = read_facts(t, &f);
	if (r == -ESRCH || r == -ENOENT)
		return usnap_fail(err, -ESRCH, "cannot attach to process %d: no such process",
				  (int)t->pid);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot read '%s/stat'", path);
	r = check_state(t, &f, err);
	if (r < 0)
		return r;
	if (t->pidfd < 0)
		return usnap_fail_errno(err, pidfd_code, "cannot attach to process %d (%s)",
					(int)t->pid, t->comm);
	r = check_permission(t, &f, err);
	if (r < 0)
		return r;
	r = check_machine(t, err);
	if (r < 0)
		return r;
	return check_userfaultfd(t, err);
}

int target_open(struct target *ret, pid_t pid, struct usnap_err *err)
{
	struct target t = {.pid = pid, .pidfd = -1, .procfd = -1, .pagemap_fd = -1};

	if (pid <= 0)
		return usnap_fail(err, -EINVAL, "cannot attach to process %d: not a process id",
				  (int)pid);
	if (group_of(pid) == getpid())
		return usnap_fail(err, -EINVAL,
				  "cannot attach to process %d: it is this very command", (int)pid);
	int r = open_checked(&t, err);
	if (r < 0) {
		target_close(&t);
		return r;
	}
	*ret = t;
	return 0;
}

void target_close(struct target *t)
{
	int *fds[] = {&t->pidfd, &t->procfd, &t->pagemap_fd};

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
}

bool target_alive(const struct target *t)
{
	/* Readable from the moment the last thread has ended (pidfd_open(2)). */
	struct pollfd p = {.fd = t->pidfd, .events = POLLIN};

	return t->pidfd >= 0 && poll(&p, 1, 0) == 0;
}
