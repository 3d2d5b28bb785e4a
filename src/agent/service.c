/*
 * Snapshots that nobody else has to ask for.
 *
 * DESIGN. The agent starts no thread and takes no snapshot: it starts the
 * command once, "uffd-snap run --pid", which goes with the process (spawn.h).
 * That is done again after exec(): the second finds the first, and ends.
 *
 * The handler of UFFD_SNAP_SIGNAL counts, and the command looks at the count: it
 * may be another user's by now, so that no signal from here would reach it, and
 * what its PID means when it is gone nobody knows.
 */
#include "agent/service.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/agent.h"
#include "agent/raw.h"
#include "agent/ready.h"
#include "agent/spawn.h"

#define ADDR(p) ((uint64_t)(uintptr_t)(p))

/* ---- the command --------------------------------------------------------------------------- */

static bool can_run(const char *path)
{
	return raw_call(SYS_faccessat, (uint64_t)AT_FDCWD, ADDR(path), X_OK, 0, 0, 0) == 0;
}

static bool try_in(const char *dir, size_t len, const char *rest, char *buf, size_t room)
{
	struct around_text t = {buf, room, 0, false};

	if (len >= room)
		return false;
	memcpy(buf, dir, len);
	buf[len] = '\0';
	t.len = len;
	around_add(&t, rest);
	return !t.too_long && can_run(buf);
}

const char *agent_command(char *buf, size_t room)
{
	/* From the library: where it was built, PREFIX/lib, PREFIX/lib/x86_64-linux-gnu. */
	static const char *const beside[] = {"/uffd-snap", "/../bin/uffd-snap",
					     "/../../bin/uffd-snap"};
	const char *given = around_env(AGENT_ENV_COMMAND), *path = around_env("PATH");
	Dl_info info;

	if (given)
		return *given == '/' && can_run(given) ? given : NULL;
	if (dladdr(&agent_control, &info) && info.dli_fname && *info.dli_fname == '/') {
		const char *slash = strrchr(info.dli_fname, '/');

		for (size_t i = 0; i < sizeof(beside) / sizeof(*beside); i++)
			if (try_in(info.dli_fname, (size_t)(slash - info.dli_fname), beside[i], buf,
				   room))
				return buf;
	}
	for (const char *p = path ? path : "/usr/local/bin:/usr/bin:/bin"; *p;) {
		size_t len = strcspn(p, ":");

		if (*p == '/' && try_in(p, len, "/uffd-snap", buf, room))
			return buf;
		p += len + (p[len] == ':');
	}
	return NULL;
}

void agent_command_env(char **ret, size_t room)
{
	size_t n = 0;

	for (char **e = environ; e && *e && n + 1 < room; e++)
		/* Libraries that the program has in the place of others are the program's. */
		if (strncmp(*e, "LD_", 3) != 0)
			ret[n++] = *e;
	ret[n] = NULL;
}

/* ---- on a signal --------------------------------------------------------------------------- */

static void on_asked(int sig)
{
	(void)sig;
	__atomic_add_fetch(&agent_control.asked, 1, __ATOMIC_RELAXED);
}

static unsigned small_number(const char *s)
{
	unsigned n = 0;

	if (!*s)
		return 0;
	for (; *s >= '0' && *s <= '9' && n < 1000; s++)
		n = n * 10 + (unsigned)(*s - '0');
	return *s ? 0 : n;
}

/* "USR2", "SIGUSR2", "12", "RTMIN+3"; 0: none that can be had. */
static int signal_of(const char *text)
{
	static const struct {
		const char *name;
		int sig;
	} names[] = {{"USR1", SIGUSR1}, {"USR2", SIGUSR2},   {"HUP", SIGHUP}, {"ALRM", SIGALRM},
		     {"URG", SIGURG},	{"WINCH", SIGWINCH}, {"IO", SIGIO},   {"PWR", SIGPWR}};

	if (!strncmp(text, "SIG", 3))
		text += 3;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (!strcmp(text, names[i].name))
			return names[i].sig;
	if (!strncmp(text, "RTMIN+", 6)) {
		unsigned n = small_number(text + 6);

		return n && SIGRTMIN + (int)n <= SIGRTMAX ? SIGRTMIN + (int)n : 0;
	}
	unsigned n = small_number(text);

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if ((int)n == names[i].sig)
			return names[i].sig;
	return (int)n >= SIGRTMIN && (int)n <= SIGRTMAX ? (int)n : 0;
}

/* A program that has a handler of its own for it sets it later, and keeps it. */
static bool catch_signal(const char *text)
{
	struct sigaction sa = {.sa_handler = on_asked, .sa_flags = SA_RESTART | SA_ONSTACK};
	int sig = signal_of(text), saved = errno;
	bool caught = sig && sigaction(sig, &sa, NULL) == 0;

	errno = saved;
	return caught;
}

/* ---- start --------------------------------------------------------------------------------- */

static void complain(const char *why)
{
	char text[256];
	struct around_text t = {text, sizeof(text), 0, false};

	around_add(&t, "uffd-snap: cannot take snapshots of this process: ");
	around_add(&t, why);
	around_add(&t, "\n");
	raw_call(SYS_write, STDERR_FILENO, ADDR(text), t.len, 0, 0, 0);
}

/* Where it can complain as long as the program has not let go of it. */
static int64_t messages_fd(void)
{
	int64_t fd = raw_call(SYS_fcntl, STDERR_FILENO, F_DUPFD_CLOEXEC, 3, 0, 0, 0);

	return raw_failed(fd) ? raw_call(SYS_openat, (uint64_t)AT_FDCWD, ADDR("/dev/null"),
					 O_RDWR | O_CLOEXEC, 0, 0, 0)
			      : fd;
}

void agent_service_start(const struct around *self)
{
	const char *sig = around_env(AGENT_ENV_SIGNAL), *every = around_env(AGENT_ENV_EVERY);
	char which[64];
	struct around_text t = {which, sizeof(which), 0, false};
	int64_t fd;

	/* Empty ones are as good as none, as for the command. */
	if (sig && *sig && !catch_signal(sig))
		complain("UFFD_SNAP_SIGNAL is no signal that can be used");
	if (around_env(AGENT_ENV_SUPERVISED) || !((every && *every) || (sig && *sig)))
		return;
	around_add_number(&t, self->pid, 10);
	around_add(&t, ":");
	around_add_number(&t, self->start, 10);
	const char *argv[] = {"uffd-snap", "run", "--background", "--pid", which, NULL};

	fd = messages_fd();
	pid_t pid = fd < 0 ? (pid_t)fd : agent_run_command(argv, (int)fd);
	if (fd >= 0)
		raw_call(SYS_close, (uint64_t)fd, 0, 0, 0, 0, 0);
	if (pid == -ENOENT)
		complain("the command uffd-snap is not found");
	else if (pid < 0)
		complain("the command uffd-snap cannot be run");
}
