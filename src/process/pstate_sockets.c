/*
 * Sockets. One that is connected to somebody outside comes back closed by its
 * peer, so its addresses are all that matters, and sock_diag(7) told them.
 * The others (listening, bound, not yet bound, one end of a pair) are asked
 * for their options in the freeze, when a duplicate does no harm.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/util.h"
#include "process/pstate_internal.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72 /* Linux 5.14 */
#endif

#define TCP_STATE_CLOSE 7 /* include/net/tcp_states.h; unix sockets use them too */
#define TCP_STATE_LISTEN 10
/* What is queued in a pair, copied out while the target stands still. */
#define QUEUE_DATA_MAX MIB(1)

/* Options that are an int. All of them are set again by a restore. */
static const struct {
	const char *name;
	int level, option, family; /* family 0: any; -1: any but AF_UNIX, where it means nothing */
} options[] = {
	{"reuseaddr", SOL_SOCKET, SO_REUSEADDR, -1},
	{"reuseport", SOL_SOCKET, SO_REUSEPORT, -1},
	{"keepalive", SOL_SOCKET, SO_KEEPALIVE, -1},
	{"broadcast", SOL_SOCKET, SO_BROADCAST, -1},
	{"oobinline", SOL_SOCKET, SO_OOBINLINE, -1},
	{"priority", SOL_SOCKET, SO_PRIORITY, -1},
	{"rcvbuf", SOL_SOCKET, SO_RCVBUF, 0},
	{"sndbuf", SOL_SOCKET, SO_SNDBUF, 0},
	{"buf_lock", SOL_SOCKET, SO_BUF_LOCK, 0},
	{"rcvlowat", SOL_SOCKET, SO_RCVLOWAT, 0},
	{"passcred", SOL_SOCKET, SO_PASSCRED, AF_UNIX},
	{"passsec", SOL_SOCKET, SO_PASSSEC, AF_UNIX},
	{"mark", SOL_SOCKET, SO_MARK, -1},
	{"timestamp", SOL_SOCKET, SO_TIMESTAMP, -1},
	{"busy_poll", SOL_SOCKET, SO_BUSY_POLL, -1},
	{"ip_tos", IPPROTO_IP, IP_TOS, AF_INET},
	{"ip_ttl", IPPROTO_IP, IP_TTL, AF_INET},
	{"ip_freebind", IPPROTO_IP, IP_FREEBIND, AF_INET},
	{"ip_transparent", IPPROTO_IP, IP_TRANSPARENT, AF_INET},
	{"ip_pktinfo", IPPROTO_IP, IP_PKTINFO, AF_INET},
	{"ipv6_v6only", IPPROTO_IPV6, IPV6_V6ONLY, AF_INET6},
	{"ipv6_tclass", IPPROTO_IPV6, IPV6_TCLASS, AF_INET6},
	{"ipv6_recvpktinfo", IPPROTO_IPV6, IPV6_RECVPKTINFO, AF_INET6},
	{"tcp_nodelay", IPPROTO_TCP, TCP_NODELAY, 0},
	{"tcp_keepidle", IPPROTO_TCP, TCP_KEEPIDLE, 0},
	{"tcp_keepintvl", IPPROTO_TCP, TCP_KEEPINTVL, 0},
	{"tcp_keepcnt", IPPROTO_TCP, TCP_KEEPCNT, 0},
	{"tcp_defer_accept", IPPROTO_TCP, TCP_DEFER_ACCEPT, 0},
	{"tcp_user_timeout", IPPROTO_TCP, TCP_USER_TIMEOUT, 0},
	{"tcp_fastopen", IPPROTO_TCP, TCP_FASTOPEN, 0},
	{"tcp_cork", IPPROTO_TCP, TCP_CORK, 0},
};
_Static_assert(ARRAY_SIZE(options) <= SOCK_NR_OPTIONS, "SOCK_NR_OPTIONS");

static bool is_connected(const struct sock_diag *d)
{
	return d->family == AF_UNIX ? d->peer_inode != 0
				    : d->state != TCP_STATE_LISTEN && d->state != TCP_STATE_CLOSE;
}

bool socket_needs_query(const struct fd_state *f)
{
	const struct sock_diag *d = f->diag;

	if (!d || !is_connected(d))
		return true;
	/* A connected UDP socket has no connection that could be lost. */
	if (d->family != AF_UNIX)
		return d->protocol != IPPROTO_TCP;
	return f->pair_inside;
}

/* ---- in the freeze ------------------------------------------------------- */

static int get_int(int fd, int level, int option)
{
	int v = 0;
	socklen_t len = sizeof(v);

	return getsockopt(fd, level, option, &v, &len) < 0 ? -1 : v;
}

static void query_options(struct sock_state *s, int fd)
{
	socklen_t len;

	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		if (options[i].family == -1 ? s->domain == AF_UNIX
					    : options[i].family && options[i].family != s->domain)
			continue;
		if (options[i].level == IPPROTO_TCP && s->protocol != IPPROTO_TCP)
			continue;
		len = sizeof(int);
		if (getsockopt(fd, options[i].level, options[i].option, &s->options[i], &len) == 0)
			s->has_option |= UINT64_C(1) << i;
	}
	len = sizeof(s->linger);
	getsockopt(fd, SOL_SOCKET, SO_LINGER, &s->linger, &len);
	len = sizeof(s->rcvtimeo);
	getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, s->rcvtimeo, &len);
	len = sizeof(s->sndtimeo);
	getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, s->sndtimeo, &len);
	if (s->domain == AF_UNIX)
		return;
	len = sizeof(s->device) - 1;
	if (getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, s->device, &len) < 0)
		s->device[0] = '\0';
	len = sizeof(s->congestion) - 1;
	if (s->protocol == IPPROTO_TCP &&
	    getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, s->congestion, &len) < 0)
		s->congestion[0] = '\0';
}

/* A stream's queue as it stands; messages have borders that a copy would lose. */
static void query_queue(struct sock_state *s, int fd)
{
	if (ioctl(fd, FIONREAD, &s->queued) < 0)
		s->queued = -1;
	if (s->queued <= 0 || s->domain != AF_UNIX || s->type != SOCK_STREAM ||
	    (size_t)s->queued > QUEUE_DATA_MAX)
		return;
	s->data = malloc((size_t)s->queued);
	if (!s->data)
		return;
	struct iovec iov = {s->data, (size_t)s->queued};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n = recvmsg(fd, &msg, MSG_PEEK | MSG_DONTWAIT);
	if (n > 0)
		s->data_len = (size_t)n;
	s->has_rights = msg.msg_flags & MSG_CTRUNC;
}

void socket_query(struct fd_state *f, int fd)
{
	struct sock_state *s = calloc(1, sizeof(*s));

	if (!s)
		return;
	s->domain = get_int(fd, SOL_SOCKET, SO_DOMAIN);
	s->type = get_int(fd, SOL_SOCKET, SO_TYPE);
	s->protocol = get_int(fd, SOL_SOCKET, SO_PROTOCOL);
	s->listening = get_int(fd, SOL_SOCKET, SO_ACCEPTCONN);
	s->local_len = sizeof(s->local);
	s->has_local = getsockname(fd, (struct sockaddr *)&s->local, &s->local_len) == 0;
	s->peer_len = sizeof(s->peer);
	s->has_peer = getpeername(fd, (struct sockaddr *)&s->peer, &s->peer_len) == 0;
	s->backlog = s->queued = -1;
	/* Connected since prepare: nothing more matters, and there may be many. */
	if (s->has_peer && s->protocol == IPPROTO_TCP) {
		f->sock = s;
		return;
	}
	query_options(s, fd);
	if (s->listening == 1 && s->protocol == IPPROTO_TCP) {
		struct tcp_info info = {0};
		socklen_t len = sizeof(info);

		/* For a listener: connections that wait, and how many may. */
		if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0)
			s->backlog = (int)info.tcpi_sacked;
	} else if (s->listening != 1) {
		query_queue(s, fd);
	}
	f->sock = s;
}

/* ---- afterwards ---------------------------------------------------------- */

static const char *family_name(int family)
{
	switch (family) {
	case AF_UNIX:
		return "unix";
	case AF_INET:
		return "inet";
	case AF_INET6:
		return "inet6";
	case AF_NETLINK:
		return "netlink";
	case AF_PACKET:
		return "packet";
	}
	return NULL;
}

static json_t *family_json(int family)
{
	const char *name = family_name(family);

	return name ? json_string(name) : json_integer(family);
}

static json_t *type_json(int type)
{
	static const char *const names[] = {NULL, "stream", "dgram", "raw", "rdm", "seqpacket"};

	if ((size_t)type < ARRAY_SIZE(names) && names[type])
		return json_string(names[type]);
	return json_integer(type);
}

static void format_address(const struct sockaddr_storage *ss, char *buf, size_t room)
{
	char ip[INET6_ADDRSTRLEN] = "?";

	if (ss->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)ss;

		inet_ntop(AF_INET, &in->sin_addr, ip, sizeof(ip));
		snprintf(buf, room, "%s:%u", ip, ntohs(in->sin_port));
	} else if (ss->ss_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)ss;

		inet_ntop(AF_INET6, &in6->sin6_addr, ip, sizeof(ip));
		snprintf(buf, room, "[%s]:%u", ip, ntohs(in6->sin6_port));
	} else {
		snprintf(buf, room, "%s", "");
	}
}

static void format_diag(const struct sock_diag *d, bool peer, char *buf, size_t room)
{
	char ip[INET6_ADDRSTRLEN] = "?";

	inet_ntop(d->family, peer ? d->dst : d->src, ip, sizeof(ip));
	snprintf(buf, room, d->family == AF_INET6 ? "[%s]:%u" : "%s:%u", ip,
		 peer ? d->dport : d->sport);
}

/* {"raw": the sockaddr in hex, "text": for people, "path": AF_UNIX} */
static json_t *address_json(const struct sockaddr_storage *ss, socklen_t len)
{
	json_t *o = json_object();
	char text[128];

	len = MIN(len, (socklen_t)sizeof(*ss));
	json_object_set_new(o, "raw", json_hex(ss, len));
	if (ss->ss_family == AF_UNIX) {
		const struct sockaddr_un *un = (const void *)ss;
		size_t offset = offsetof(struct sockaddr_un, sun_path);
		size_t path_len = len > offset ? len - offset : 0;

		if (path_len && un->sun_path[0])
			json_set_textn(o, "path", un->sun_path, strnlen(un->sun_path, path_len));
		else if (path_len)
			json_set_textn(o, "abstract", un->sun_path + 1, path_len - 1);
	} else {
		format_address(ss, text, sizeof(text));
		if (text[0])
			json_object_set_new(o, "text", json_string(text));
	}
	return o;
}

static json_t *options_json(const struct sock_state *s)
{
	json_t *o = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(options); i++)
		if (s->has_option >> i & 1)
			json_object_set_new(o, options[i].name, json_integer(s->options[i]));
	if (s->linger.onoff)
		json_object_set_new(o, "linger_s", json_integer(s->linger.linger));
	if (s->rcvtimeo[0] || s->rcvtimeo[1])
		json_object_set_new(o, "rcvtimeo_us",
				    json_integer(s->rcvtimeo[0] * 1000000 + s->rcvtimeo[1]));
	if (s->sndtimeo[0] || s->sndtimeo[1])
		json_object_set_new(o, "sndtimeo_us",
				    json_integer(s->sndtimeo[0] * 1000000 + s->sndtimeo[1]));
	if (s->device[0])
		json_set_textn(o, "bindtodevice", s->device, strnlen(s->device, sizeof(s->device)));
	if (s->congestion[0])
		json_set_textn(o, "tcp_congestion", s->congestion,
			       strnlen(s->congestion, sizeof(s->congestion)));
	return o;
}

static json_t *queried_json(const struct fd_state *f)
{
	const struct sock_state *s = f->sock;
	json_t *o = json_pack("{s:o,s:o,s:i,s:b}", "family", family_json(s->domain), "type",
			      type_json(s->type), "protocol", s->protocol, "listening",
			      s->listening == 1);

	if (s->has_local)
		json_object_set_new(o, "local", address_json(&s->local, s->local_len));
	if (s->has_peer)
		json_object_set_new(o, "peer", address_json(&s->peer, s->peer_len));
	json_object_set_new(o, "connected", json_boolean(s->has_peer));
	/* A unix listener's backlog is in the lists only. */
	int backlog = s->backlog;
	if (backlog < 0 && s->listening == 1 && f->diag)
		backlog = (int)f->diag->wqueue;
	if (s->listening == 1 && backlog >= 0)
		json_object_set_new(o, "backlog", json_integer(backlog));
	json_object_set_new(o, "options", options_json(s));
	if (s->queued > 0)
		json_object_set_new(o, "queued", json_integer(s->queued));
	if (s->data_len)
		json_object_set_new(o, "data", json_hex(s->data, s->data_len));
	return o;
}

json_t *socket_json(const struct fd_state *f)
{
	const struct sock_diag *d = f->diag;
	char text[128];

	json_t *o = f->sock ? queried_json(f) : json_object();
	if (!d)
		return o;
	if (!f->sock) {
		json_object_set_new(o, "family", family_json(d->family));
		json_object_set_new(o, "type", type_json(d->type));
		json_object_set_new(o, "protocol", json_integer(d->protocol));
		json_object_set_new(o, "listening", json_boolean(d->state == TCP_STATE_LISTEN));
		json_object_set_new(o, "connected", json_boolean(is_connected(d)));
	}
	if (d->family == AF_UNIX && d->peer_inode)
		json_object_set_new(o, "peer_inode", json_integer((json_int_t)d->peer_inode));
	if (d->family != AF_UNIX && !f->sock) {
		format_diag(d, false, text, sizeof(text));
		json_object_set_new(o, "local", json_pack("{s:s}", "text", text));
		format_diag(d, true, text, sizeof(text));
		json_object_set_new(o, "peer", json_pack("{s:s}", "text", text));
	}
	return o;
}

static const char *protocol_name(int family, int type, int protocol)
{
	if (family == AF_UNIX)
		return "unix";
	if (family == AF_INET || family == AF_INET6)
		return protocol == IPPROTO_TCP ? "TCP" : protocol == IPPROTO_UDP ? "UDP" : "raw IP";
	return family_name(family) ? family_name(family) : "socket";
}

void socket_describe(const struct fd_state *f, char *buf, size_t room, bool *ret_connected)
{
	const struct sock_diag *d = f->diag;
	const struct sock_state *s = f->sock;
	char from[128] = "", to[128] = "";

	*ret_connected = false;
	if (s) {
		format_address(&s->local, from, sizeof(from));
		format_address(&s->peer, to, sizeof(to));
		*ret_connected = s->has_peer && s->type != SOCK_DGRAM && !f->pair_inside;
		snprintf(buf, room, "%s %s%s%s", protocol_name(s->domain, s->type, s->protocol),
			 from, to[0] ? " -> " : "", to);
	} else if (d) {
		*ret_connected = is_connected(d);
		if (d->family != AF_UNIX) {
			format_diag(d, false, from, sizeof(from));
			format_diag(d, true, to, sizeof(to));
		}
		snprintf(buf, room, "%s %s%s%s", protocol_name(d->family, d->type, d->protocol),
			 from, to[0] ? " -> " : "", to);
	} else {
		snprintf(buf, room, "%s", f->link);
	}
}
