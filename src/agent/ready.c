/*
 * Who is ready for snapshots, and under which name.
 *
 * DESIGN. The environment comes along through fork() and exec(), and so would
 * the agent; what was meant is one program. So a process is ready that
 *
 *	- has been started with the agent by one that is not ready itself, or
 *	- was ready before it called exec(): wrappers end so, "#!/usr/bin/env" too,
 *	- or asks for it: UFFD_SNAP_INHERIT=1.
 *
 * Any other is the child of one that is: it takes agent and variables out of
 * its environment before its main() sees them, and has no name. Who is ready is
 * asked of the run directory, from which entries go with their process, and
 * where there is none, of its memory.
 *
 * A program that becomes a daemon goes on in a child that was not exec()ed. It
 * shows by setsid(): the child takes the name, and counts as soon as the parent
 * has ended; as long as that lives the name is the parent's. The first child
 * that it makes at once does the same, because many fork twice. In the child
 * of a vfork() all memory is the parent's: that it was fork() is known from
 * the handler of pthread_atfork(), which vfork() does not call.
 */
#include "agent/ready.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "agent/agent.h"
#include "agent/raw.h"
#include "agent/service.h"
#include "agent/surroundings.h"
#include "common/rundir.h"

#ifndef PR_SET_PTRACER
#define PR_SET_PTRACER 0x59616d61
#endif

enum {
	GENERATIONS = 64, /* looked at for one that is ready */
	SECOND_FORK_NS = 1000000000
};

static struct {
	bool ready;
	/* When it became so; and before: the last first. */
	struct around self, before[RUNDIR_FOLLOWS_MAX];
	int64_t forked; /* the PID that fork() gave this process, 0: it was exec()ed */
	uint64_t led_at; /* when it took over by setsid(), CLOCK_MONOTONIC; 0: it did not */
	unsigned nr_forks; /* since then */
} state;

static int64_t own_pid(void)
{
	return raw_call(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

static uint64_t monotonic_ns(void)
{
	struct timespec ts = {0};

	raw_call(SYS_clock_gettime, CLOCK_MONOTONIC, (uint64_t)(uintptr_t)&ts, 0, 0, 0, 0);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- the environment of those that are not ------------------------------------------------- */

static bool is_agent(const char *component, size_t len)
{
	static const char file[] = "libuffd-snap-agent.so";

	for (size_t i = len; i--;)
		if (component[i] == '/') {
			component += i + 1;
			len -= i + 1;
			break;
		}
	return len >= sizeof(file) - 1 && !memcmp(component, file, sizeof(file) - 1);
}

/* Takes the agent out of a list with colons or blanks, in its place. */
static void take_out(char *list)
{
	char *from = list, *to = list;

	while (*from) {
		size_t len = strcspn(from, ": ");
		bool drop = is_agent(from, len);

		len += from[len] != '\0';
		if (!drop) {
			memmove(to, from, len);
			to += len;
		}
		from += len;
	}
	/* The separator behind what was the last but one. */
	if (to > list && to < from && (to[-1] == ':' || to[-1] == ' '))
		to--;
	*to = '\0';
}

static bool is_variable(const char *entry, const char *name)
{
	size_t len = strlen(name);

	return !strncmp(entry, name, len) && entry[len] == '=';
}

/* UFFD_SNAP_STORE stays: it is the command's as well. */
static void leave_environment(void)
{
	static const char *const ours[] = {
		AGENT_ENV_NAME,	  AGENT_ENV_ON_EXIT, AGENT_ENV_EVERY,	   AGENT_ENV_KEEP,
		AGENT_ENV_SIGNAL, AGENT_ENV_COMMAND, AGENT_ENV_SUPERVISED,
	};
	char **to = environ;

	for (char **e = environ; e && *e; e++) {
		bool drop = false;

		if (is_variable(*e, "LD_PRELOAD")) {
			char *list = strchr(*e, '=') + 1;

			take_out(list);
			drop = !*list;
		}
		for (size_t i = 0; i < sizeof(ours) / sizeof(*ours); i++)
			drop |= is_variable(*e, ours[i]);
		if (!drop)
			*to++ = *e;
	}
	if (to)
		*to = NULL;
}

/* ---- is it meant? -------------------------------------------------------------------------- */

static bool descends_from_ready(const struct around *self)
{
	struct around a = *self;

	for (unsigned i = 0; i < GENERATIONS && a.ppid > 1; i++) {
		if (!around_look(a.ppid, &a))
			return false;
		/* Entries can be lost: with a session that ends, to who tidies /tmp. And in a time
		 * namespace what has been entered from outside has another time of start. */
		if (around_has_entry(&a) || around_is_ready(&a))
			return true;
	}
	return false;
}

static bool is_meant(const struct around *self)
{
	if (agent_control.flags & AGENT_INHERIT)
		return true;
	if (!around_has_entry(self))
		return !descends_from_ready(self);
	if (!around_entry_waits(self))
		return true;
	/* It led a session for what it runs now; its parent is no daemon's. */
	around_drop_entry(self);
	return false;
}

/* With the agent in the environment of a unit or of a shell, the command gets it too. It is no program to
 * take, what it starts is, and the variables are for it. */
static bool is_command(void)
{
	static const char name[] = "uffd-snap";
	char path[512];
	int64_t n = raw_call(SYS_readlinkat, (uint64_t)AT_FDCWD, (uintptr_t) "/proc/self/exe",
			     (uintptr_t)path, sizeof(path) - 1, 0, 0);

	if (raw_failed(n))
		return false;
	path[n] = '\0';
	const char *slash = strrchr(path, '/');
	return slash && !strcmp(slash + 1, name);
}

static void set_name(const char *name)
{
	static const char others[] = ".-_+:";
	char allowed[RUNDIR_NAME_MAX + 1];
	size_t len = name ? strlen(name) : 0, n = 0;

	/* As a directory of the store may be called. */
	if (!len || len > RUNDIR_NAME_MAX || *name == '.' || *name == '-')
		return;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)name[i], low = c | 0x20;

		/* Names of units have these: as snapshot --unit makes one of them. */
		if (n && (c == '@' || c == '\\')) {
			if (allowed[n - 1] != '-')
				allowed[n++] = '-';
			continue;
		}
		if (c < 0x80 && !(low >= 'a' && low <= 'z') && !(c >= '0' && c <= '9') &&
		    !strchr(others, c))
			return;
		allowed[n++] = name[i];
	}
	memcpy(agent_control.name, allowed, n);
	agent_control.name[n] = '\0';
}

/* Where yama lets only ancestors trace: whoever loads the agent wants snapshots, and those of its
 * own user's are taken by anybody's child. */
static void allow_tracing(void)
{
	raw_call(SYS_prctl, PR_SET_PTRACER, (uint64_t)-1, 0, 0, 0, 0);
}

/* ---- daemons ------------------------------------------------------------------------------- */

/* follows: as long as the one lives that it is a child of, the name is that one's. */
static void take_the_name(bool follows)
{
	struct around self;

	if (!around_look(0, &self))
		return;
	for (unsigned i = RUNDIR_FOLLOWS_MAX; --i;)
		state.before[i] = state.before[i - 1];
	state.before[0] = state.self;
	state.self = self;
	around_enter(&self, agent_control.name, agent_control.beacon, state.before,
		     follows ? RUNDIR_FOLLOWS_MAX : 0);
	agent_take_over();
	allow_tracing();
}

static void before_fork(void)
{
	state.nr_forks += state.led_at != 0;
}

static void in_child(void)
{
	state.forked = own_pid();
	if (state.ready && agent_control.flags & AGENT_INHERIT)
		take_the_name(false);
	else if (state.ready && state.nr_forks == 1 &&
		 monotonic_ns() - state.led_at < SECOND_FORK_NS)
		take_the_name(true);
	state.led_at = 0;
	state.nr_forks = 0;
}

static void leads_a_session(void)
{
	if (!state.ready || !state.forked || state.forked != own_pid() ||
	    agent_control.pid == state.forked)
		return;
	take_the_name(true);
	state.led_at = monotonic_ns();
	state.nr_forks = 0;
}

__attribute__((visibility("default"))) pid_t setsid(void)
{
	int64_t r = raw_call(SYS_setsid, 0, 0, 0, 0, 0, 0);

	if (raw_failed(r)) {
		errno = (int)-r;
		return -1;
	}
	leads_a_session();
	return (pid_t)r;
}

/* libc's daemon() calls its own setsid(). Another library may have a function of that name, which takes
 * and gives back what it likes in registers. */
typedef long any_function(long, long, long, long, long, long);
__attribute__((visibility("default"))) any_function agent_daemon __asm__("daemon");

static bool is_of_libc(const void *function)
{
	Dl_info one, other;

	return dladdr(function, &one) && dladdr(dlsym(RTLD_NEXT, "fork"), &other) &&
	       one.dli_fbase == other.dli_fbase;
}

long agent_daemon(long a, long b, long c, long d, long e, long f)
{
	any_function *next;
	void *found = dlsym(RTLD_NEXT, "daemon");

	memcpy(&next, &found, sizeof(next));
	if (!next) {
		errno = ENOSYS;
		return -1;
	}
	long r = next(a, b, c, d, e, f);
	if ((int)r == 0 && is_of_libc(found))
		leads_a_session();
	return r;
}

/* ---- start --------------------------------------------------------------------------------- */

void agent_ready_start(void)
{
	const char *on_exit_ = around_env(AGENT_ENV_ON_EXIT);

	/* Whoever started a program with more rights than his own has no say in it. */
	if (getauxval(AT_SECURE) || is_command()) {
		agent_control.pid = 0;
		return;
	}
	if (around_env_is_set(AGENT_ENV_INHERIT))
		agent_control.flags |= AGENT_INHERIT;
	state.ready = around_look(0, &state.self) ? is_meant(&state.self) : true;
	if (!state.ready) {
		leave_environment();
		agent_control.flags = 0;
		agent_control.pid = 0;
		return;
	}
	if (on_exit_ && !strcmp(on_exit_, "wait"))
		agent_control.flags |= AGENT_ON_EXIT_WAIT;
	set_name(around_env(AGENT_ENV_NAME));
	if (state.self.pid)
		around_enter(&state.self, agent_control.name, agent_control.beacon, NULL, 0);
	allow_tracing();
	pthread_atfork(before_fork, NULL, in_child);
	if (state.self.pid)
		agent_service_start(&state.self);
}
