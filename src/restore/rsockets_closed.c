/*
 * Connections whose peer is gone: at once readable with nothing to read, and
 * hung up, as after a peer that has closed in good order. An error instead
 * (ECONNRESET) is what libraries raise exceptions for.
 *
 * TCP: a connection to ourselves over the loopback whose other end is closed
 * again. It is a socket of the same family with addresses, in CLOSE_WAIT;
 * what is written to it is answered by a reset. What had been received at T0
 * and not read is not given: its sender has learnt by now that the connection
 * broke, and may have asked again elsewhere.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rsockets_internal.h"

/* Over the loopback all happens within the calls; this is for a machine at its limits. */
#define CLOSE_WAIT_MS 2000

enum {
	LOOP_V4,
	LOOP_V6,
	LOOP_MAPPED /* as IPv6, to a listener of IPv4 */
};

static int loop_kind(const struct rsocket *x)
{
	return x->family == AF_INET ? LOOP_V4 : x->mapped ? LOOP_MAPPED : LOOP_V6;
}

static struct rsock_address loopback(int kind)
{
	struct rsock_address a = {0};
	struct sockaddr_in *in = (struct sockaddr_in *)&a.ss;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&a.ss;

	if (kind == LOOP_V4) {
		in->sin_family = AF_INET;
		in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		a.len = sizeof(*in);
		return a;
	}
	in6->sin6_family = AF_INET6;
	inet_pton(AF_INET6, kind == LOOP_MAPPED ? "::ffff:127.0.0.1" : "::1", &in6->sin6_addr);
	a.len = sizeof(*in6);
	return a;
}

static int open_listener(struct rsockets *s, int kind)
{
	struct rsock_address a = loopback(kind);
	int off = 0;

	if (s->listener[kind] >= 0)
		return 0;
	cleanup_fd int fd =
		socket(a.ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
	if (fd < 0)
		return -errno;
	if (kind == LOOP_MAPPED)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(fd, (const struct sockaddr *)&a.ss, a.len) < 0 || listen(fd, 8) < 0)
		return -errno;
	int r = rsock_hold(s, &fd);
	if (r == 0)
		s->listener[kind] = take_fd(&fd);
	return r;
}

/* Until fd is told that its other end is closed. Somebody else may have come
 * to the listener first: all who came are closed. */
static int close_other(int listener, int fd)
{
	uint64_t end = now_ns() + CLOSE_WAIT_MS * 1000000ull;

	for (;;) {
		struct pollfd p[] = {{.fd = fd, .events = POLLRDHUP},
				     {.fd = listener, .events = POLLIN}};
		int n = poll(p, 2, 100);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[0].revents & (POLLRDHUP | POLLHUP | POLLERR))
			return 0;
		if (n > 0 && p[1].revents) {
			/* cppcheck-suppress nullPointer */
			int other = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
			if (other >= 0)
				close(other);
		}
		if (now_ns() > end)
			return -ETIMEDOUT;
	}
}

static int connect_loop(struct rsockets *s, int kind, int fd)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);
	int r = open_listener(s, kind);

	if (r < 0)
		return r;
	if (getsockname(s->listener[kind], (struct sockaddr *)&ss, &len) < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)&ss, len) < 0 && errno != EINPROGRESS)
		return -errno;
	return close_other(s->listener[kind], fd);
}

static int set_nonblocking(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	flags = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
	return fcntl(fd, F_SETFL, flags) < 0 ? -errno : 0;
}

static int open_tcp(const struct rsocket *x)
{
	int fd = socket(x->family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);

	return fd < 0 ? -errno : fd;
}

static int make_tcp(struct rsockets *s, const struct rsocket *x)
{
	int kind = loop_kind(x);

	cleanup_fd int fd = open_tcp(x);
	if (fd < 0)
		return fd;
	int r = connect_loop(s, kind, fd);
	if (r == -EADDRNOTAVAIL && s->listener[kind] >= 0) {
		/* Every port towards this listener is taken: another one. */
		close(s->listener[kind]);
		s->listener[kind] = -1;
		r = connect_loop(s, kind, fd);
	}
	/* Without a loopback it is a socket that is not connected: hung up too,
	 * but reading from it is an error (ENOTCONN). */
	if (r < 0) {
		close(take_fd(&fd));
		fd = open_tcp(x);
		if (fd < 0)
			return fd;
	}
	r = set_nonblocking(fd, false);
	return r < 0 ? r : take_fd(&fd);
}

/* One that was connecting finds that nobody listens. */
static int make_refused(const struct rsocket *x)
{
	struct rsock_address a = loopback(loop_kind(x));
	int off = 0;

	cleanup_fd int nobody = open_tcp(x);
	cleanup_fd int fd = open_tcp(x);
	if (nobody < 0 || fd < 0)
		return nobody < 0 ? nobody : fd;
	if (x->mapped)
		setsockopt(nobody, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(nobody, (const struct sockaddr *)&a.ss, a.len) == 0 &&
	    getsockname(nobody, (struct sockaddr *)&a.ss, &a.len) == 0)
		(void)!connect(fd, (const struct sockaddr *)&a.ss, a.len);
	/* The error is kept for whoever asks: SO_ERROR, or connect(2) started again. */
	int r = set_nonblocking(fd, false);
	return r < 0 ? r : take_fd(&fd);
}

static int make_local(const struct rsocket *x)
{
	int ends[2];

	/* Where nothing is known of it, whatever hangs up will do. */
	if (socketpair(AF_UNIX, (x->family == AF_UNIX ? x->type : SOCK_STREAM) | SOCK_CLOEXEC, 0,
		       ends) < 0)
		return -errno;
	close(ends[1]);
	return ends[0];
}

int rsock_closed_make(struct rsockets *s, const struct rsocket *x, int *ret_fd,
		      struct usnap_err *err)
{
	bool inet = x->family == AF_INET || x->family == AF_INET6;
	int fd = !inet || x->kind == RSOCK_UNKNOWN ? make_local(x)
		 : x->kind == RSOCK_REFUSED	   ? make_refused(x)
						   : make_tcp(s, x);

	if (fd < 0)
		return usnap_fail_errno(err, fd, "cannot make socket '%s'", x->text);
	*ret_fd = fd;
	return 0;
}

void rsock_closed_end(struct rsockets *s)
{
	for (size_t i = 0; i < ARRAY_SIZE(s->listener); i++)
		if (s->listener[i] >= 0) {
			close(s->listener[i]);
			s->listener[i] = -1;
		}
}
