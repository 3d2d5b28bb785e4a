/*
 * Unix sockets: pairs within the process, and those on their own.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rsockets_internal.h"

static bool has_name(const struct rsock_address *a)
{
	return a->len > offsetof(struct sockaddr_un, sun_path);
}

static int bind_unix(const struct rsockets *s, struct rsocket *x, int fd, struct usnap_err *err)
{
	if (!has_name(&x->local))
		return 0;
	if (x->path)
		return rsock_path_bind(s, x, fd, err);
	if (bind(fd, (const struct sockaddr *)&x->local.ss, x->local.len) < 0)
		return rsock_bind_failed(x, -errno, err);
	return 0;
}

/* ---- pairs ----------------------------------------------------------------- */

/* Of a stream's end, a name in the file system is that of a listener that is
 * gone: it is not made for a connection alone. */
static int bind_end(const struct rsockets *s, struct rsocket *x, int fd, struct usnap_err *err)
{
	if (x->listener || (x->path && x->type != SOCK_DGRAM))
		return 0;
	return bind_unix(s, x, fd, err);
}

static int make_ends(const struct rsockets *s, const struct rsocket *x, int ends[2])
{
	struct rsock_identity id = rsock_become(s);
	int r = socketpair(AF_UNIX, x->type | SOCK_CLOEXEC, 0, ends) < 0 ? -errno : 0;

	rsock_unbecome(&id);
	return r;
}

static void shut(const struct rsocket *x, int fd)
{
	if (x->shut_read || x->shut_write)
		shutdown(fd, !x->shut_write ? SHUT_RD : !x->shut_read ? SHUT_WR : SHUT_RDWR);
}

/* Everything but the connection. */
static int equip(const struct rsockets *s, const struct rsocket *x, int a, const struct rsocket *y,
		 int b, struct usnap_err *err)
{
	int r;

	if ((r = rsock_options_early(x, a, err)) < 0 || (r = rsock_options_early(y, b, err)) < 0 ||
	    (r = rsock_queue_fill(s, x, b, err)) < 0 || (r = rsock_queue_fill(s, y, a, err)) < 0)
		return r;
	shut(x, a);
	shut(y, b);
	if ((r = rsock_options_rest(x, a, err)) < 0 || (r = rsock_options_rest(y, b, err)) < 0 ||
	    (r = rsock_options_last(x, a, err)) < 0)
		return r;
	return rsock_options_last(y, b, err);
}

static int hold_both(const struct rsockets *s, struct rsocket *x, int *a, struct rsocket *y, int *b,
		     struct usnap_err *err)
{
	int r = rsock_hold(s, a);

	if (r == 0)
		r = rsock_hold(s, b);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot make socket pair '%s'", x->text);
	x->held = take_fd(a);
	y->held = take_fd(b);
	return 0;
}

static int make_pair(struct rsockets *s, struct rsocket *x, struct usnap_err *err)
{
	struct rsocket *y = x->other;
	int ends[2];
	int r = make_ends(s, x, ends);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot make socket pair '%s'", x->text);
	cleanup_fd int a = ends[0];
	cleanup_fd int b = ends[1];
	if ((r = bind_end(s, x, a, err)) < 0 || (r = bind_end(s, y, b, err)) < 0 ||
	    (r = equip(s, x, a, y, b, err)) < 0)
		return r;
	return hold_both(s, x, &a, y, &b, err);
}

/* ---- connections to a listener of the process ------------------------------- */

static bool is_own(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.pid == getpid();
}

static int connect_as(const struct rsockets *s, const struct rsocket *listener, int fd)
{
	struct rsock_identity id = rsock_become(s);
	int r = connect(fd, (const struct sockaddr *)&listener->local.ss, listener->local.len) < 0
			? -errno
			: 0;

	rsock_unbecome(&id);
	return r;
}

/* Somebody who came in between finds the connection ended, as all do whose
 * connection the restore has lost. */
static int accept_own(const struct rsockets *s, const struct rsocket *listener, int listening,
		      int client)
{
	int r = -EAGAIN;

	for (int tries = 0; tries < 10000; tries++) {
		if (r < 0)
			r = connect_as(s, listener, client);
		if (r < 0 && r != -EAGAIN)
			return r;
		/* cppcheck-suppress nullPointer */
		int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0 && is_own(fd))
			return fd;
		if (fd >= 0)
			close(fd);
		else if (errno != EAGAIN)
			return -errno;
	}
	return -EBUSY;
}

static int set_nonblocking(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	flags = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
	return fcntl(fd, F_SETFL, flags) < 0 ? -errno : 0;
}

static int make_accepted(const struct rsockets *s, struct rsocket *x, int listening,
			 struct usnap_err *err)
{
	struct rsocket *y = x->other;
	struct rsock_place place;
	cleanup_fd int client = socket(AF_UNIX, x->type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int r = client < 0 ? -errno : rsock_enter(s, &x->local, &place);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot connect to '%s'", x->text);
	cleanup_fd int server = accept_own(s, x->listener, listening, client);
	rsock_leave(&place);
	if (server < 0 || (r = set_nonblocking(client, false)) < 0)
		return usnap_fail_errno(err, server < 0 ? server : r, "cannot connect to '%s'",
					x->text);
	if ((r = bind_end(s, y, client, err)) < 0 || (r = equip(s, x, server, y, client, err)) < 0)
		return r;
	return hold_both(s, x, &server, y, &client, err);
}

static int make_all_accepted(const struct rsockets *s, const struct rsocket *listener,
			     int listening, struct usnap_err *err)
{
	int r = set_nonblocking(listening, true);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot connect to '%s'", listener->text);
	for (size_t i = 0; i < s->n && r == 0; i++)
		if (s->v[i].listener == listener)
			r = make_accepted(s, &s->v[i], listening, err);
	if (r == 0)
		r = set_nonblocking(listening, false);
	return r;
}

/* The other end is gone; what it had sent may still be there. */
static int make_gone(const struct rsockets *s, struct rsocket *x, int *ret_fd,
		     struct usnap_err *err)
{
	int ends[2];
	int r = make_ends(s, x, ends);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot make socket '%s'", x->text);
	cleanup_fd int a = ends[0];
	cleanup_fd int b = ends[1];
	if ((r = rsock_options_early(x, a, err)) < 0 || (r = bind_end(s, x, a, err)) < 0 ||
	    (r = rsock_queue_fill(s, x, b, err)) < 0)
		return r;
	close(take_fd(&b));
	shut(x, a);
	if ((r = rsock_options_rest(x, a, err)) < 0 || (r = rsock_options_last(x, a, err)) < 0)
		return r;
	*ret_fd = take_fd(&a);
	return 0;
}

/* ---- on their own ---------------------------------------------------------- */

static int start_listening(const struct rsockets *s, const struct rsocket *x, int fd)
{
	/* Clients are told who listens (SO_PEERCRED). */
	struct rsock_identity id = rsock_become(s);
	int r = listen(fd, x->backlog) < 0 ? -errno : 0;

	rsock_unbecome(&id);
	return r;
}

static int make_bound(const struct rsockets *s, struct rsocket *x, int *ret_fd,
		      struct usnap_err *err)
{
	cleanup_fd int fd = socket(AF_UNIX, x->type | SOCK_CLOEXEC, 0);
	int r;

	if (fd < 0)
		return usnap_fail_errno(err, -errno, "cannot make socket '%s'", x->text);
	if ((r = rsock_options_early(x, fd, err)) < 0 || (r = bind_unix(s, x, fd, err)) < 0 ||
	    (r = rsock_options_rest(x, fd, err)) < 0)
		return r;
	if (x->type != SOCK_DGRAM) {
		if ((r = rsock_options_last(x, fd, err)) < 0)
			return r;
		if (x->listening && (r = start_listening(s, x, fd)) < 0)
			return rsock_bind_failed(x, r, err);
		if (x->accepts && (r = make_all_accepted(s, x, fd, err)) < 0)
			return r;
		*ret_fd = take_fd(&fd);
		return 0;
	}
	/* The rest is for when all of them are there. */
	cleanup_fd int held = dup(fd);
	r = held < 0 ? -errno : rsock_hold(s, &held);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot make socket '%s'", x->text);
	x->held = take_fd(&held);
	*ret_fd = take_fd(&fd);
	return 0;
}

/* Held, both of them. */
static int make_connection(struct rsockets *s, struct rsocket *x, struct usnap_err *err)
{
	struct rsocket *listener = x->listener ? x->listener : x->other->listener;
	int fd = -1;

	if (!listener)
		return make_pair(s, x, err);
	/* Made with its connections, before it is asked for. */
	int r = make_bound(s, listener, &fd, err);
	if (r < 0)
		return r;
	r = rsock_hold(s, &fd);
	if (r < 0) {
		close(fd);
		return usnap_fail_errno(err, r, "cannot make socket '%s'", listener->text);
	}
	listener->held = fd;
	return 0;
}

int rsock_unix_make(struct rsockets *s, struct rsocket *x, int *ret_fd, struct usnap_err *err)
{
	int r;

	switch (x->kind) {
	case RSOCK_PAIR:
		if ((r = make_connection(s, x, err)) < 0)
			return r;
		*ret_fd = take_fd(&x->held);
		return 0;
	case RSOCK_BOUND:
		return make_bound(s, x, ret_fd, err);
	default:
		return make_gone(s, x, ret_fd, err);
	}
}

int rsock_unix_connect(const struct rsockets *s, const struct rsocket *x, struct usnap_err *err)
{
	struct rsock_place place;

	if (x->connected && has_name(&x->peer)) {
		int r = rsock_enter(s, &x->peer, &place);

		if (r < 0)
			return usnap_fail_errno(err, r, "cannot connect '%s'", x->text);
		/* When nobody is there, it is as if the one who was had gone: senders of
		 * datagrams know that they must connect again. */
		(void)!connect(x->held, (const struct sockaddr *)&x->peer.ss, x->peer.len);
		rsock_leave(&place);
	}
	shut(x, x->held);
	return rsock_options_last(x, x->held, err);
}
