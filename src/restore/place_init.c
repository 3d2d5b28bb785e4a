/* The inner process and the outer one; place.h has the design. */
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/io.h"
#include "common/util.h"
#include "restore/guard.h"
#include "restore/place_internal.h"

#ifndef CLOSE_RANGE_CLOEXEC /* Linux 5.9, and no wrapper in older libraries */
#include <linux/close_range.h>
#endif

static int send_report(int channel, const struct place_report *report, int pidfd)
{
	struct iovec iov = {(void *)report, sizeof(*report)};
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (pidfd >= 0) {
		m.msg_control = &control;
		m.msg_controllen = sizeof(control);
		control.h.cmsg_level = SOL_SOCKET;
		control.h.cmsg_type = SCM_RIGHTS;
		control.h.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.h), &pidfd, sizeof(int));
	}
	ssize_t n;
	while ((n = sendmsg(channel, &m, MSG_NOSIGNAL)) < 0 && errno == EINTR)
		;
	return n == (ssize_t)sizeof(*report) ? 0 : -EPIPE;
}

static int receive_report(int channel, struct place_report *report, int *ret_pidfd)
{
	struct iovec iov = {report, sizeof(*report)};
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(channel, &m, MSG_CMSG_CLOEXEC);

	if (n < 0)
		return -errno;
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	if (c && c->cmsg_type == SCM_RIGHTS)
		memcpy(ret_pidfd, CMSG_DATA(c), sizeof(int));
	return n == (ssize_t)sizeof(*report) ? 0 : -EPIPE;
}

/* ---- the inner process: init of the namespace --------------------------------------------- */

/* Dies with the outer process; which may have died before we asked for that. */
static int die_with_outer(int channel)
{
	struct pollfd p = {.fd = channel, .events = POLLIN};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	return poll(&p, 1, 0) == 0 ? 0 : -ESRCH;
}

static int enter_inner(struct restore *r, uid_t uid, gid_t gid)
{
	struct place *p = r->place;
	struct place_report report = {0};

	p->inside = true;
	int code = place_furnish(&p->spaces, uid, gid, &report.err);
	if (code < 0) {
		report.code = code;
		send_report(p->channel, &report, -1);
		_exit(1);
	}
	/* A change of credentials, such as the user namespace, would undo it. */
	if (die_with_outer(p->channel) < 0)
		_exit(1);
	return 0;
}

/* Keeps no file open and no terminal busy: readers of a pipe wait for the process only. */
static void let_go(int channel, bool detached)
{
	int null = open("/dev/null", O_RDWR);

	for (int fd = 0; fd <= 2; fd++)
		dup2(null, fd);
	dup2(channel, 3);
	syscall(SYS_close_range, 4, ~0u, 0);
	if (chdir("/") < 0 || !detached)
		return;
	setsid();
	prctl(PR_SET_PDEATHSIG, 0);
}

static int exit_status(int status)
{
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* All signals are blocked: nothing but the process's end, or SIGKILL from outside, ends this. */
static _Noreturn void look_after(pid_t pid)
{
	sigset_t all;
	siginfo_t si;

	sigfillset(&all);
	for (;;) {
		pid_t child;
		int status;

		/* First of all: it may have ended before its signals were blocked. */
		while ((child = waitpid(-1, &status, WNOHANG | WUNTRACED | WCONTINUED | __WALL)) >
		       0) {
			if (child != pid)
				continue;
			send(3, &status, sizeof(status), MSG_NOSIGNAL | MSG_DONTWAIT);
			if (!WIFSTOPPED(status) && !WIFCONTINUED(status))
				_exit(exit_status(status));
		}
		int sig = sigwaitinfo(&all, &si);

		/* What the terminal sends, it sends to the process as well. */
		if (sig > 0 && sig != SIGCHLD && si.si_code != SI_KERNEL)
			kill(pid, sig);
	}
}

bool place_is_inner(const struct restore *r)
{
	return r->place->inside;
}

int place_leave(struct restore *r, int code, const struct usnap_err *err)
{
	struct place *p = r->place;
	struct place_report report = {.code = code, .err = *err};
	bool detached = r->o->detach;
	pid_t pid = r->builder;
	sigset_t all;

	if (!p->inside)
		return code;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	if (code < 0) {
		send_report(p->channel, &report, -1);
		_exit(1);
	}
	int channel = dup(p->channel);
	if (detached)
		prctl(PR_SET_PDEATHSIG, 0);
	/* Before the outer one knows: it ends the guard. */
	guard_done(r);
	if (channel < 0 || send_report(channel, &report, r->builder_pidfd) < 0) {
		/* The outer one has gone, and what was built goes with this process. */
		guard_not_done(r);
		_exit(1);
	}
	restore_free(r);
	malloc_trim(0);
	let_go(channel, detached);
	look_after(pid);
}

/* ---- the outer process -------------------------------------------------------------------- */

int place_enter(struct restore *r, struct usnap_err *err)
{
	struct place *p = r->place;
	uid_t uid = geteuid();
	gid_t gid = getegid();
	int pair[2];

	if (!p->spaces.pids)
		return p->spaces.clocks ? place_set_clocks(&p->spaces.offsets, err) : 0;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return usnap_fail_errno(err, -errno, "cannot make a PID namespace");
	struct clone_args args = {
		.flags = place_clone_flags(&p->spaces),
		.exit_signal = SIGCHLD,
	};
	long pid = syscall(SYS_clone3, &args, sizeof(args));
	int code = pid < 0 ? place_no_clone(&p->spaces, -errno, err) : 0;
	if (pid == 0) {
		close(pair[0]);
		p->channel = pair[1];
		return enter_inner(r, uid, gid);
	}
	close(pair[1]);
	if (code < 0) {
		close(pair[0]);
		return code;
	}
	p->channel = pair[0];
	p->init = (pid_t)pid;
	return 1;
}

/* /proc/self/fdinfo of a pidfd tells the PID as it is seen here; 0: it has ended (the kernel says
 * -1 then, which nobody may take for a number to send signals to). */
static pid_t pid_of(int pidfd)
{
	cleanup_free char *text = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	if (io_read_file_at(AT_FDCWD, path, KIB(4), &text, NULL) < 0)
		return 0;
	const char *line = strstr(text, "\nPid:");
	long pid = line ? strtol(line + strlen("\nPid:"), NULL, 10) : 0;
	return pid > 0 ? (pid_t)pid : 0;
}

static void end_inner(struct place *p)
{
	kill(p->init, SIGKILL);
	while (waitpid(p->init, NULL, 0) < 0 && errno == EINTR)
		;
	p->init = 0;
}

int place_result(struct restore *r, pid_t *ret_pid, struct usnap_err *err)
{
	struct place *p = r->place;
	struct place_report report = {0};
	int code;

	/* What asks us to stop, asks the inner one: it undoes what it has done. */
	while ((code = receive_report(p->channel, &report, &p->pidfd)) == -EINTR)
		if (r->o->cancel && *r->o->cancel)
			kill(p->init, *r->o->cancel);
	if (code == 0 && report.code == 0 && p->pidfd >= 0) {
		*ret_pid = pid_of(p->pidfd);
		if (*ret_pid || !r->o->detach)
			return 0;
		end_inner(p);
		return usnap_fail(err, -ESRCH, "cannot restore '%s': the process ended at once",
				  r->o->image);
	}
	end_inner(p);
	if (code < 0 || report.code >= 0) {
		/* It may just have meant to tell us. */
		guard_not_done(r);
		return usnap_fail(err, -ECHILD,
				  "cannot restore '%s': the process that was to build it in its "
				  "namespace was killed",
				  r->o->image);
	}
	*err = report.err;
	return report.code;
}

void place_hand_over(struct restore *r, struct restore_watch *ret)
{
	struct place *p = r->place;

	ret->child = p->init;
	ret->pidfd = p->pidfd;
	ret->events = p->channel;
	p->init = 0;
	p->pidfd = p->channel = -1;
}
