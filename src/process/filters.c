#include "process/filters.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1 /* Linux 5.11 */
#endif
#define MEMBARRIER_GET_REGISTRATIONS (1 << 9) /* Linux 6.3 */
#define ANCESTORS_MAX 64
#define NOWHERE ((uint64_t)-1) /* a descriptor, or an ID, that nobody has */

/* What clone(2) refuses: threads share their signal actions. */
#define BAD_CLONE (CLONE_VM | CLONE_THREAD | CLONE_VFORK | CLONE_SYSVSEM)

/* clang-format off */
static const struct filter_call target_calls[] = {
	/* Nobody is asked for a right before the flags have been judged. */
	{"userfaultfd", SYS_userfaultfd, {UFFD_USER_MODE_ONLY | 2}, EINVAL},
	{"clone", SYS_clone, {BAD_CLONE}, EINVAL},
	{"ioctl", SYS_ioctl, {NOWHERE}, EBADF},
	{"socketpair", SYS_socketpair, {AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, 0}, EFAULT},
	{"recvmsg", SYS_recvmsg, {NOWHERE}, EBADF},
	{"close", SYS_close, {NOWHERE}, EBADF},
	{"getpid", SYS_getpid, {0}, 0},
	{"gettid", SYS_gettid, {0}, 0},
	{"tgkill", SYS_tgkill, {NOWHERE, NOWHERE, SIGUSR1}, EINVAL},
	{"rt_sigprocmask", SYS_rt_sigprocmask, {SIG_BLOCK, 0, 0, 8}, 0},
	{"rt_sigaction", SYS_rt_sigaction, {SIGUSR1, 0, 0, 8}, 0},
	{"sigaltstack", SYS_sigaltstack, {0}, 0},
	{"restart_syscall", SYS_restart_syscall, {0}, EINTR},
	{"brk", SYS_brk, {0}, 0},
	{"prctl", SYS_prctl, {PR_GET_DUMPABLE}, 0},
	{"prctl", SYS_prctl, {PR_GET_TIMERSLACK}, 0},
	{"membarrier", SYS_membarrier, {MEMBARRIER_GET_REGISTRATIONS}, 0},
	{"getitimer", SYS_getitimer, {NOWHERE}, EINVAL},
	{"timer_gettime", SYS_timer_gettime, {NOWHERE, 0}, EINVAL},
	{"get_robust_list", SYS_get_robust_list, {0, 0, 0}, EFAULT},
	{"ioprio_get", SYS_ioprio_get, {1, 0}, 0},
	{"sched_getattr", SYS_sched_getattr, {0, 0, 0, 0}, EINVAL},
};
/* clang-format on */

size_t filters_target_calls(const struct filter_call **ret)
{
	*ret = target_calls;
	return ARRAY_SIZE(target_calls);
}

/* ---- trying ----------------------------------------------------------------- */

/* Shared with the child. */
struct trial {
	size_t next; /* the first call that has not been made */
	enum filter_result result[];
};

static void handler(int sig)
{
}

static void try_from(struct trial *t, const struct filter_call *calls, size_t n, pid_t parent)
{
	struct sigaction action = {.sa_handler = handler};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
	signal(SIGSYS, SIG_DFL);
	signal(SIGALRM, SIG_DFL);
	/* A filter may hand the question to a process that never answers. */
	alarm(5);
	while (t->next < n && getppid() == parent) {
		size_t i = t->next++;
		const struct filter_call *c = &calls[i];

		t->result[i] = FILTER_KILLED;
		long r = syscall(c->nr, c->args[0], c->args[1], c->args[2], c->args[3], c->args[4]);
		bool passed = c->answer ? r < 0 && errno == c->answer : r >= 0;
		t->result[i] = passed ? FILTER_PASSED : FILTER_REFUSED;
	}
	/* The way back from a handler is a call, too. */
	sigaction(SIGUSR1, &action, NULL);
	kill(getpid(), SIGUSR1);
	syscall(SYS_exit, 0);
}

/* Returns whether a child has come to its end by itself. */
static bool run_trial(struct trial *t, const struct filter_call *calls, size_t n)
{
	/* Every death is that of one call. */
	for (size_t deaths = 0; deaths <= n; deaths++) {
		pid_t parent = getpid();
		pid_t pid = fork();
		int status;

		if (pid < 0)
			return false;
		if (pid == 0) {
			try_from(t, calls, n, parent);
			_exit(0);
		}
		while (waitpid(pid, &status, 0) < 0) {
			if (errno != EINTR)
				return false;
		}
		if (WIFEXITED(status))
			return WEXITSTATUS(status) == 0;
		if (t->next >= n && t->result[n - 1] != FILTER_KILLED)
			return false;
	}
	return false;
}

static bool try_all(const struct filter_call *calls, size_t n, enum filter_result *ret)
{
	size_t len = sizeof(struct trial) + n * sizeof(enum filter_result);
	struct trial *t =
		mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	memset(ret, 0, n * sizeof(*ret));
	if (t == MAP_FAILED)
		return false;
	bool whole = run_trial(t, calls, n);
	memcpy(ret, t->result, n * sizeof(*ret));
	munmap(t, len);
	return whole;
}

void filters_try(const struct filter_call *calls, size_t n, enum filter_result *ret)
{
	try_all(calls, n, ret);
}

bool filters_are_harmless(void)
{
	enum filter_result result[ARRAY_SIZE(target_calls)];

	if (!try_all(target_calls, ARRAY_SIZE(target_calls), result))
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(result); i++) {
		if (result[i] != FILTER_PASSED && result[i] != FILTER_REFUSED)
			return false;
	}
	return true;
}

/* ---- whose ------------------------------------------------------------------- */

struct who {
	pid_t parent;
	uint64_t mode, filters;
};

static uint64_t number_of(const char *status, const char *key)
{
	const char *s = strstr(status, key);

	return s ? strtoull(s + strlen(key), NULL, 10) : 0;
}

static int look_at(int dirfd, const char *path, struct who *ret)
{
	cleanup_free char *status = NULL;
	int r = io_read_file_at(dirfd, path, KIB(64), &status, NULL);

	if (r < 0)
		return r;
	*ret = (struct who){
		.parent = (pid_t)number_of(status, "\nPPid:"),
		.mode = number_of(status, "\nSeccomp:"),
		/* Linux 5.9. Without it none is known to be like another. */
		.filters = number_of(status, "\nSeccomp_filters:"),
	};
	return 0;
}

static int look_at_process(pid_t pid, struct who *ret)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	return look_at(AT_FDCWD, path, ret);
}

/* The next one up; what came into a PID namespace from outside counts as a child of its first. */
static pid_t above(pid_t pid, const struct who *w)
{
	if (pid == 1)
		return 0;
	return w->parent > 0 ? w->parent : 1;
}

/*
 * Filters are inherited, and only ever added to. Where two processes and one
 * that both descend from have the same number of them, neither has any of its
 * own.
 */
static bool inherited_alike(pid_t pid, uint64_t filters)
{
	pid_t mine[ANCESTORS_MAX], p = getpid();
	size_t n = 0;
	struct who w;

	while (p > 0 && n < ANCESTORS_MAX && look_at_process(p, &w) == 0) {
		/* Further up there may be fewer, and nobody that helps. */
		if (w.mode != 2 || w.filters != filters)
			break;
		mine[n++] = p;
		p = above(p, &w);
	}
	p = pid;
	for (size_t hops = 0; p > 0 && hops < ANCESTORS_MAX && look_at_process(p, &w) == 0;
	     hops++) {
		if (w.mode != 2 || w.filters != filters)
			return false;
		for (size_t i = 0; i < n; i++)
			if (mine[i] == p)
				return true;
		p = above(p, &w);
	}
	return false;
}

int filters_look(const struct target *t, struct filters_seen *ret)
{
	cleanup_fd int fd = openat(t->procfd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	uint64_t filters = 0;
	bool alike = true, first = true;
	const struct dirent *e;

	if (!d)
		return -ESRCH;
	fd = -1;
	*ret = (struct filters_seen){0};
	while ((e = readdir(d))) {
		char path[300];
		struct who w;

		snprintf(path, sizeof(path), "task/%s/status", e->d_name);
		if (e->d_name[0] == '.' || look_at(t->procfd, path, &w) < 0)
			continue;
		ret->any = ret->any || w.mode == 2;
		alike = alike && w.mode == 2 && (first || w.filters == filters);
		filters = w.filters;
		first = false;
	}
	ret->ours = ret->any && alike && filters > 0 && inherited_alike(t->pid, filters);
	return 0;
}
