#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/snapshot_run.h"
#include "cli/unattended.h"
#include "common/util.h"

extern char **environ;

/* The environment of the command: ours and the facts. */
struct facts {
	char **env;
	size_t nr, room;
	bool failed;
};

static void add_owned(struct facts *f, char *entry)
{
	if (f->nr + 1 >= f->room) {
		char **more = realloc(f->env, (f->room = f->room * 2 + 64) * sizeof(*more));

		if (!more) {
			f->failed = true;
			free(entry);
			return;
		}
		f->env = more;
	}
	f->failed |= !entry;
	f->env[f->nr++] = entry;
	f->env[f->nr] = NULL;
}

__attribute__((format(printf, 2, 3))) static void add(struct facts *f, const char *fmt, ...)
{
	char *entry;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&entry, fmt, ap) < 0)
		entry = NULL;
	va_end(ap);
	add_owned(f, entry);
}

static void collect(struct facts *f, const struct snapshot_run *run)
{
	const struct capture_stats *s = &run->stats;
	cleanup_free char *store = *run->store ? realpath(run->store, NULL) : NULL;

	for (char **e = environ; *e; e++)
		if (strncmp(*e, "UFFD_SNAP_", 10) != 0 ||
		    (!store && !strncmp(*e, "UFFD_SNAP_STORE=", 16)))
			add_owned(f, strdup(*e));
	/* That of --store, for what the command calls. */
	if (store)
		add(f, "UFFD_SNAP_STORE=%s", store);
	add(f, "UFFD_SNAP_RESULT=%s", run->error ? "failure" : "success");
	add(f, "UFFD_SNAP_NAME=%s", run->name);
	add(f, "UFFD_SNAP_PID=%d", (int)run->pid);
	if (run->error) {
		add(f, "UFFD_SNAP_ERROR=%s", run->error);
		return;
	}
	add(f, "UFFD_SNAP_FILE=%s", run->path);
	add(f, "UFFD_SNAP_FILE_BYTES=%" PRIu64, run->written.file_bytes);
	add(f, "UFFD_SNAP_MEMORY_BYTES=%" PRIu64, s->bytes_populated);
	add(f, "UFFD_SNAP_T0_NS=%" PRIu64, s->t0_realtime_ns);
	add(f, "UFFD_SNAP_PAUSE_NS=%" PRIu64, s->pause_ns);
	add(f, "UFFD_SNAP_ELAPSED_NS=%" PRIu64, run->elapsed_ns);
	add(f, "UFFD_SNAP_TORN=%u", s->torn);
	add(f, "UFFD_SNAP_HELD=%d", s->held);
}

/* With the signals as a shell expects them, whatever we do with ours. */
static int start(const char *command, char **env, pid_t *ret)
{
	char *argv[] = {"sh", "-c", (char *)command, NULL};
	posix_spawnattr_t attr;
	sigset_t all, none;

	sigfillset(&all);
	sigemptyset(&none);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setsigdefault(&attr, &all);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setpgroup(&attr, 0);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK |
						POSIX_SPAWN_SETPGROUP);
	/* Apart from our terminal: one that reads it would be stopped. */
	posix_spawn_file_actions_t files;
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);

	int r = -posix_spawn(ret, "/bin/sh", &files, &attr, argv, env);

	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attr);
	return r;
}

/* Waits for its end, passing on what signals we get; heard: how many were seen to. After limit_s (0: none)
 * it is asked to end, and then made to. Returns whether it ended by itself. */
static bool wait_for(pid_t pid, uint64_t limit_s, unsigned heard,
		     const volatile sig_atomic_t *interrupted, int *ret_status)
{
	const uint64_t begin = now_ns();
	struct pollfd end = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
	bool in_time = true;
	uint64_t asked = 0;

	for (;;) {
		pid_t p = waitpid(pid, ret_status, WNOHANG);

		if (p == pid || (p < 0 && errno != EINTR))
			break;
		if (limit_s && !asked && (now_ns() - begin) / 1000000000 >= limit_s) {
			in_time = false;
			asked = now_ns();
			kill(-pid, SIGTERM);
		} else if (asked && now_ns() - asked > UINT64_C(5000000000)) {
			kill(-pid, SIGKILL);
		}
		/* The limit is no event; a look now and then costs nothing. */
		poll(&end, 1, 100);
		const unsigned ends = unattended_ends();
		if (ends != heard)
			kill(-pid, *interrupted);
		heard = ends;
	}
	if (end.fd >= 0)
		close(end.fd);
	return in_time;
}

int snapshot_hook(const struct snapshot_args *a, const struct snapshot_run *run,
		  const volatile sig_atomic_t *interrupted, struct usnap_err *err)
{
	const char *command = run->error ? a->on_failure : a->on_success;
	struct facts f = {0};
	int status = 0, r;
	pid_t pid;

	if (!command)
		return 0;
	collect(&f, run);
	r = f.failed ? -ENOMEM : start(command, f.env, &pid);
	for (size_t i = 0; i < f.nr; i++)
		free(f.env[i]);
	free(f.env);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot run '%s'", command);
	/* What made the snapshot fail is not for the command that tells of it. */
	const unsigned heard = run->error ? unattended_ends() : 0;
	if (!wait_for(pid, a->timeout_s, heard, interrupted, &status))
		return usnap_fail(err, -ETIMEDOUT,
				  "cannot run '%s': it did not end within %" PRIu64 " s", command,
				  a->timeout_s);
	if (WIFSIGNALED(status))
		return usnap_fail(err, -EIO, "cannot run '%s': it died of signal %d", command,
				  WTERMSIG(status));
	if (WEXITSTATUS(status))
		return usnap_fail(err, -EIO, "cannot run '%s': it ended with exit status %d",
				  command, WEXITSTATUS(status));
	return 0;
}
