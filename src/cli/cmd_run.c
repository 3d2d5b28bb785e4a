#include "cli/cmd_run.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/cmd_restore.h"
#include "cli/msg.h"
#include "common/compat.h"
#include "common/procstat.h"
#include "common/util.h"
#include "store/registry.h"

#ifndef SYS_close_range /* Linux 5.9 */
#define SYS_close_range 436
#endif

enum {
	HEIR_MS = 1000, /* how long a daemon is waited for, when what was started has ended */
	HEIR_LOOK_MS = 20,
	QUICK_S = 10, /* who ends within this has not got far */
	MAX_QUICK = 5, /* such ends in a row: it is no use */
	MAX_OF_IMAGE = 2, /* of what one image brought back: an older one may do better */
	LAST_S = 10, /* how long an end is put off for a last snapshot */
};

/* ---- what goes on in another process --------------------------------------------------------- */

/* A program that ends may have left itself behind as a daemon: with our supervision. */
static bool find_heir(struct run_program *p)
{
	const struct timespec moment = {.tv_nsec = HEIR_LOOK_MS * 1000000};

	for (int ms = 0; ms < HEIR_MS; ms += HEIR_LOOK_MS) {
		struct registry r;
		const struct registry_entry *e;
		bool found = false;

		if (registry_load(&r) < 0)
			return false;
		if ((e = registry_heir(&r, p->pid, p->start_ticks))) {
			/* What it was brought back from stays. */
			p->child = p->pid = e->pid;
			p->start_ticks = e->start_ticks;
			found = true;
		}
		registry_free(&r);
		if (found)
			return true;
		nanosleep(&moment, NULL);
	}
	return false;
}

/* ---- beside a process that runs ---------------------------------------------------------------- */

/* Until the process ends, or a signal comes. */
static int watch(struct run_service *s, int signals)
{
	struct signalfd_siginfo si;

	for (;;) {
		cleanup_fd int pidfd = (int)syscall(SYS_pidfd_open, s->program.pid, 0);
		struct pollfd p[] = {{.fd = pidfd, .events = POLLIN},
				     {.fd = signals, .events = POLLIN}};

		if (pidfd >= 0 && !procstat_is(s->program.pid, s->program.start_ticks))
			p[0].revents = POLLIN;
		while (pidfd >= 0 && !p[0].revents) {
			if (poll(p, ARRAY_SIZE(p), run_service_tick(s)) < 0 && errno != EINTR)
				return EXIT_FAILED;
			if (!p[1].revents || read(signals, &si, sizeof(si)) != sizeof(si))
				continue;
			if (si.ssi_signo == SIGUSR1)
				s->wanted = true;
			else if (si.ssi_signo != SIGCHLD)
				return EXIT_DONE;
		}
		if (!find_heir(&s->program))
			return EXIT_DONE;
		s->looked_ns = s->beacon = 0;
	}
}

static int run_beside(const struct run_args *a, const sigset_t *set)
{
	struct run_program p = {.pid = a->pid, .start_ticks = a->start_ticks};
	struct run_service s;
	struct procstat stat;
	cleanup_fd int served = -1;

	/* What the program has open is not for us to keep open. */
	if (a->background)
		syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0);
	if (procstat_read(a->pid, &stat) < 0 ||
	    (p.start_ticks && !procstat_same_start(stat.start_ticks, p.start_ticks))) {
		msg_error("cannot look after process %d: there is none", (int)a->pid);
		return EXIT_FAILED;
	}
	p.start_ticks = stat.start_ticks;
	served = registry_serve(p.pid, p.start_ticks);
	if (served == -EBUSY && a->background)
		return EXIT_DONE;
	if (served == -EBUSY) {
		msg_error("cannot look after process %d: another 'run --pid' does", (int)a->pid);
		return EXIT_FAILED;
	}
	cleanup_fd int signals = signalfd(-1, set, SFD_CLOEXEC | SFD_NONBLOCK);
	run_service_begin(&s, a, &p);
	if (a->background)
		run_service_detach(&s);
	int code = watch(&s, signals);
	run_service_end(&s);
	return code;
}

/* ---- a command --------------------------------------------------------------------------------- */

struct supervisor {
	struct run_service service;
	struct run_program program;
	struct restore_watch *watch;
	int kept; /* a signal that wants an end, and waits for a last snapshot; or 0 */
	uint64_t kept_until_ns; /* CLOCK_MONOTONIC */
};

/* Orphans of the program come to us: nobody asks for their status. */
static void reap_orphans(const struct supervisor *v)
{
	siginfo_t si;

	for (;;) {
		si.si_pid = 0;
		if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) < 0 || !si.si_pid ||
		    si.si_pid == v->program.child || si.si_pid == v->service.at_work)
			return;
		waitpid(si.si_pid, NULL, WNOHANG);
	}
}

/* An image of a program that is about to end would end again as soon as it is back. */
static void pass_kept(struct supervisor *v)
{
	int sig = v->kept;

	v->kept = 0;
	run_service_rest(&v->service);
	restore_watch_signal(v->watch, sig);
}

/* What comes back is the newest image: without one of now, a stop and a start of the unit would lose all
 * since the last. Who is in a hurry says so twice. */
static bool keep(void *arg, int sig)
{
	struct supervisor *v = arg;
	const struct run_args *a = v->service.args;

	if (!a->restore_or_start || !a->every_s || (sig != SIGTERM && sig != SIGINT))
		return false;
	if (v->kept) {
		pass_kept(v);
		return false;
	}
	if (now_ns() < v->service.rests_ns)
		return false;
	v->kept = sig;
	v->kept_until_ns = now_ns() + (uint64_t)LAST_S * 1000000000;
	run_service_last(&v->service);
	return true;
}

static int tick(void *arg)
{
	struct supervisor *v = arg;
	int wait_ms = run_service_tick(&v->service);
	uint64_t now = now_ns();

	reap_orphans(v);
	if (!v->kept)
		return wait_ms;
	if (now >= v->kept_until_ns)
		msg_error("cannot take a last snapshot of '%s' within %d s", v->service.name,
			  LAST_S);
	if (now >= v->kept_until_ns || run_service_is_idle(&v->service)) {
		pass_kept(v);
		return wait_ms;
	}
	int left_ms = (int)((v->kept_until_ns - now) / 1000000) + 1;

	return wait_ms < 0 ? left_ms : MIN(wait_ms, left_ms);
}

/* The restore that stood in for a process was killed alone: the kernel has given that to us. */
static bool take_in(struct run_program *p)
{
	siginfo_t si;

	if (p->child == p->pid || !procstat_is(p->pid, p->start_ticks) ||
	    waitid(P_PID, (id_t)p->pid, &si, WEXITED | WNOHANG | WNOWAIT) < 0)
		return false;
	p->child = p->pid;
	return true;
}

static bool goes_on(struct run_program *p, int status)
{
	if (take_in(p))
		return true;
	return WIFEXITED(status) && !WEXITSTATUS(status) && waitpid(-1, NULL, WNOHANG) >= 0 &&
	       find_heir(p);
}

/* Until it has ended, and whatever it has become. False: it cannot be told how it ended. */
static bool stand_in(const struct run_args *a, struct run_program *p, bool *ret_told,
		     int *ret_status)
{
	volatile sig_atomic_t early = 0;
	struct supervisor v = {.program = *p};
	struct restore_front f = {
		.tick = tick, .tick_arg = &v, .keep = keep, .keeps_files = a->restart};
	bool known, told_after = false;

	front_begin(&f);
	do {
		struct restore_watch w = {.child = v.program.child,
					  .pidfd = (int)syscall(SYS_pidfd_open, v.program.child, 0),
					  .events = -1};

		v.watch = &w;
		run_service_begin(&v.service, a, &v.program);
		known = front_wait(&f, &w, v.program.child, &early, ret_status);
		/* It is meant for what goes on. */
		if (run_service_end(&v.service)) {
			told_after = true;
			early = SIGTERM;
		}
	} while (known && goes_on(&v.program, *ret_status));
	/* SIGHUP has servers read their files again: it asks for the end of those only that it ends. */
	*ret_told = f.told_to_end || told_after ||
		    (known && WIFSIGNALED(*ret_status) && WTERMSIG(*ret_status) == SIGHUP);
	if (f.tty >= 0)
		close(f.tty);
	return known;
}

/* -1: it runs. *ret_told: and has been told to end while it was brought back. */
static int bring_up(const struct run_args *a, struct run_program *p, bool *ret_told)
{
	bool found = false;
	int sig = 0, code = 0;

	p->distrusts = false;
	*p->image = '\0';
	if (a->restore_or_start)
		code = run_program_restore(a, p, &found, &sig);
	*ret_told = sig;
	/* A restore that was complete by then passes it on. */
	if (sig && !found) {
		sigset_t set;

		signal(sig, SIG_DFL);
		raise(sig);
		run_signals(&set);
		sigprocmask(SIG_UNBLOCK, &set, NULL);
	}
	if (code == 0 && !found) {
		bool distrusts = p->distrusts;

		if (a->restore_or_start && !a->quiet)
			msg_info("there is no image of '%s'%s: starting it%s", a->name,
				 distrusts ? " that is whole" : "",
				 a->every_s || a->on_signal
					 ? ""
					 : "; without --every, others have to take one");

		code = run_program_start(a, p);
		p->distrusts = distrusts;
	}
	return code ? code : -1;
}

/* A signal that wants an end ends the wait. */
static bool pause_before_restart(uint64_t lived_s)
{
	const struct timespec t = {.tv_sec = lived_s ? 0 : 1};
	sigset_t set;

	run_signals(&set);
	sigdelset(&set, SIGCHLD);
	sigdelset(&set, SIGUSR1);
	return sigtimedwait(&set, NULL, &t) < 0;
}

/* In a row: all, and those of what one image brought back. */
struct quick_ends {
	unsigned nr, nr_of_image;
	uint64_t t0_ms; /* of that one */
};

/* An image may be whole and of a program that was about to fail. */
static void count_end(struct quick_ends *e, struct run_program *p, const char *name,
		      uint64_t lived_s)
{
	if (lived_s >= QUICK_S) {
		*e = (struct quick_ends){0};
		p->avoid_ms = 0;
		return;
	}
	e->nr++;
	if (!*p->image)
		return;
	e->nr_of_image = e->t0_ms != p->image_t0_ms ? 1 : e->nr_of_image + 1;
	e->t0_ms = p->image_t0_ms;
	if (e->nr_of_image < MAX_OF_IMAGE)
		return;
	p->avoid_ms = p->image_t0_ms;
	msg_error("'%s@%s' ended %u times within %d s: going back to an older image, if there is "
		  "one",
		  name, p->image, e->nr_of_image, QUICK_S);
}

static int run_until_end(const struct run_args *a)
{
	struct run_program p = {0};
	struct quick_ends ends = {0};
	int status;
	bool told, told_early;

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	/* The agent need not ask for snapshots, nor whoever restores it. */
	setenv("UFFD_SNAP_SUPERVISED", "1", 1);
	for (;;) {
		int code = bring_up(a, &p, &told_early);
		uint64_t start = now_ns();

		if (code >= 0)
			return code;
		if (!stand_in(a, &p, &told, &status))
			return EXIT_FAILED;
		if (!a->restart || told || told_early ||
		    (WIFEXITED(status) && !WEXITSTATUS(status)))
			return front_end_as(status);
		uint64_t lived_s = (now_ns() - start) / 1000000000;

		count_end(&ends, &p, a->name, lived_s);
		if (WIFSIGNALED(status))
			msg_error("'%s' died of signal %d", a->name, WTERMSIG(status));
		else
			msg_error("'%s' ended with exit status %d", a->name, WEXITSTATUS(status));
		if (ends.nr == MAX_QUICK)
			msg_error(
				"cannot keep '%s' running: it ended %d times in a row within %d s",
				a->name, MAX_QUICK, QUICK_S);
		if (ends.nr == MAX_QUICK || !pause_before_restart(lived_s))
			return front_end_as(status);
	}
}

/* Two of a name would each go back to what the other has done. Where it cannot be told whether there is
 * one, there is none. */
static int run_command(const struct run_args *a)
{
	cleanup_free char *store = NULL;
	struct usnap_err err = {0};
	cleanup_fd int fd = -1;

	if (!a->restore_or_start && !a->every_s && !a->on_signal)
		return run_until_end(a);
	if (a->store)
		store = strdup(a->store);
	else if (store_default_path(&store, &err) < 0)
		return msg_failure(&err);
	if (store)
		fd = registry_begin_run(store, a->name);
	if (fd == -EBUSY) {
		usnap_fail(&err, fd, "cannot run '%s': another 'run' has this name in store '%s'",
			   a->name, store);
		usnap_hint(&err, "end that, or choose another one with --name");
		return msg_failure(&err);
	}
	return run_until_end(a);
}

/* Images of a name can be taken by cron as well, but what is said here is of those that we take. */
static void warn_of_nothing(const struct run_args *a)
{
	const struct run_passed *of = a->prune.nr ? &a->prune : &a->snapshot;

	if (a->every_s || a->on_signal || !of->nr)
		return;
	msg_warning("%.*s has no effect: without --every no image is taken",
		    (int)strcspn(of->arg[0], "="), of->arg[0]);
}

static int run(int argc, char **argv)
{
	struct run_args a;
	sigset_t set;
	int code = run_args_parse(argc, argv, &a);

	if (code >= 0)
		return code;
	if (a.quiet)
		msg_set_level(MSG_QUIET);
	warn_of_nothing(&a);
	/* Whoever started us may ignore it: then nobody could wait for anything. */
	signal(SIGCHLD, SIG_DFL);
	run_signals(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	code = a.pid ? run_beside(&a, &set) : run_command(&a);
	run_args_free(&a);
	return code;
}

const struct cli_command cmd_run = {
	.name = "run",
	.args = "[OPTION]... [--] COMMAND [ARGUMENT]...",
	.summary = "run a program, take snapshots of it, bring it back",
	.help = run_args_help,
	.run = run,
	.takes_command = true,
};
