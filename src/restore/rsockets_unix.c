/*
 * Unix sockets: pairs within the process, and those on their own.
 */
#include <errno.h>
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

static int make_ends(const struct rsockets *s, const struct rsocket *x, int ends[2])
{
	struct rsock_identity id = rsock_become(s);
	int r = socketpair(AF_UNIX, x->type | SOCK_CLOEXEC, 0, ends) < 0 ? -errno : 0;

	rsock_unbecome(&id);
	return r;
}

/* An accepted connection has the name of its listener, which is taken. */
static bool shares_name(const struct rsockets *s, const struct rsocket *x)
{
	for (size_t i = 0; i < s->n; i++)
		if (&s->v[i] != x && s->v[i].family == AF_UNIX &&
		    s->v[i].local.len == x->local.len &&
		    !memcmp(&s->v[i].local.ss, &x->local.ss, x->local.len))
			return true;
	return false;
}

static void shut(const struct rsocket *x, int fd)
{
	if (x->shut_read || x->shut_write)
		shutdown(fd, !x->shut_write ? SHUT_RD : !x->shut_read ? SHUT_WR : SHUT_RDWR);
}

static int make_pair(struct rsockets *s, struct rsocket *x, int *ret_fd, struct usnap_err *err)
{
	struct rsocket *y = x->other;
	int ends[2];
	int r = make_ends(s, x, ends);

	if (r < 0)
		return usnap_fail_errno(err, r, "cannot make socket pair '%s'", x->text);
	cleanup_fd int a = ends[0], b = ends[1];
	if ((r = rsock_options_early(x, a, err)) < 0 || (r = rsock_options_early(y, b, err)) < 0 ||
	    (!shares_name(s, x) && (r = bind_unix(s, x, a, err)) < 0) ||
	    (!shares_name(s, y) && (r = bind_unix(s, y, b, err)) < 0) ||
	    (r = rsock_queue_fill(s, x, b, err)) < 0 || (r = rsock_queue_fill(s, y, a, err)) < 0)
		return r;
	shut(x, a);
	shut(y, b);
	if ((r = rsock_options_rest(x, a, err)) < 0 || (r = rsock_options_rest(y, b, err)) < 0 ||
	    (r = rsock_options_last(x, a, err)) < 0 || (r = rsock_options_last(y, b, err)) < 0)
		return r;
	r = rsock_hold(s, &b);
	if (r < 0)
		return usnap_fail_errno(err, r, "cannot make socket pair '%s'", x->text);
	y->held = take_fd(&b);
	*ret_fd = take_fd(&a);
	return 0;
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
	if ((r = rsock_options_early(x, a, err)) < 0 ||
	    (!shares_name(s, x) && (r = bind_unix(s, x, a, err)) < 0) ||
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

int rsock_unix_make(struct rsockets *s, struct rsocket *x, int *ret_fd, struct usnap_err *err)
{
	switch (x->kind) {
	case RSOCK_PAIR:
		return make_pair(s, x, ret_fd, err);
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
