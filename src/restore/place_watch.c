/* What becomes of the process, for the one that stands in its place on the terminal. */
#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/place.h"

void restore_watch_begin(struct restore *r, struct restore_watch *ret)
{
	*ret = (struct restore_watch){.child = r->builder, .events = -1};
	if (r->builder > 0)
		ret->pidfd = take_fd(&r->builder_pidfd);
	else
		place_hand_over(r, ret);
}

/* From the inner process: its own end says only that nothing more will come. */
static int next_event(const struct restore_watch *w, int *ret_status)
{
	ssize_t n = recv(w->events, ret_status, sizeof(*ret_status), MSG_DONTWAIT);

	if (n == (ssize_t)sizeof(*ret_status))
		return 1;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	pid_t pid = waitpid(w->child, ret_status, 0);
	return pid < 0 ? -errno : 1;
}

int restore_watch_next(const struct restore_watch *w, int *ret_status)
{
	if (w->events >= 0)
		return next_event(w, ret_status);
	pid_t pid = waitpid(w->child, ret_status, WNOHANG | WUNTRACED | WCONTINUED);
	if (pid < 0)
		return errno == EINTR ? 0 : -errno;
	return pid > 0;
}

int restore_watch_signal(const struct restore_watch *w, int sig)
{
	/* Whoever stopped all of the namespace, its init too, wants it to go on. */
	if (sig == SIGCONT && w->events >= 0)
		kill(w->child, SIGCONT);
	return syscall(SYS_pidfd_send_signal, w->pidfd, sig, NULL, 0) < 0 ? -errno : 0;
}

void restore_watch_end(struct restore_watch *w)
{
	if (w->pidfd >= 0)
		close(w->pidfd);
	if (w->events >= 0)
		close(w->events);
	w->pidfd = w->events = -1;
}
