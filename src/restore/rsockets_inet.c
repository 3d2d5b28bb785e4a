/*
 * IPv4, IPv6 and netlink sockets on their own: listening, bound, connected
 * where that needs nobody's consent (UDP), or neither.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <string.h>

#include "common/le.h"
#include "common/util.h"
#include "restore/rsockets_internal.h"

#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

static uint16_t port_of(const struct rsock_address *a)
{
	if (!a->len)
		return 0;
	if (a->ss.ss_family == AF_INET6)
		return ntohs(((const struct sockaddr_in6 *)&a->ss)->sin6_port);
	return ntohs(((const struct sockaddr_in *)&a->ss)->sin_port);
}

static void set_port(struct rsock_address *a, uint16_t port)
{
	if (a->ss.ss_family == AF_INET6)
		((struct sockaddr_in6 *)&a->ss)->sin6_port = htons(port);
	else
		((struct sockaddr_in *)&a->ss)->sin_port = htons(port);
}

static void set_any(struct rsock_address *a)
{
	if (a->ss.ss_family == AF_INET6)
		((struct sockaddr_in6 *)&a->ss)->sin6_addr = (struct in6_addr)IN6ADDR_ANY_INIT;
	else
		((struct sockaddr_in *)&a->ss)->sin_addr.s_addr = htonl(INADDR_ANY);
}

static bool is_any(const struct rsock_address *a)
{
	if (a->ss.ss_family == AF_INET6)
		return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)&a->ss)->sin6_addr);
	return ((const struct sockaddr_in *)&a->ss)->sin_addr.s_addr == htonl(INADDR_ANY);
}

/* Whether the kernel may have chosen the port by itself. */
static bool is_ephemeral(uint16_t port)
{
	unsigned low = 32768, high = 60999;
	cleanup_file FILE *f = fopen("/proc/sys/net/ipv4/ip_local_port_range", "re");

	if (f && fscanf(f, "%u %u", &low, &high) != 2)
		low = 32768, high = 60999;
	return port >= low && port <= high;
}

int rsock_bind_failed(const struct rsocket *x, int code, struct usnap_err *err)
{
	usnap_fail_errno(err, code, "cannot bind '%s'", x->text);
	switch (code) {
	case -EADDRINUSE:
		if (x->family == AF_UNIX)
			return usnap_hint(err, "stop the process that listens there; 'ss -xlp' "
					       "shows it");
		return usnap_hint(err, "stop the process that has the port ('ss -anp' shows it); "
				       "ended connections hold it for a minute at most");
	case -EADDRNOTAVAIL:
		return usnap_hint(err, "give this machine the address of the one that the "
				       "snapshot was taken on");
	case -EACCES:
		return usnap_hint(err, x->family == AF_UNIX
					       ? "the directory must be writable"
					       : "ports below 1024 take CAP_NET_BIND_SERVICE");
	case -ENOENT:
		return usnap_hint(err, "make the directory first");
	}
	return code;
}

/* What a connected socket has as its own address may have been chosen for it,
 * for a network that is another one by now. */
static int bind_inet(const struct rsocket *x, int fd, struct usnap_err *err)
{
	struct rsock_address a = x->local;
	uint16_t port = port_of(&a);
	/* A raw socket has its protocol there. */
	bool has_port = x->type != SOCK_RAW;

	if (!a.len || (is_any(&a) && (!has_port || !port)))
		return 0;
	if (bind(fd, (const struct sockaddr *)&a.ss, a.len) == 0)
		return 0;
	int code = -errno;
	if (x->connected && code == -EADDRNOTAVAIL) {
		set_any(&a);
		if (bind(fd, (const struct sockaddr *)&a.ss, a.len) == 0)
			return 0;
		code = -errno;
	}
	if (x->connected && code == -EADDRINUSE && has_port && is_ephemeral(port)) {
		set_port(&a, 0);
		if (bind(fd, (const struct sockaddr *)&a.ss, a.len) == 0)
			return 0;
	}
	return rsock_bind_failed(x, code, err);
}

static int open_inet(const struct rsocket *x)
{
	int fd = socket(x->family, x->type | SOCK_CLOEXEC, x->protocol);

	/* MPTCP falls back to TCP towards each peer; so may we. */
	if (fd < 0 && x->protocol != IPPROTO_TCP && sock_is_tcp(x->protocol))
		fd = socket(x->family, x->type | SOCK_CLOEXEC, IPPROTO_TCP);
	return fd;
}

int rsock_inet_make(const struct rsockets *s, const struct rsocket *x, bool trial, int *ret_fd,
		    struct usnap_err *err)
{
	cleanup_fd int fd = open_inet(x);
	int r;

	if (fd < 0) {
		r = usnap_fail_errno(err, -errno, "cannot make socket '%s'", x->text);
		return r == -EPERM ? usnap_hint(err, "raw sockets take CAP_NET_RAW") : r;
	}
	/* Who may share the port (SO_REUSEPORT) is told by the owner. */
	if (s->has_creds && geteuid() != s->euid)
		(void)!fchown(fd, s->euid, (gid_t)-1);
	if ((r = rsock_options_early(x, fd, err)) < 0 || (r = bind_inet(x, fd, err)) < 0 ||
	    (r = rsock_options_rest(x, fd, err)) < 0)
		return r;
	/* Without a route it stays unconnected, as after an error that the network told. */
	if (x->connected && x->peer.len && !trial)
		(void)!connect(fd, (const struct sockaddr *)&x->peer.ss, x->peer.len);
	if (x->listening && !trial && listen(fd, x->backlog) < 0)
		return rsock_bind_failed(x, -errno, err);
	if ((x->shut_read || x->shut_write) && !trial)
		shutdown(fd, x->shut_read && x->shut_write ? SHUT_RDWR
			     : x->shut_read		   ? SHUT_RD
							   : SHUT_WR);
	*ret_fd = take_fd(&fd);
	return 0;
}

/* ---- netlink -------------------------------------------------------------- */

static int join_groups(const struct rsocket *x, int fd, struct usnap_err *err)
{
	/* The first word is part of the address. */
	for (size_t i = 4; i + 4 <= x->groups_len; i += 4) {
		uint32_t word = le_get32(x->groups + i);

		for (unsigned bit = 0; bit < 32; bit++) {
			int group = (int)(i * 8 + bit + 1);

			if (word >> bit & 1 && setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP,
							  &group, sizeof(group)) < 0)
				return usnap_fail_errno(err, -errno, "cannot join '%s' to group %d",
							x->text, group);
		}
	}
	return 0;
}

int rsock_netlink_make(const struct rsocket *x, int *ret_fd, struct usnap_err *err)
{
	cleanup_fd int fd = socket(AF_NETLINK, x->type | SOCK_CLOEXEC, x->protocol);
	int r;

	if (fd < 0)
		return usnap_fail_errno(err, -errno, "cannot make socket '%s'", x->text);
	if ((r = rsock_options_early(x, fd, err)) < 0 || (r = rsock_options_rest(x, fd, err)) < 0)
		return r;
	if (x->local.len >= sizeof(struct sockaddr_nl)) {
		struct sockaddr_nl nl;

		memcpy(&nl, &x->local.ss, sizeof(nl));
		if (nl.nl_pid || nl.nl_groups)
			r = bind(fd, (const struct sockaddr *)&nl, sizeof(nl)) < 0 ? -errno : 0;
		/* The port is a number of no meaning to anybody but the kernel. */
		if (r == -EADDRINUSE) {
			nl.nl_pid = 0;
			r = bind(fd, (const struct sockaddr *)&nl, sizeof(nl)) < 0 ? -errno : 0;
		}
		if (r < 0)
			return rsock_bind_failed(x, r, err);
	}
	if (x->connected && x->peer.len >= sizeof(struct sockaddr_nl) &&
	    ((const struct sockaddr_nl *)&x->peer.ss)->nl_pid)
		(void)!connect(fd, (const struct sockaddr *)&x->peer.ss, x->peer.len);
	if ((r = join_groups(x, fd, err)) < 0)
		return r;
	*ret_fd = take_fd(&fd);
	return 0;
}
