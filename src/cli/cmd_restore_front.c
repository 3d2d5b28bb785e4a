#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/cmd_restore.h"
#include "cli/msg.h"
#include "common/util.h"

/* ---- the terminal -------------------------------------------------------------------------- */

void front_begin(struct restore_front *f)
{
	f->lent_to = 0;
	f->tty = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
	f->has_modes = f->tty >= 0 && tcgetattr(f->tty, &f->modes) == 0;
	f->alone = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
}

static bool terminal_is_ours(const struct restore_front *f)
{
	return f->tty >= 0 && tcgetpgrp(f->tty) == getpgrp();
}

/* Without the SIGTTOU that a process in the background gets for it. */
static int set_foreground(int tty, pid_t group)
{
	sigset_t ttou, old;

	sigemptyset(&ttou);
	sigaddset(&ttou, SIGTTOU);
	sigprocmask(SIG_BLOCK, &ttou, &old);
	int r = tcsetpgrp(tty, group) < 0 ? -errno : 0;
	sigprocmask(SIG_SETMASK, &old, NULL);
	return r;
}

void front_lend_terminal(struct restore_front *f, pid_t pid)
{
	pid_t group = getpgid(pid);

	/* In another session it has no use for our terminal: the kernel says EPERM. */
	if (group > 0 && group != getpgrp() && terminal_is_ours(f) &&
	    set_foreground(f->tty, group) == 0)
		f->lent_to = group;
}

void front_take_terminal(struct restore_front *f)
{
	/* Unless the shell has taken it back already. */
	if (f->lent_to && tcgetpgrp(f->tty) == f->lent_to)
		set_foreground(f->tty, getpgrp());
	f->lent_to = 0;
}

void front_reset_terminal(struct restore_front *f)
{
	struct termios now;

	front_take_terminal(f);
	/* In the background it would be that of somebody else. */
	if (!f->has_modes || f->detach || !terminal_is_ours(f) || tcgetattr(f->tty, &now) < 0)
		return;
	if (now.c_iflag != f->modes.c_iflag || now.c_oflag != f->modes.c_oflag ||
	    now.c_cflag != f->modes.c_cflag || now.c_lflag != f->modes.c_lflag ||
	    memcmp(now.c_cc, f->modes.c_cc, sizeof(now.c_cc)) != 0)
		tcsetattr(f->tty, TCSADRAIN, &f->modes);
}

/* ---- signals ------------------------------------------------------------------------------- */

/* Those that somebody sends us and means the process; SIGCHLD is for ourselves. */
static void passed_signals(sigset_t *ret)
{
	/* Ours: what the kernel sends for mistakes of our own, and for using the terminal. */
	static const int own[] = {SIGKILL, SIGSTOP, SIGSEGV, SIGBUS,  SIGILL, SIGFPE,
				  SIGTRAP, SIGSYS,  SIGTTIN, SIGTTOU, SIGPIPE};
	struct sigaction sa;

	sigfillset(ret);
	for (size_t i = 0; i < ARRAY_SIZE(own); i++)
		sigdelset(ret, own[i]);
	for (int sig = 1; sig < NSIG; sig++)
		/* As started by nohup, or in the background by a shell without job control. */
		if (sig != SIGCHLD && sigaction(sig, NULL, &sa) == 0 && sa.sa_handler == SIG_IGN)
			sigdelset(ret, sig);
}

/* As the process did: shells show it, and offer to let it go on. */
static void stop_too(struct restore_front *f, int sig)
{
	bool interactive = f->lent_to != 0;
	sigset_t set, old;

	front_take_terminal(f);
	if (!interactive || sig == SIGSTOP) {
		kill(getpid(), SIGSTOP);
		return;
	}
	/* The terminal would have stopped all of the pipeline that we are part of. */
	struct sigaction sa = {.sa_handler = SIG_DFL};
	sigaction(sig, &sa, NULL);
	sigemptyset(&set);
	sigaddset(&set, sig);
	kill(0, sig);
	sigprocmask(SIG_UNBLOCK, &set, &old);
	sigprocmask(SIG_SETMASK, &old, NULL);
}

static void on_stopped(struct restore_front *f, const struct restore_watch *w, pid_t pid, int sig)
{
	if (f->stopped && sig == SIGSTOP) {
		f->stopped = false; /* as it was asked to be */
		return;
	}
	if ((sig == SIGTTIN || sig == SIGTTOU) && terminal_is_ours(f)) {
		front_lend_terminal(f, pid);
		if (f->lent_to) {
			restore_watch_signal(w, SIGCONT);
			return;
		}
	}
	stop_too(f, sig);
}

static void pass_signal(struct restore_front *f, const struct restore_watch *w, pid_t pid,
			const struct signalfd_siginfo *si)
{
	int sig = (int)si->ssi_signo;

	if (sig == SIGCHLD)
		return;
	f->told_to_end |= sig == SIGTERM || sig == SIGINT || sig == SIGQUIT;
	/* What the terminal sends, it sends to all of a process group. */
	if (si->ssi_code == SI_KERNEL && getpgid(pid) == getpgrp())
		return;
	if (sig == SIGCONT)
		front_lend_terminal(f, pid);
	if (!f->keep || !f->keep(f->tick_arg, sig))
		restore_watch_signal(w, sig);
}

/* ---- until the end ------------------------------------------------------------------------- */

/* Readers and writers of our pipes wait for the process, not for us. */
static void let_go_of_pipes(const struct restore_front *f)
{
	cleanup_fd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int last = f->tick ? STDOUT_FILENO : STDERR_FILENO;

	for (int fd = STDIN_FILENO; null >= 0 && fd <= last; fd++)
		dup2(null, fd);
}

int front_end_as(int status)
{
	struct rlimit none = {0};
	sigset_t set;

	if (!WIFSIGNALED(status))
		return WEXITSTATUS(status);
	/* The process has left its core; ours is of no use. */
	setrlimit(RLIMIT_CORE, &none);
	prctl(PR_SET_DUMPABLE, 0);
	signal(WTERMSIG(status), SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, WTERMSIG(status));
	raise(WTERMSIG(status));
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	return 128 + WTERMSIG(status);
}

bool front_wait(struct restore_front *f, struct restore_watch *w, pid_t pid,
		const volatile sig_atomic_t *early, int *ret_status)
{
	struct signalfd_siginfo si;
	sigset_t set;
	int status = 0, wait_ms, r;

	passed_signals(&set);
	sigprocmask(SIG_BLOCK, &set, NULL);
	cleanup_fd int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0) {
		/* It runs, and that is what counts. */
		msg_warning("signals will not be passed on to process %d", (int)pid);
	}
	if (*early)
		restore_watch_signal(w, *early);
	if (!f->keeps_files)
		let_go_of_pipes(f);
	for (;;) {
		struct pollfd p[] = {{.fd = signals, .events = POLLIN},
				     {.fd = w->events, .events = POLLIN}};

		while ((r = restore_watch_next(w, &status)) > 0) {
			if (WIFSTOPPED(status))
				on_stopped(f, w, pid, WSTOPSIG(status));
			else if (!WIFCONTINUED(status))
				break;
		}
		if (r)
			break;
		wait_ms = f->tick ? f->tick(f->tick_arg) : -1;
		if (signals < 0 && (wait_ms < 0 || wait_ms > 100))
			wait_ms = 100;
		/* A child's end that comes between is a SIGCHLD that waits in signals. */
		if (poll(p, ARRAY_SIZE(p), wait_ms) < 0 && errno != EINTR)
			break;
		while (signals >= 0 && read(signals, &si, sizeof(si)) == (ssize_t)sizeof(si))
			pass_signal(f, w, pid, &si);
	}
	/* As a shell does. Not where another command of a pipeline may have set it, a pager. */
	if (f->alone && r > 0)
		front_reset_terminal(f);
	else
		front_take_terminal(f);
	restore_watch_end(w);
	*ret_status = status;
	return r > 0;
}

int front_stand_in(struct restore_front *f, struct restore_watch *w, pid_t pid,
		   const volatile sig_atomic_t *early)
{
	int status;

	return front_wait(f, w, pid, early, &status) ? front_end_as(status) : EXIT_FAILED;
}
