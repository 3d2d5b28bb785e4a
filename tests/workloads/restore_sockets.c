/*
 * Sockets after a restore; see restorework.h.
 */
#include "restorework.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

struct address {
	union {
		struct sockaddr sa;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
		struct sockaddr_un un;
		struct sockaddr_nl nl;
		struct sockaddr_storage room;
	} u;
	socklen_t len;
};

static struct address own_address(int fd)
{
	struct address a = {.len = sizeof(a.u)};

	must(getsockname(fd, &a.u.sa, &a.len) == 0);
	return a;
}

static bool same_address(const struct address *a, const struct address *b)
{
	return a->len == b->len && memcmp(&a->u, &b->u, a->len) == 0;
}

static struct address loopback(int family)
{
	struct address a = {0};

	a.u.sa.sa_family = (sa_family_t)family;
	if (family == AF_INET) {
		a.u.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		a.len = sizeof(a.u.in);
	} else {
		a.u.in6.sin6_addr = in6addr_loopback;
		a.len = sizeof(a.u.in6);
	}
	return a;
}

/* A path, or with a NUL before it an abstract name. */
static struct address local(const char *name, bool abstract)
{
	struct address a = {.u.un.sun_family = AF_UNIX};

	a.len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
			    (size_t)snprintf(a.u.un.sun_path + abstract,
					     sizeof(a.u.un.sun_path) - 1, "%s", name) +
			    1);
	return a;
}

static int made(int family, int type)
{
	int fd = socket(family, type | SOCK_CLOEXEC, 0);

	if (fd < 0 && errno == EAFNOSUPPORT)
		work_skip("no such address family");
	must(fd >= 0);
	return fd;
}

static int bound(int type, const struct address *a)
{
	int fd = made(a->u.sa.sa_family, type), on = 1;

	must(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0);
	if (bind(fd, &a->u.sa, a->len)) {
		if (errno == EADDRNOTAVAIL)
			work_skip("no such address");
		work_fail(__LINE__, "bind()");
	}
	return fd;
}

static int option(int fd, int level, int name)
{
	int value = -1;
	socklen_t len = sizeof(value);

	must(getsockopt(fd, level, name, &value, &len) == 0);
	return value;
}

static void set_option(int fd, int level, int name, int value)
{
	must(setsockopt(fd, level, name, &value, sizeof(value)) == 0);
}

/* A client gets through to it and back. */
static void serves(int listener, const struct address *a)
{
	int client = made(a->u.sa.sa_family, SOCK_STREAM), server;
	char buf[8];

	must_equal(option(listener, SOL_SOCKET, SO_ACCEPTCONN), 1);
	must(connect(client, &a->u.sa, a->len) == 0);
	must((server = accept(listener, NULL, NULL)) >= 0);
	must(write(client, "ping", 4) == 4 && read(server, buf, 8) == 4);
	must(write(server, "pong", 4) == 4 && read(client, buf, 8) == 4);
	close(client);
	must(read(server, buf, 8) == 0);
	close(server);
}

/* ---- TCP and UDP ------------------------------------------------------------------ */

static void tcp_listener_of(int family)
{
	struct address a = loopback(family), now;
	int fd = bound(SOCK_STREAM, &a);

	must(listen(fd, 37) == 0);
	a = own_address(fd);
	work_wait();
	now = own_address(fd);
	must(same_address(&a, &now));
	must_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	struct tcp_info info = {0};
	socklen_t len = sizeof(info);

	must(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0);
	must_equal(info.tcpi_sacked, 37); /* the backlog */
	serves(fd, &a);
}

static void tcp_listener(void)
{
	tcp_listener_of(AF_INET);
}

static void tcp6_listener(void)
{
	tcp_listener_of(AF_INET6);
}

static void any_address(void)
{
	struct address a = {.u.in6.sin6_family = AF_INET6, .len = sizeof(a.u.in6)}, v4;
	int fd = made(AF_INET6, SOCK_STREAM), only = made(AF_INET6, SOCK_STREAM);

	set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	set_option(only, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	must(bind(fd, &a.u.sa, a.len) == 0 && listen(fd, 5) == 0);
	must(bind(only, &a.u.sa, a.len) == 0 && listen(only, 5) == 0);
	a = own_address(fd);
	work_wait();
	must_equal(option(fd, IPPROTO_IPV6, IPV6_V6ONLY), 0);
	must_equal(option(only, IPPROTO_IPV6, IPV6_V6ONLY), 1);
	v4 = loopback(AF_INET);
	v4.u.in.sin_port = a.u.in6.sin6_port;
	serves(fd, &v4);
	a.u.in6.sin6_addr = in6addr_loopback;
	serves(fd, &a);
}

static void options(void)
{
	static const int set[][3] = {
		{SOL_SOCKET, SO_REUSEADDR, 1},
		{SOL_SOCKET, SO_REUSEPORT, 1},
		{SOL_SOCKET, SO_KEEPALIVE, 1},
		{SOL_SOCKET, SO_SNDBUF, 50000},
		{SOL_SOCKET, SO_RCVBUF, 70000},
		{SOL_SOCKET, SO_RCVLOWAT, 3},
		{SOL_SOCKET, SO_OOBINLINE, 1},
		{IPPROTO_TCP, TCP_NODELAY, 1},
		{IPPROTO_TCP, TCP_KEEPIDLE, 77},
		{IPPROTO_TCP, TCP_KEEPINTVL, 33},
		{IPPROTO_TCP, TCP_KEEPCNT, 5},
		{IPPROTO_TCP, TCP_DEFER_ACCEPT, 0},
		{IPPROTO_TCP, TCP_USER_TIMEOUT, 12345},
		{IPPROTO_IP, IP_TOS, 0x10},
		{IPPROTO_IP, IP_TTL, 33},
		/* After IP_TOS, which sets it too. */
		{SOL_SOCKET, SO_PRIORITY, 4},
	};
	struct address a = loopback(AF_INET);
	struct linger linger = {1, 9}, lingers = {0};
	struct timeval limit = {3, 500000}, now = {0};
	socklen_t len = sizeof(lingers);
	int fd = made(AF_INET, SOCK_STREAM), was[WORK_COUNT(set)];

	for (size_t i = 0; i < WORK_COUNT(set); i++)
		set_option(fd, set[i][0], set[i][1], set[i][2]);
	for (size_t i = 0; i < WORK_COUNT(set); i++)
		was[i] = option(fd, set[i][0], set[i][1]);
	must(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) == 0);
	must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) == 0);
	must(bind(fd, &a.u.sa, a.len) == 0 && listen(fd, 9) == 0);
	work_wait();
	for (size_t i = 0; i < WORK_COUNT(set); i++)
		if (option(fd, set[i][0], set[i][1]) != was[i])
			work_end(1, "FAIL: option %d of level %d is %d instead of %d", set[i][1],
				 set[i][0], option(fd, set[i][0], set[i][1]), was[i]);
	must(getsockopt(fd, SOL_SOCKET, SO_LINGER, &lingers, &len) == 0);
	must(lingers.l_onoff == 1 && lingers.l_linger == 9);
	len = sizeof(now);
	must(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &now, &len) == 0);
	must_equal(now.tv_sec * 1000000 + now.tv_usec, 3500000);
}

static void udp_of(int family)
{
	struct address a = loopback(family), now;
	int fd = bound(SOCK_DGRAM, &a), other = made(family, SOCK_DGRAM);
	char buf[16];

	set_option(fd, SOL_SOCKET, SO_BROADCAST, 1);
	a = own_address(fd);
	work_wait();
	now = own_address(fd);
	must(same_address(&a, &now) && option(fd, SOL_SOCKET, SO_BROADCAST) == 1);
	must(sendto(other, "datagram", 8, 0, &a.u.sa, a.len) == 8);
	now = own_address(other);
	must(recvfrom(fd, buf, sizeof(buf), 0, &now.u.sa, &now.len) == 8);
	must(sendto(fd, "answer", 6, 0, &now.u.sa, now.len) == 6);
	must(recv(other, buf, sizeof(buf), 0) == 6 && memcmp(buf, "answer", 6) == 0);
}

static void udp(void)
{
	udp_of(AF_INET);
}

static void udp6(void)
{
	udp_of(AF_INET6);
}

static void udp_connected(void)
{
	struct address a = loopback(AF_INET), b = loopback(AF_INET), peer = {.len = sizeof(peer.u)};
	int fd = bound(SOCK_DGRAM, &a), other = bound(SOCK_DGRAM, &b);
	char buf[16];

	a = own_address(fd);
	b = own_address(other);
	must(connect(fd, &b.u.sa, b.len) == 0);
	work_wait();
	must(getpeername(fd, &peer.u.sa, &peer.len) == 0 && same_address(&peer, &b));
	must(send(fd, "x", 1, 0) == 1 && recv(other, buf, sizeof(buf), 0) == 1);
	must(sendto(other, "yz", 2, 0, &a.u.sa, a.len) == 2 && recv(fd, buf, sizeof(buf), 0) == 2);
}

/* What a program does that finds its peer gone. */
static void is_dead(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char buf[16];
	ssize_t n;

	must(poll(&p, 1, 60000) == 1);
	while ((n = read(fd, buf, sizeof(buf))) > 0)
		continue;
	must(n == 0 || errno == ECONNRESET);
	work_until(write(fd, "x", 1) < 0);
	must(errno == EPIPE || errno == ECONNRESET);
	must_equal(option(fd, SOL_SOCKET, SO_TYPE), SOCK_STREAM);
	must(shutdown(fd, SHUT_RDWR) == 0 || errno == ENOTCONN);
	close(fd);
}

/* Of two connections one end each is closed afterwards. The other end must see an end, be it that
 * or the restore. */
static void tcp_connected(void)
{
	struct address a = loopback(AF_INET);
	int fd = bound(SOCK_STREAM, &a), client[2], server[2];

	signal(SIGPIPE, SIG_IGN);
	must(listen(fd, 5) == 0);
	a = own_address(fd);
	for (int i = 0; i < 2; i++) {
		client[i] = made(AF_INET, SOCK_STREAM);
		must(connect(client[i], &a.u.sa, a.len) == 0);
		must((server[i] = accept(fd, NULL, NULL)) >= 0);
		must(write(client[i], "unread", 6) == 6);
	}
	work_wait();
	close(client[0]);
	close(server[1]);
	is_dead(server[0]);
	is_dead(client[1]);
	/* And anew. */
	serves(fd, &a);
}

/* ---- Unix ---------------------------------------------------------------------------- */

static void unix_listener_at(const char *name, bool abstract)
{
	struct address a = local(name, abstract), now;
	struct stat before, after;
	int fd = bound(SOCK_STREAM, &a);

	must(listen(fd, 21) == 0);
	must(abstract || (chmod(name, 0700) == 0 && stat(name, &before) == 0));
	a = own_address(fd);
	work_wait();
	now = own_address(fd);
	must(same_address(&a, &now));
	if (!abstract) {
		must(stat(name, &after) == 0 && S_ISSOCK(after.st_mode));
		must(after.st_mode == before.st_mode && after.st_uid == before.st_uid);
	}
	serves(fd, &a);
	serves(fd, &a);
}

static void unix_path(void)
{
	unix_listener_at("listener.sock", false);
}

static void unix_abstract(void)
{
	char name[64];

	snprintf(name, sizeof(name), "restorework-%d", (int)getpid());
	unix_listener_at(name, true);
}

static void pair_stream(void)
{
	static char buf[60000];
	int fds[2];

	must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
	work_fill(buf, sizeof(buf), 1);
	must(write(fds[0], buf, sizeof(buf)) == sizeof(buf) && write(fds[1], "back", 4) == 4);
	must(read(fds[1], buf, 777) == 777);
	work_wait();
	memset(buf + 777, 0, sizeof(buf) - 777);
	must(recv(fds[1], buf + 777, sizeof(buf) - 777, MSG_WAITALL) == sizeof(buf) - 777);
	must(work_filled(buf, sizeof(buf), 1));
	must(read(fds[0], buf, sizeof(buf)) == 4 && memcmp(buf, "back", 4) == 0);
	must(write(fds[0], "on", 2) == 2 && read(fds[1], buf, sizeof(buf)) == 2);
	close(fds[0]);
	must(read(fds[1], buf, sizeof(buf)) == 0);
}

static void pair_of(int type)
{
	int fds[2];
	char buf[5000];

	must(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, fds) == 0);
	work_fill(buf, sizeof(buf), 2);
	must(send(fds[0], "one", 3, 0) == 3 && send(fds[0], buf, sizeof(buf), 0) == sizeof(buf));
	must(send(fds[0], "three", 5, 0) == 5 && send(fds[1], "other way", 9, 0) == 9);
	work_wait();
	must_equal(option(fds[0], SOL_SOCKET, SO_TYPE), type);
	must(recv(fds[1], buf, sizeof(buf), 0) == 3 && memcmp(buf, "one", 3) == 0);
	must(recv(fds[1], buf, sizeof(buf), 0) == sizeof(buf) && work_filled(buf, sizeof(buf), 2));
	must(recv(fds[1], buf, sizeof(buf), 0) == 5);
	must(recv(fds[1], buf, sizeof(buf), 0) < 0 && errno == EAGAIN);
	must(recv(fds[0], buf, sizeof(buf), 0) == 9 && memcmp(buf, "other way", 9) == 0);
	must(send(fds[1], "on", 2, 0) == 2 && recv(fds[0], buf, sizeof(buf), 0) == 2);
}

static void pair_dgram(void)
{
	pair_of(SOCK_DGRAM);
}

static void pair_seqpacket(void)
{
	pair_of(SOCK_SEQPACKET);
}

static void pair_half_closed(void)
{
	int shut[2], closed[2];
	char buf[16];

	signal(SIGPIPE, SIG_IGN);
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, shut) == 0);
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, closed) == 0);
	must(write(shut[0], "last", 4) == 4 && shutdown(shut[0], SHUT_WR) == 0);
	must(write(closed[0], "words", 5) == 5);
	close(closed[0]);
	work_wait();
	must(read(shut[1], buf, sizeof(buf)) == 4 && read(shut[1], buf, sizeof(buf)) == 0);
	must(write(shut[0], "x", 1) < 0 && errno == EPIPE);
	must(write(shut[1], "still", 5) == 5 && read(shut[0], buf, sizeof(buf)) == 5);
	must(read(closed[1], buf, sizeof(buf)) == 5 && memcmp(buf, "words", 5) == 0);
	must(read(closed[1], buf, sizeof(buf)) == 0);
	must(write(closed[1], "x", 1) < 0 && errno == EPIPE);
}

/* The others' end is closed when the case goes on, be it by the restore or not. */
static void unix_outside(void)
{
	struct address a = local("served.sock", false);
	int pair[2], fd = bound(SOCK_STREAM, &a), client = made(AF_UNIX, SOCK_STREAM), server;

	signal(SIGPIPE, SIG_IGN);
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	must(listen(fd, 5) == 0 && connect(client, &a.u.sa, a.len) == 0);
	must((server = accept(fd, NULL, NULL)) >= 0);
	must(write(client, "unread", 6) == 6);
	work_hold_outside((int[]){client, pair[1]}, 2);
	work_wait();
	is_dead(pair[0]);
	is_dead(server);
	serves(fd, &a);
}

static void unix_connected(void)
{
	struct address a = local("server.sock", false), now;
	int fd = bound(SOCK_STREAM, &a), client = made(AF_UNIX, SOCK_STREAM), server;
	char buf[16];

	must(listen(fd, 5) == 0 && connect(client, &a.u.sa, a.len) == 0);
	must((server = accept(fd, NULL, NULL)) >= 0);
	must(write(client, "question", 8) == 8 && write(server, "answer", 6) == 6);
	work_wait();
	must(read(server, buf, sizeof(buf)) == 8 && memcmp(buf, "question", 8) == 0);
	must(read(client, buf, sizeof(buf)) == 6 && memcmp(buf, "answer", 6) == 0);
	now = own_address(server);
	must(strcmp(now.u.un.sun_path, "server.sock") == 0);
	must(write(client, "more", 4) == 4 && read(server, buf, sizeof(buf)) == 4);
	serves(fd, &a);
}

static void unix_dgram(void)
{
	struct address a = local("dgram.sock", false), b = local("sender.sock", false), from;
	int fd = bound(SOCK_DGRAM, &a), other = bound(SOCK_DGRAM, &b);
	char buf[64];

	from.len = sizeof(from.u);
	must(sendto(other, "first", 5, 0, &a.u.sa, a.len) == 5);
	must(sendto(other, "second one", 10, 0, &a.u.sa, a.len) == 10);
	work_wait();
	must(recvfrom(fd, buf, sizeof(buf), 0, &from.u.sa, &from.len) == 5);
	must(memcmp(buf, "first", 5) == 0 && strcmp(from.u.un.sun_path, "sender.sock") == 0);
	must(recv(fd, buf, sizeof(buf), 0) == 10 && memcmp(buf, "second one", 10) == 0);
	must(sendto(other, "later", 5, 0, &a.u.sa, a.len) == 5 && recv(fd, buf, 64, 0) == 5);
}

static void unix_options(void)
{
	int fds[2], on = 1;
	struct ucred cred = {0};
	socklen_t len = sizeof(cred);

	must(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
	set_option(fds[0], SOL_SOCKET, SO_PASSCRED, on);
	set_option(fds[1], SOL_SOCKET, SO_SNDBUF, 100000);
	int size = option(fds[1], SOL_SOCKET, SO_SNDBUF);

	work_wait();
	must_equal(option(fds[0], SOL_SOCKET, SO_PASSCRED), 1);
	must_equal(option(fds[1], SOL_SOCKET, SO_SNDBUF), size);
	must(getsockopt(fds[0], SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0);
	must_equal(cred.uid, getuid());
}

/* ---- others --------------------------------------------------------------------------- */

static void netlink(void)
{
	struct {
		struct nlmsghdr h;
		struct rtgenmsg g;
	} ask = {.h = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct rtgenmsg)),
		       .nlmsg_type = RTM_GETLINK,
		       .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}};
	struct address a = {.u.nl = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK},
			    .len = sizeof(a.u.nl)};
	struct address now;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	_Alignas(struct nlmsghdr) char buf[32768];

	must(fd >= 0 && bind(fd, &a.u.sa, a.len) == 0);
	a = own_address(fd);
	work_wait();
	now = own_address(fd);
	must_equal(now.u.nl.nl_groups, RTMGRP_LINK);
	must_equal(now.u.nl.nl_pid, a.u.nl.nl_pid);
	must(send(fd, &ask, ask.h.nlmsg_len, 0) > 0 && recv(fd, buf, sizeof(buf), 0) > 0);
	must(((struct nlmsghdr *)(void *)buf)->nlmsg_type == RTM_NEWLINK);
}

static void unbound(void)
{
	struct address a = loopback(AF_INET);
	int listener = bound(SOCK_STREAM, &a), tcp = made(AF_INET, SOCK_STREAM);
	int idle = made(AF_UNIX, SOCK_STREAM);
	struct address b = loopback(AF_INET), now;
	int waiting = bound(SOCK_STREAM, &b);

	set_option(tcp, IPPROTO_TCP, TCP_NODELAY, 1);
	must(fcntl(tcp, F_SETFL, O_NONBLOCK) == 0 && listen(listener, 5) == 0);
	a = own_address(listener);
	b = own_address(waiting);
	work_wait();
	now = own_address(waiting);
	must(same_address(&b, &now) && listen(waiting, 5) == 0);
	serves(waiting, &b);
	must_equal(option(tcp, IPPROTO_TCP, TCP_NODELAY), 1);
	must(connect(tcp, &a.u.sa, a.len) == 0 || errno == EINPROGRESS);
	a = local("nobody.sock", false);
	must(connect(idle, &a.u.sa, a.len) < 0 && errno == ENOENT);
}

static const struct work works[] = {
	{"tcp-listener", tcp_listener, "listening TCP sockets (IPv4) with their backlog"},
	{"tcp6-listener", tcp6_listener, "listening TCP sockets (IPv6)"},
	{"any-address", any_address,
	 "sockets listening for IPv6 alone, or for both, on all addresses"},
	{"socket-options", options, "socket options: of the socket, of TCP, of IP"},
	{"udp", udp, "bound UDP sockets (IPv4)"},
	{"udp6", udp6, "bound UDP sockets (IPv6)"},
	{"udp-connected", udp_connected, "UDP sockets with a fixed peer"},
	{"tcp-connected", tcp_connected, "connected TCP sockets, as if closed by the peer"},
	{"unbound", unbound, "sockets that are not connected yet, bound or not"},
	{"unix-path", unix_path, "listening Unix sockets under their paths"},
	{"unix-abstract", unix_abstract, "listening Unix sockets with abstract names"},
	{"unix-connected", unix_connected,
	 "Unix connections of the process with itself, with what is queued"},
	{"unix-outside", unix_outside, "Unix connections with others, as if closed by the peer"},
	{"unix-dgram", unix_dgram,
	 "bound Unix datagram sockets, with queued datagrams and their senders"},
	{"unix-options", unix_options, "options of Unix sockets"},
	{"pair-stream", pair_stream, "socket pairs, with what is queued both ways"},
	{"pair-dgram", pair_dgram, "datagram socket pairs, with each queued datagram"},
	{"pair-seqpacket", pair_seqpacket, "seqpacket socket pairs, with each queued packet"},
	{"pair-half-closed", pair_half_closed, "socket pairs shut down or closed at one end"},
	{"netlink", netlink, "netlink sockets with port and groups"},
};

int main(int argc, char **argv)
{
	return work_main(argc, argv, works, WORK_COUNT(works));
}
