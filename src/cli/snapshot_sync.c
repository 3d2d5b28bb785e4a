#include "cli/snapshot_sync.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	LOOK_MS = 100 /* how often an interruption is looked for */
};

int snapshot_sync_open(int fd, struct usnap_err *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return usnap_fail_errno(err, -errno, "cannot use descriptor %d of --sync-fd", fd);
	if (!S_ISSOCK(st.st_mode))
		return usnap_fail(err, -ENOTSOCK,
				  "cannot use descriptor %d of --sync-fd: it is not a socket", fd);
	if (fd > STDERR_FILENO)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	return 0;
}

static int lost(int fd, struct usnap_err *err)
{
	return usnap_fail(err, -ECANCELED,
			  "cannot snapshot: whoever is to be asked, on descriptor %d, is gone", fd);
}

/* Up to the end of the line, which is all that there is to read. */
static int read_line(const struct snapshot_sync *s, char *line, size_t room, struct usnap_err *err)
{
	size_t len = 0;

	for (;;) {
		struct pollfd p = {s->fd, POLLIN, 0};

		if (s->cancel && *s->cancel)
			return usnap_fail(err, -ECANCELED, "interrupted");
		if (poll(&p, 1, LOOK_MS) <= 0)
			continue;
		ssize_t n = recv(s->fd, line + len, 1, MSG_DONTWAIT);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n <= 0)
			return lost(s->fd, err);
		if (line[len] == '\n') {
			line[len] = '\0';
			return 0;
		}
		if (++len == room)
			return usnap_fail(err, -EPROTO,
					  "cannot snapshot: the answer on descriptor %d is no 'go'",
					  s->fd);
	}
}

static bool say(const struct snapshot_sync *s, const char *line)
{
	ssize_t n;

	do
		n = send(s->fd, line, strlen(line), MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR && !(s->cancel && *s->cancel));
	return n == (ssize_t)strlen(line);
}

static int ask(const struct snapshot_sync *s, const char *what, struct usnap_err *err)
{
	char line[8];

	if (!say(s, what))
		return lost(s->fd, err);
	int r = read_line(s, line, sizeof(line), err);
	if (r == 0 && strcmp(line, "go") != 0)
		r = usnap_fail(err, -EPROTO,
			       "cannot snapshot: the answer on descriptor %d is no 'go'", s->fd);
	return r;
}

int snapshot_sync_attach(struct snapshot_sync *s, struct usnap_err *err)
{
	return s->fd < 0 ? 0 : ask(s, "attach\n", err);
}

int snapshot_sync_before(void *arg, struct usnap_err *err)
{
	return ask(arg, "freeze\n", err);
}

/* Should nobody listen any more, the image is none the worse. */
void snapshot_sync_after(void *arg)
{
	say(arg, "frozen\n");
}

void snapshot_sync_done(struct snapshot_sync *s)
{
	if (s->fd >= 0)
		say(s, "done\n");
}
