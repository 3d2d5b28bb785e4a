/*
 * DESIGN. PTRACE_SEIZE does not stop; PTRACE_INTERRUPT does, and a thread
 * that would have been woken by a signal at that moment stops with the
 * signal in hand instead (signal-delivery-stop): it is kept here and given
 * back at the release. Everything else a seized thread can report (group
 * stops, its death) is told apart in take_stop().
 *
 * Waiting must end even when a thread cannot stop: a parent in vfork() sits
 * in a wait that only a fatal signal breaks. A POSIX timer aimed at this
 * thread interrupts waitpid() from the deadline on, once a millisecond.
 */
#include "process/tracee.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"

#ifndef ERESTART_RESTARTBLOCK /* include/linux/errno.h of the kernel */
#define ERESTART_RESTARTBLOCK 516
#endif

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

/* How long a thread that was asked to stop and did not may take to be let go. */
#define STRAGGLER_NS 5000000000ull

static void on_deadline(int sig)
{
	(void)sig; /* only interrupts waitpid() */
}

static int deadline_arm(timer_t *ret, uint64_t deadline_ns)
{
	struct sigaction sa = {.sa_handler = on_deadline};
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMAX - 1};

	ev.sigev_notify_thread_id = gettid();
	if (sigaction(SIGRTMAX - 1, &sa, NULL) < 0 || timer_create(CLOCK_MONOTONIC, &ev, ret) < 0)
		return -errno;

	struct itimerspec its = {
		.it_value = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
			     .tv_nsec = (long)(deadline_ns % 1000000000u)},
		.it_interval = {.tv_nsec = 1000000},
	};
	if (timer_settime(*ret, TIMER_ABSTIME, &its, NULL) < 0) {
		int r = -errno;

		timer_delete(*ret);
		return r;
	}
	return 0;
}

static struct tracee *tracee_find(struct tracees *ts, pid_t tid)
{
	for (size_t i = 0; i < ts->n; i++)
		if (ts->t[i].tid == tid)
			return &ts->t[i];
	return NULL;
}

static void tracee_remove(struct tracees *ts, struct tracee *t)
{
	size_t i = (size_t)(t - ts->t);

	memmove(t, t + 1, (ts->n - i - 1) * sizeof(*t));
	ts->n--;
}

/* State letter of a thread ('R', 'S', 'D', 'Z' ...), 0 when it is gone. */
static char task_state(const struct target *target, pid_t tid)
{
	char path[64];
	cleanup_free char *text = NULL;

	snprintf(path, sizeof(path), "task/%d/stat", tid);
	if (io_read_file_at(target->procfd, path, 4096, &text, NULL) < 0)
		return 0;
	const char *paren = strrchr(text, ')');
	return paren && paren[1] == ' ' ? paren[2] : 0;
}

int tracees_seize_one(struct tracees *ts, const struct target *target, pid_t tid,
		      struct usnap_err *err)
{
	if (ts->n == ts->room) {
		size_t room = ts->room ? ts->room * 2 : 16;
		struct tracee *bigger = realloc(ts->t, room * sizeof(*bigger));

		if (!bigger)
			return usnap_fail_errno(err, -ENOMEM, "cannot trace thread %d", tid);
		ts->t = bigger;
		ts->room = room;
	}
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL) < 0) {
		int r = -errno;
		char state = task_state(target, tid);

		/* Gone or going. A leader that has called pthread_exit() stays as a zombie. */
		if (r == -ESRCH || state == 0 || state == 'Z' || state == 'X')
			return -ESRCH;
		usnap_fail_errno(err, r, "cannot trace thread %d of process %d", tid, target->pid);
		usnap_hint(err,
			   "it may be traced by another program, or belong to another user: "
			   "'uffd-snap check %d' tells",
			   target->pid);
		return r;
	}
	ts->t[ts->n++] = (struct tracee){.tid = tid};
	return 0;
}

/* Workers of io_uring appear as threads but cannot be traced; they write on
 * behalf of a thread that can. */
static bool is_io_worker(const struct target *target, pid_t tid)
{
	char path[64];
	cleanup_free char *comm = NULL;

	snprintf(path, sizeof(path), "task/%d/comm", tid);
	return io_read_file_at(target->procfd, path, 64, &comm, NULL) == 0 &&
	       strncmp(comm, "iou-", 4) == 0;
}

/* Seizes what is not seized yet. Returns how many that were. */
static int seize_new(struct tracees *ts, const struct target *target, struct usnap_err *err)
{
	cleanup_fd int fd = openat(target->procfd, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return usnap_fail(err, -ESRCH, "cannot snapshot process %d: it has ended",
				  target->pid);
	cleanup_dir DIR *d = fdopendir(fd);
	if (!d)
		return usnap_fail_errno(err, -errno, "cannot list the threads of process %d",
					target->pid);
	fd = -1;

	int nr_new = 0;
	size_t known = 0; /* the kernel lists threads in the order we keep them */
	const struct dirent *e;
	while ((e = readdir(d))) {
		pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);

		if (tid <= 0)
			continue;
		if (known < ts->n && ts->t[known].tid == tid) {
			known++;
			continue;
		}
		if (tracee_find(ts, tid))
			continue;
		struct usnap_err why = {0};
		int r = tracees_seize_one(ts, target, tid, &why);
		if (r == -ESRCH || (r == -EPERM && is_io_worker(target, tid)))
			continue;
		if (r < 0) {
			if (err && !err->code)
				*err = why;
			return r;
		}
		nr_new++;
	}
	return nr_new;
}

int tracees_seize(struct tracees *ts, const struct target *target, struct usnap_err *err)
{
	int r;

	do
		r = seize_new(ts, target, err);
	while (r > 0);
	if (r == 0 && ts->n == 0)
		r = usnap_fail(err, -ESRCH, "cannot snapshot process %d: it has ended",
			       target->pid);
	return r;
}

/* What a wait status says of a thread. True when the thread now stands still
 * or is gone (then *ret_gone). */
static void take_stop(struct tracee *t, int status, bool *ret_gone)
{
	*ret_gone = WIFEXITED(status) || WIFSIGNALED(status);
	if (*ret_gone || !WIFSTOPPED(status))
		return;
	t->stopped = true;
	if (status >> 16 == PTRACE_EVENT_STOP) {
		if (WSTOPSIG(status) != SIGTRAP)
			t->group_stop = WSTOPSIG(status);
		return;
	}
	if (status >> 16)
		return;
	t->sig = WSTOPSIG(status);
	t->in_signal_stop = true;
	if (ptrace(PTRACE_GETSIGINFO, t->tid, NULL, &t->siginfo) < 0)
		t->siginfo = (siginfo_t){.si_signo = t->sig, .si_code = SI_USER};
}

/* Waits until every thread that was interrupted stands still or is gone. */
static int wait_all(struct tracees *ts, uint64_t deadline_ns)
{
	size_t running = 0;

	for (size_t i = 0; i < ts->n; i++)
		running += !ts->t[i].stopped;
	while (running) {
		int status;
		pid_t tid = waitpid(-1, &status, __WALL | __WNOTHREAD);

		if (tid < 0) {
			if (errno == EINTR) {
				if (now_ns() >= deadline_ns)
					return -EAGAIN;
				continue;
			}
			return -ESRCH;
		}
		struct tracee *t = tracee_find(ts, tid);
		if (!t)
			continue;
		bool was_running = !t->stopped, gone;
		take_stop(t, status, &gone);
		if (gone)
			tracee_remove(ts, t);
		if (was_running && (gone || t->stopped))
			running--;
	}
	return 0;
}

/*
 * A thread that was stopped twice in a row can have been on its way from the
 * first stop into restart_syscall(2) when the second one came: the kernel has
 * set it on that call already (arch_do_signal_or_restart()), which is the one
 * that goes on with a timed wait. It is shown, and left, as before that step,
 * which the kernel makes again: as a wait that was interrupted, so that nobody
 * takes the registers for those of a thread that can be led astray.
 */
static int read_registers(struct tracee *t)
{
	static const unsigned char syscall_insn[] = {0x0f, 0x05};

	if (ptrace(PTRACE_GETREGS, t->tid, NULL, &t->regs) < 0)
		return -ESRCH;
	if ((int64_t)t->regs.orig_rax < 0 || t->regs.rax != SYS_restart_syscall)
		return 0;
	errno = 0;
	long word = ptrace(PTRACE_PEEKTEXT, t->tid, (void *)(uintptr_t)t->regs.rip, NULL);
	if (errno || memcmp(&word, syscall_insn, sizeof(syscall_insn)) != 0)
		return 0;
	t->regs.rax = (uint64_t)-ERESTART_RESTARTBLOCK;
	t->regs.rip += sizeof(syscall_insn);
	return ptrace(PTRACE_SETREGS, t->tid, NULL, &t->regs) < 0 ? -ESRCH : 0;
}

int tracees_stop(struct tracees *ts, const struct target *target, bool all, uint64_t deadline_ns,
		 struct usnap_err *err)
{
	timer_t timer;
	int r = deadline_arm(&timer, deadline_ns);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot set a timer");
	size_t asked = 0;
	do {
		for (; asked < ts->n; asked++)
			ptrace(PTRACE_INTERRUPT, ts->t[asked].tid, NULL, NULL);
		r = wait_all(ts, deadline_ns);
		if (r < 0)
			break;
		asked = ts->n;
		if (all)
			r = seize_new(ts, target, err);
	} while (r > 0);
	timer_delete(timer);

	if (r == -EAGAIN) {
		for (size_t i = 0; i < ts->n; i++)
			if (!ts->t[i].stopped) {
				ts->straggler = task_state(target, ts->t[i].tid);
				return usnap_fail(
					err, r,
					"cannot stop thread %d of process %d: it is in state %c "
					"and does not answer",
					ts->t[i].tid, target->pid,
					ts->straggler ? ts->straggler : '?');
			}
	}
	if (r == 0 && ts->n == 0)
		r = -ESRCH;
	if (r == -ESRCH)
		usnap_fail(err, r, "cannot snapshot process %d: it has ended", target->pid);
	if (r < 0)
		return r;

	for (size_t i = 0; i < ts->n; i++)
		if (read_registers(&ts->t[i]) < 0)
			return usnap_fail(err, -ESRCH,
					  "cannot snapshot process %d: its thread %d was killed",
					  target->pid, ts->t[i].tid);
	return 0;
}

static void detach(struct tracee *t, const struct target *target)
{
	if (t->sig && t->in_signal_stop) {
		ptrace(PTRACE_SETSIGINFO, t->tid, NULL, &t->siginfo);
		ptrace(PTRACE_DETACH, t->tid, NULL, (void *)(long)t->sig);
	} else {
		ptrace(PTRACE_DETACH, t->tid, NULL, NULL);
		/* Taken on the way to a stop of another kind, where the kernel takes none back. */
		if (t->sig)
			t->more |= 1ull << (t->sig - 1);
	}
	for (int sig = 1; t->more; sig++, t->more >>= 1)
		if (t->more & 1)
			syscall(SYS_tgkill, target->pid, t->tid, sig);
}

size_t tracees_release(struct tracees *ts, const struct target *target)
{
	size_t running = 0;
	timer_t timer;
	uint64_t deadline_ns = now_ns() + STRAGGLER_NS;

	for (size_t i = 0; i < ts->n; i++) {
		if (ts->t[i].stopped)
			detach(&ts->t[i], target);
		else
			running++;
	}
	/* A thread can be detached only while it stands still: interrupt, wait, let go. */
	if (running && deadline_arm(&timer, deadline_ns) == 0) {
		for (size_t i = 0; i < ts->n; i++)
			if (!ts->t[i].stopped)
				ptrace(PTRACE_INTERRUPT, ts->t[i].tid, NULL, NULL);
		while (running) {
			int status;
			pid_t tid = waitpid(-1, &status, __WALL | __WNOTHREAD);

			if (tid < 0) {
				if (errno == EINTR && now_ns() < deadline_ns)
					continue;
				break;
			}
			struct tracee *t = tracee_find(ts, tid);
			if (!t || t->stopped)
				continue;
			bool gone;
			take_stop(t, status, &gone);
			if (!gone && t->stopped)
				detach(t, target);
			if (gone || t->stopped) {
				t->stopped = true;
				running--;
			}
		}
		timer_delete(timer);
	}
	free(ts->t);
	*ts = (struct tracees){0};
	return running;
}
