#include "agent/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "agent/raw.h"
#include "agent/service.h"

#ifndef SYS_close_range /* Linux 5.9 */
#define SYS_close_range 436
#endif

enum {
	PATH_ROOM = 4096,
	ENV_ROOM = 4096,
	STACK_BYTES = 8192,
	FDS_MAX = 65536, /* closed one by one on a kernel without close_range() */
	NR_SIGNALS = 64,
};

/* As the kernel has it (arch/x86/include/uapi/asm/signal.h). */
struct kernel_sigaction {
	void (*handler)(int);
	unsigned long flags;
	void (*restorer)(void);
	uint64_t mask;
};

/* What one call needs: too much for the stack of a thread. */
static struct {
	const char **argv;
	int fd;
	int error; /* why the child could not become the command */
	bool failed; /* it could not */
	pid_t pid; /* of the command */
	char *env[ENV_ROOM];
	char path[PATH_ROOM];
	char outer_stack[STACK_BYTES] __attribute__((aligned(16)));
	char inner_stack[STACK_BYTES] __attribute__((aligned(16)));
} call;

static void set_mask(uint64_t mask, uint64_t *ret_old)
{
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (uintptr_t)&mask, (uintptr_t)ret_old,
		 sizeof(mask), 0, 0);
}

/* ---- in the children ----------------------------------------------------------------------------- */

/* A handler of the program's must not run here, in its memory. */
static void default_signals(void)
{
	for (int sig = 1; sig <= NR_SIGNALS; sig++) {
		struct kernel_sigaction sa = {0};

		if (raw_failed(raw_call(SYS_rt_sigaction, (uint64_t)sig, 0, (uintptr_t)&sa,
					sizeof(sa.mask), 0, 0)))
			continue;
		/* Ignored ones stay so, as under nohup; but its own children it must be told of. */
		if (sa.handler == SIG_DFL || (sa.handler == SIG_IGN && sig != SIGCHLD))
			continue;
		sa = (struct kernel_sigaction){.handler = SIG_DFL};
		raw_call(SYS_rt_sigaction, (uint64_t)sig, (uintptr_t)&sa, 0, sizeof(sa.mask), 0, 0);
	}
}

static int become_command(void *arg)
{
	/* Out of the way of 0, 1 and 2, which get theirs without FD_CLOEXEC. */
	int fd = (int)raw_call(SYS_fcntl, (uint64_t)call.fd, F_DUPFD, 3, 0, 0, 0);
	call.error = fd;
	if (fd >= 0) {
		for (int i = 0; i < 3; i++)
			raw_call(SYS_dup2, (uint64_t)fd, (uint64_t)i, 0, 0, 0, 0);
		if (raw_failed(raw_call(SYS_close_range, 3, ~0u, 0, 0, 0, 0)))
			for (int i = 3; i < FDS_MAX; i++)
				raw_call(SYS_close, (uint64_t)i, 0, 0, 0, 0, 0);
		default_signals();
		set_mask(0, NULL);
		/* A signal to the program's group is not meant for it. */
		raw_call(SYS_setsid, 0, 0, 0, 0, 0, 0);
		call.error = (int)raw_call(SYS_execve, (uintptr_t)call.argv[0],
					   (uintptr_t)call.argv, (uintptr_t)call.env, 0, 0, 0);
	}
	call.failed = true;
	raw_call(SYS_exit, 127, 0, 0, 0, 0, 0);
	return 0;
}

/* In the memory of the parent, which waits until this one has become another program or has ended;
 * with an exit signal of 0. */
static pid_t spawn(int (*fn)(void *), char *stack)
{
	int saved = errno;
	pid_t pid = clone(fn, stack + STACK_BYTES, CLONE_VM | CLONE_VFORK, NULL);
	int r = pid < 0 ? -errno : pid;

	errno = saved;
	return r;
}

static void reap(pid_t pid)
{
	int64_t r;

	do
		r = raw_call(SYS_wait4, (uint64_t)pid, 0, (uint64_t)__WALL, 0, 0, 0);
	while (r == -EINTR);
}

static int be_between(void *arg)
{
	call.pid = spawn(become_command, call.inner_stack);
	if (call.pid > 0 && call.failed)
		reap(call.pid);
	raw_call(SYS_exit, 0, 0, 0, 0, 0, 0);
	return 0;
}

/* ---- in the program ------------------------------------------------------------------------------ */

pid_t agent_run_command(const char **argv, int fd)
{
	uint64_t old;

	argv[0] = agent_command(call.path, sizeof(call.path));
	if (!argv[0])
		return -ENOENT;
	agent_command_env(call.env, ENV_ROOM);
	call.argv = argv;
	call.fd = fd;
	call.failed = false;
	/* No handler may run in the children; here none could until the memory is the program's alone
	 * again. */
	set_mask(~UINT64_C(0), &old);
	int r = spawn(be_between, call.outer_stack);
	if (r > 0)
		reap(r);
	set_mask(old, NULL);
	if (r < 0)
		return r;
	return call.failed ? call.error : call.pid;
}
