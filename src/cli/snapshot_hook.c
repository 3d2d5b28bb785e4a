#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "cli/snapshot_run.h"
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

	for (char **e = environ; *e; e++)
		if (strncmp(*e, "UFFD_SNAP_", 10) != 0 || !strncmp(*e, "UFFD_SNAP_STORE=", 16))
			add_owned(f, strdup(*e));
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
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
	int r = -posix_spawn(ret, "/bin/sh", NULL, &attr, argv, env);

	posix_spawnattr_destroy(&attr);
	return r;
}

int snapshot_hook(const struct snapshot_args *a, const struct snapshot_run *run,
		  struct usnap_err *err)
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
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFSIGNALED(status))
		return usnap_fail(err, -EIO, "cannot run '%s': it died of signal %d", command,
				  WTERMSIG(status));
	if (WEXITSTATUS(status))
		return usnap_fail(err, -EIO, "cannot run '%s': it ended with exit status %d",
				  command, WEXITSTATUS(status));
	return 0;
}
