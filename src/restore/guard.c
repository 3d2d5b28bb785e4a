#include "restore/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/procstat.h"
#include "common/util.h"
#include "restore/place.h"
#include "restore/rfiles.h"

enum {
	END_TRIES = 1000, /* ID_WAIT_US each, until one that was killed is gone */
	LOOKS = 3 /* in a row, that show one that lives */
};

enum {
	UNDONE, /* to be undone */
	GOES, /* the process is being let go: to be undone if it ends with the restorer */
	DONE,
};

struct guard_shared {
	_Atomic int state;
	pid_t pid; /* GOES: of the process, and when it was started */
	uint64_t start_ticks;
};

struct guard {
	struct guard_shared *shared;
	int fd;
	pid_t pid;
};

static void let_go(struct guard *g)
{
	munmap(g->shared, sizeof(*g->shared));
	close(g->fd);
}

/* The restorer is gone, and with it what it still held (PTRACE_O_EXITKILL). */
static bool has_ended(const struct guard_shared *shared, int restorer)
{
	struct pollfd end = {.fd = restorer, .events = POLLIN};
	struct procstat stat;

	/* Its memory goes first, and the process is killed after that. */
	while (poll(&end, 1, restorer < 0 ? 1000 : -1) < 0)
		continue;
	for (unsigned tries = 0, lives = 0; tries < END_TRIES; tries++) {
		int r = procstat_read(shared->pid, &stat);

		if (r == -ESRCH ||
		    (r == 0 && !procstat_same_start(stat.start_ticks, shared->start_ticks)))
			return true;
		/* What cannot be told of is not taken from a process that may live. */
		if (r < 0)
			return false;
		/* One that is killed does not show it for an instant, between the signal and its end. */
		lives = stat.ends ? 0 : lives + 1;
		if (lives >= LOOKS)
			return false;
		/* Whoever waits for it may take long. */
		if (stat.state == 'Z')
			return true;
		usleep(ID_WAIT_US);
	}
	return true;
}

static _Noreturn void be_guard(struct restore *r, struct guard *g, pid_t parent)
{
	char path[64];
	sigset_t all;

	/* Signals to the restorer's group are not for it. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	setsid();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", g->fd);
	int fd = open(path, O_RDWR | O_CLOEXEC), restorer = (int)syscall(SYS_pidfd_open, parent, 0);
	struct guard_shared *shared =
		fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(*shared), PROT_READ, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		_exit(1);
	let_go(g);
	/* Readers of the restorer's pipes do not wait for this process. */
	fd = dup2(fd, 0);
	restorer = restorer < 0 ? -1 : dup2(restorer, 1);
	syscall(SYS_close_range, restorer < 0 ? 1 : 2, ~0u, 0);
	while (flock(fd, LOCK_EX) < 0)
		if (errno != EINTR)
			_exit(1);
	int state = atomic_load(&shared->state);
	if (state == UNDONE || (state == GOES && has_ended(shared, restorer)))
		rfiles_undo(r);
	_exit(0);
}

int guard_begin(struct restore *r, struct usnap_err *err)
{
	if (!rfiles_makes_files(r))
		return 0;

	struct guard *g = calloc(1, sizeof(*g));
	int code = -ENOMEM;
	if (!g)
		return usnap_fail_errno(err, code, "cannot restore '%s'", r->o->image);
	g->fd = memfd_create("uffd-snap guard", MFD_CLOEXEC);
	if (g->fd < 0 || ftruncate(g->fd, sizeof(*g->shared)) < 0 || flock(g->fd, LOCK_EX) < 0)
		goto failed;
	g->shared = mmap(NULL, sizeof(*g->shared), PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
	if (g->shared == MAP_FAILED)
		goto failed;
	const pid_t self = getpid();
	g->pid = fork();
	if (g->pid == 0)
		be_guard(r, g, self);
	if (g->pid > 0) {
		r->guard = g;
		return 0;
	}
	code = -errno;
	let_go(g);
	free(g);
	return usnap_fail_errno(err, code, "cannot restore '%s': a process cannot be made",
				r->o->image);
failed:
	code = -errno;
	if (g->fd >= 0)
		close(g->fd);
	free(g);
	return usnap_fail_errno(err, code, "cannot restore '%s'", r->o->image);
}

void guard_goes(struct restore *r)
{
	struct guard_shared *shared = r->guard ? r->guard->shared : NULL;
	struct procstat stat;

	if (!shared)
		return;
	/* Then from here on nothing is undone. */
	if (procstat_read(r->builder, &stat) < 0) {
		atomic_store(&shared->state, DONE);
		return;
	}
	shared->pid = r->builder;
	shared->start_ticks = stat.start_ticks;
	atomic_store(&shared->state, GOES);
}

void guard_done(struct restore *r)
{
	if (r->guard)
		atomic_store(&r->guard->shared->state, DONE);
}

void guard_not_done(struct restore *r)
{
	if (r->guard)
		atomic_store(&r->guard->shared->state, UNDONE);
}

void guard_end(struct restore *r)
{
	struct guard *g = r->guard;

	if (!g)
		return;
	/* The lock would end with the last that refers to the file; it is not to depend on that. */
	flock(g->fd, LOCK_UN);
	let_go(g);
	/* Within a namespace it is not ours, and its number may be that of another. */
	while (!(r->place && place_is_inner(r)) && waitpid(g->pid, NULL, 0) < 0 && errno == EINTR)
		;
	free(g);
}
