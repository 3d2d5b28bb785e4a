/*
 * usnap_checkpoint() and what belongs to it (uffd-snap.h).
 *
 * DESIGN. The snapshot is taken by uffd-snap, a child at the other end of a
 * socket. It asks before the threads are stopped and tells when T0 is past
 * (snapshot --sync-fd), so that at T0 the calling thread is in recv(), or
 * about to be. In a process that was restored there is no child, and the
 * socket is closed: whatever the calls here return, the count of restores is
 * looked at first, and when it has moved nothing of before T0 counts.
 *
 * One call at a time. What it needs lies in static memory: nothing is mapped
 * and nothing taken from the program's heap, and the stack of a small thread
 * suffices. Locks hold the PID of their owner, so that a child of fork() does
 * not wait for a thread that it does not have.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <uffd-snap.h>

#include "agent/agent.h"
#include "agent/excludes.h"
#include "agent/raw.h"
#include "agent/reply.h"
#include "agent/spawn.h"

#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif

enum {
	NR_PHASES = 3,
	MAX_CALLBACKS = 32,
	LOOK_S = 1, /* how often it is looked whether the child is still there */
	HIGH_FD = 200, /* descriptors that a program has a plan for lie below */
};

/* ---- locks --------------------------------------------------------------------------------------- */

static int32_t own_pid(void)
{
	return (int32_t)raw_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

static bool try_lock(int32_t *lock)
{
	int32_t self = own_pid(), seen = __atomic_load_n(lock, __ATOMIC_RELAXED);

	return seen != self && __atomic_compare_exchange_n(lock, &seen, self, false,
							   __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

static void unlock(int32_t *lock)
{
	__atomic_store_n(lock, 0, __ATOMIC_RELEASE);
}

/* Short: signals are held back, whose handlers could want it. */
struct held {
	int32_t *lock;
	uint64_t mask;
};

static struct held hold(int32_t *lock)
{
	struct held h = {.lock = lock};
	uint64_t all = ~UINT64_C(0);

	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (uintptr_t)&all, (uintptr_t)&h.mask, sizeof(all),
		 0, 0);
	while (!try_lock(lock))
		raw_call(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
	return h;
}

static void let_go(struct held h)
{
	unlock(h.lock);
	raw_call(SYS_rt_sigprocmask, SIG_SETMASK, (uintptr_t)&h.mask, 0, sizeof(h.mask), 0, 0);
}

/* ---- excludes ------------------------------------------------------------------------------------ */

static int32_t excludes_lock;

static bool is_range(uint64_t addr, size_t len)
{
	return addr + len >= addr && addr + len <= UINT64_MAX - AGENT_PAGE;
}

static int change_excludes(int (*change)(struct agent_control *, uint64_t, uint64_t),
			   uint64_t start, uint64_t end)
{
	if (start >= end)
		return 0;
	struct held h = hold(&excludes_lock);
	int r = change(&agent_control, start, end);
	let_go(h);
	return r;
}

int usnap_exclude(const void *addr, size_t len)
{
	const uint64_t at = (uintptr_t)addr, mask = AGENT_PAGE - 1;

	if (!is_range(at, len))
		return -EINVAL;
	return change_excludes(excludes_add, (at + mask) & ~mask, (at + len) & ~mask);
}

int usnap_include(const void *addr, size_t len)
{
	const uint64_t at = (uintptr_t)addr, mask = AGENT_PAGE - 1;

	if (!is_range(at, len))
		return -EINVAL;
	return len ? change_excludes(excludes_remove, at & ~mask, (at + len + mask) & ~mask) : 0;
}

/* ---- callbacks ----------------------------------------------------------------------------------- */

struct callback {
	void (*fn)(void *arg);
	void *arg;
};

static int32_t callbacks_lock;
static struct callbacks {
	struct callback v[MAX_CALLBACKS];
	unsigned n;
} callbacks[NR_PHASES];

int usnap_on(enum usnap_phase phase, void (*callback)(void *arg), void *arg)
{
	int r = -ENOSPC;

	if ((unsigned)phase >= NR_PHASES || !callback)
		return -EINVAL;
	struct held h = hold(&callbacks_lock);
	struct callbacks *list = &callbacks[phase];
	if (list->n < MAX_CALLBACKS) {
		list->v[list->n++] = (struct callback){callback, arg};
		r = 0;
	}
	let_go(h);
	return r;
}

int usnap_off(enum usnap_phase phase, void (*callback)(void *arg), void *arg)
{
	int r = -ENOENT;

	if ((unsigned)phase >= NR_PHASES)
		return -EINVAL;
	struct held h = hold(&callbacks_lock);
	struct callbacks *list = &callbacks[phase];
	for (unsigned i = list->n; i-- > 0 && r < 0;) {
		if (list->v[i].fn != callback || list->v[i].arg != arg)
			continue;
		list->n--;
		memmove(&list->v[i], &list->v[i + 1], (list->n - i) * sizeof(list->v[0]));
		r = 0;
	}
	let_go(h);
	return r;
}

static void call_all(enum usnap_phase phase)
{
	struct held h = hold(&callbacks_lock);
	const struct callbacks list = callbacks[phase];
	let_go(h);

	for (unsigned i = 0; i < list.n; i++) {
		const struct callback *c =
			&list.v[phase == USNAP_BEFORE_FREEZE ? list.n - 1 - i : i];

		c->fn(c->arg);
	}
}

unsigned usnap_restored(void)
{
	return __atomic_load_n(&agent_control.restored, __ATOMIC_ACQUIRE);
}

/* ---- one snapshot -------------------------------------------------------------------------------- */

static int32_t checkpoint_lock;
static struct reply reply;

struct checkpoint {
	struct usnap_checkpoint_options o;
	unsigned restored; /* as it was when this began */
	int fd; /* our end */
	pid_t pid;
	bool frozen; /* T0 is past */
	bool done; /* the image is complete */
	bool called; /* callbacks of before the freeze, and not yet those of after it */
};

static bool is_restored(const struct checkpoint *c)
{
	return usnap_restored() != c->restored;
}

static void copy_text(char *to, size_t room, const char *text)
{
	size_t len = strlen(text);

	if (to && room) {
		memcpy(to, text, len < room ? len : room - 1);
		to[len < room ? len : room - 1] = '\0';
	}
}

static int fail(const struct checkpoint *c, int code, const char *text)
{
	copy_text(c->o.error, c->o.error_size, text);
	return code;
}

/* Where only ancestors may trace a process, it names another that may (Yama; prctl(2)). Where there is
 * no Yama this fails, and is not needed. A process that is ready for snapshots has let everybody when it
 * started. 0: nobody. */
static void allow_tracing(pid_t pid)
{
	if (agent_control.pid != own_pid())
		raw_call(SYS_prctl, PR_SET_PTRACER, (uint64_t)pid, 0, 0, 0, 0);
}

static void close_fd(int fd)
{
	raw_call(SYS_close, (uint64_t)fd, 0, 0, 0, 0, 0);
}

/* Away from where a program looks for the lowest free number. */
static int move_up(int fd)
{
	int64_t high = raw_call(SYS_fcntl, (uint64_t)fd, F_DUPFD_CLOEXEC, HIGH_FD, 0, 0, 0);

	if (raw_failed(high))
		return fd;
	close_fd(fd);
	return (int)high;
}

static int open_socket(int ret[2])
{
	/* The end of the command is not always that of the stream: see is_gone(). */
	const struct {
		int64_t s, us;
	} timeout = {LOOK_S, 0};
	int64_t r = raw_call(SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, (uintptr_t)ret,
			     0, 0);

	if (raw_failed(r))
		return (int)r;
	for (int i = 0; i < 2; i++)
		ret[i] = move_up(ret[i]);
	raw_call(SYS_setsockopt, (uint64_t)ret[0], SOL_SOCKET, SO_RCVTIMEO, (uintptr_t)&timeout,
		 sizeof(timeout), 0);
	return 0;
}

static void write_number(char *to, unsigned v)
{
	char digits[12];
	unsigned n = 0;

	do
		digits[n++] = (char)('0' + v % 10);
	while (v /= 10);
	while (n)
		*to++ = digits[--n];
	*to = '\0';
}

static int start(struct checkpoint *c)
{
	const struct usnap_checkpoint_options *o = &c->o;
	char pid[12], timeout[12];
	const char *argv[16] = {"uffd-snap", "snapshot", pid, "--json", "--sync-fd", "0"};
	unsigned n = 6;
	const struct {
		const char *option, *value;
	} options[] = {
		{"-o", o->output},
		{"--parent", o->parent},
		{"--store", o->store},
		{"--name", o->name},
		{"--timeout", o->timeout_s ? timeout : NULL},
	};
	int fds[2], r = open_socket(fds);

	if (r < 0)
		return fail(c, r, "cannot make a socket");
	write_number(pid, (unsigned)own_pid());
	write_number(timeout, o->timeout_s);
	for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (options[i].value) {
			argv[n++] = options[i].option;
			argv[n++] = options[i].value;
		}
	c->pid = agent_run_command(argv, fds[1]);
	close_fd(fds[1]);
	c->fd = fds[0];
	if (c->pid >= 0)
		return 0;
	close_fd(c->fd);
	return fail(c, c->pid,
		    c->pid == -ENOENT ? "cannot find the command uffd-snap"
				      : "cannot run the command uffd-snap");
}

/* The answer. When it does not arrive there is nobody who waits for it. */
static void go(const struct checkpoint *c)
{
	static const char text[] = "go\n";
	int64_t r;

	do
		r = raw_call(SYS_sendto, (uint64_t)c->fd, (uintptr_t)text, sizeof(text) - 1,
			     MSG_NOSIGNAL, 0, 0);
	while (r == -EINTR);
}

static void end_freeze(struct checkpoint *c)
{
	if (c->called)
		call_all(USNAP_AFTER_FREEZE);
	c->called = false;
}

static void hear(struct checkpoint *c, char byte)
{
	switch (reply_add(&reply, byte)) {
	case REPLY_ATTACH:
		allow_tracing(c->pid);
		go(c);
		break;
	case REPLY_FREEZE:
		/* The attempt before was torn: what was promised for it ends here. */
		end_freeze(c);
		c->frozen = false;
		call_all(USNAP_BEFORE_FREEZE);
		c->called = true;
		go(c);
		break;
	case REPLY_FROZEN:
		c->frozen = true;
		end_freeze(c);
		break;
	case REPLY_DONE:
		c->done = true;
		break;
	case REPLY_NOTHING:
		break;
	}
}

/* For when its end of the socket lives on in a child that another thread has forked. */
static bool is_gone(pid_t pid)
{
	return raw_call(SYS_kill, (uint64_t)pid, 0, 0, 0, 0, 0) == -ESRCH;
}

/* Until the command has ended, or need not be listened to any more. 1: this is a process that was
 * restored. */
static int wait_for_command(struct checkpoint *c)
{
	while (!c->done && !(c->o.no_wait && c->frozen)) {
		char text[256];
		/* Nothing lies behind a question: the answer comes first. */
		int64_t n = raw_call(SYS_recvfrom, (uint64_t)c->fd, (uintptr_t)text, sizeof(text),
				     0, 0, 0);

		if (is_restored(c))
			return 1;
		for (int64_t i = 0; i < n; i++)
			hear(c, text[i]);
		if (n <= 0 && n != -EINTR && (n != -EAGAIN || is_gone(c->pid)))
			break;
	}
	return 0;
}

static int finish(const struct checkpoint *c)
{
	if (c->done || (c->o.no_wait && c->frozen)) {
		const char *path = c->o.output ? c->o.output : reply.path;

		/* A part of a path is the path of something else. */
		copy_text(c->o.path, c->o.path_size, strlen(path) < c->o.path_size ? path : "");
		return 0;
	}
	return fail(c, -ECANCELED,
		    reply.error[0] ? reply.error : "cannot take a snapshot: uffd-snap was killed");
}

static int run(struct checkpoint *c)
{
	int r = start(c);

	if (r < 0)
		return r;
	reply_begin(&reply);
	r = wait_for_command(c);
	close_fd(c->fd);
	if (r == 1) {
		call_all(USNAP_RESTORED);
		return 1;
	}
	/* A command that is not waited for needs it for a while yet. */
	if (c->done || !c->o.no_wait || !c->frozen)
		allow_tracing(0);
	end_freeze(c);
	return finish(c);
}

int usnap_checkpoint(const struct usnap_checkpoint_options *options)
{
	struct checkpoint c = {.restored = usnap_restored()};
	int r;

	if (options && options->size < offsetof(struct usnap_checkpoint_options, no_wait))
		return -EINVAL;
	if (options)
		memcpy(&c.o, options, options->size < sizeof(c.o) ? options->size : sizeof(c.o));
	copy_text(c.o.path, c.o.path_size, "");
	copy_text(c.o.error, c.o.error_size, "");
	if (c.o.output && (!c.o.output[0] || !strcmp(c.o.output, "-")))
		return fail(&c, -EINVAL, "cannot take a snapshot: no name of a file is given");
	if (c.o.output && (c.o.store || c.o.name))
		return fail(&c, -EINVAL,
			    "cannot take a snapshot: both a file and a store are given");
	if (!try_lock(&checkpoint_lock))
		return fail(&c, -EBUSY, "cannot take a snapshot: one is being taken");
	r = run(&c);
	unlock(&checkpoint_lock);
	return r;
}
