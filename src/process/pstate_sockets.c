/*
 * Sockets. One that is connected to somebody outside comes back closed by its
 * peer, so its addresses are all that matters, and sock_diag(7) told them.
 * The others (listening, bound, not yet bound, one end of a pair) are asked
 * for their options in the freeze, when a duplicate does no harm.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/le.h"
#include "common/util.h"
#include "process/pstate_internal.h"

#define TCP_STATE_SYN_SENT 2
#define TCP_STATE_CLOSE 7 /* include/net/tcp_states.h; unix sockets use them too */
#define TCP_STATE_LISTEN 10
#define RCV_SHUTDOWN 1 /* include/net/sock.h */
#define SEND_SHUTDOWN 2
#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

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
	/* A connected datagram socket has no connection that could be lost. */
	if (d->family != AF_UNIX)
		return d->protocol != IPPROTO_TCP;
	return f->pair_inside || d->type == SOCK_DGRAM;
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

	for (size_t i = 0; i < nr_sockopts; i++) {
		if (!sockopt_applies(&sockopts[i], s->domain, s->protocol))
			continue;
		len = sizeof(int);
		if (getsockopt(fd, sockopts[i].level, sockopts[i].option, &s->options[i], &len) ==
		    0)
			s->has_option |= UINT64_C(1) << i;
	}
	len = sizeof(s->linger);
	getsockopt(fd, SOL_SOCKET, SO_LINGER, &s->linger, &len);
	len = sizeof(s->rcvtimeo);
	getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, s->rcvtimeo, &len);
	len = sizeof(s->sndtimeo);
	getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, s->sndtimeo, &len);
	if (s->domain != AF_INET && s->domain != AF_INET6)
		return;
	len = sizeof(s->device) - 1;
	if (getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, s->device, &len) < 0)
		s->device[0] = '\0';
	len = sizeof(s->congestion) - 1;
	if (sock_is_tcp(s->protocol) &&
	    getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, s->congestion, &len) < 0)
		s->congestion[0] = '\0';
}

static void query_tcp(struct sock_state *s, int fd)
{
	struct tcp_info info = {0};
	socklen_t len = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0)
		return;
	if (s->listening == 1) {
		/* For a listener: connections that wait, and how many may. */
		s->backlog = (int)info.tcpi_sacked;
		s->waiting = (int)info.tcpi_unacked;
		return;
	}
	/* A connection that was reset has no peer any more, but has heard of
	 * one. A single answer to the first segment was a refusal. */
	s->connecting = info.tcpi_state == TCP_STATE_SYN_SENT ||
			(info.tcpi_segs_out == 1 && info.tcpi_segs_in == 1);
	s->was_connected = info.tcpi_segs_in > 0;
}

static void query_netlink(struct sock_state *s, int fd)
{
	s->groups_len = sizeof(s->groups);
	if (getsockopt(fd, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, s->groups, &s->groups_len) < 0 ||
	    s->groups_len > sizeof(s->groups))
		s->groups_len = 0;
}

/* What it cannot read any more; what it cannot write tells its other end. */
static void query_shutdown(struct sock_state *s, int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLRDHUP};

	if (s->type == SOCK_DGRAM || poll(&p, 1, 0) <= 0)
		return;
	s->shut_read = p.revents & POLLRDHUP;
	s->shut_both = p.revents & POLLHUP;
}

/* With no room for it the kernel says how long it is; one of eBPF it shows to nobody (EACCES). */
static bool query_filter(int fd)
{
	socklen_t len = 0;
	char none;

	if (getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, &none, &len) < 0)
		return errno == EACCES;
	return len > 0;
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
	if (s->has_peer && sock_is_tcp(s->protocol)) {
		f->sock = s;
		return;
	}
	query_options(s, fd);
	s->has_filter = query_filter(fd);
	if (s->domain == AF_NETLINK)
		query_netlink(s, fd);
	else if (sock_is_tcp(s->protocol) && s->domain != AF_UNIX)
		query_tcp(s, fd);
	if (s->listening != 1) {
		if (s->domain == AF_UNIX)
			query_shutdown(s, fd);
		socket_query_queue(s, fd);
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
json_t *socket_address_json(const void *address, socklen_t len)
{
	const struct sockaddr_storage *ss = address;
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

	for (size_t i = 0; i < nr_sockopts; i++)
		if (s->has_option >> i & 1)
			json_object_set_new(o, sockopts[i].name, json_integer(s->options[i]));
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

static json_t *groups_json(const struct sock_state *s)
{
	unsigned char le[sizeof(s->groups)];

	for (size_t i = 0; i < s->groups_len / 4; i++)
		le_put32(le + 4 * i, s->groups[i]);
	return json_hex(le, s->groups_len / 4 * 4);
}

/* Who cannot read is told by poll(); who cannot write by the list, which is a
 * little older, or by the other end of its pair. */
static void shutdown_json(const struct fd_state *f, json_t *o)
{
	const struct sock_state *s = f->sock;
	unsigned before = f->diag ? f->diag->shutdown : 0;
	bool no_read = s->shut_read || s->shut_both || before & RCV_SHUTDOWN;
	bool no_write = s->shut_both || before & SEND_SHUTDOWN;

	if (no_read || no_write)
		json_object_set_new(o, "shutdown",
				    json_string(!no_write  ? "read"
						: !no_read ? "write"
							   : "both"));
}

/* null: its name was removed, or is somebody else's. */
static void file_json(const struct fd_state *f, json_t *o)
{
	const struct sock_diag *d = f->diag;

	if (d && d->file_known)
		json_object_set_new(o, "file",
				    d->file_there ? json_pack("{s:o,s:I,s:I}", "mode",
							      json_sprintf("0o%o", d->file_mode),
							      "uid", (json_int_t)d->file_uid, "gid",
							      (json_int_t)d->file_gid)
						  : json_null());
}

static json_t *queried_json(const struct fd_state *f)
{
	const struct sock_state *s = f->sock;
	json_t *o = json_pack("{s:o,s:o,s:i,s:b}", "family", family_json(s->domain), "type",
			      type_json(s->type), "protocol", s->protocol, "listening",
			      s->listening == 1);

	if (s->has_local)
		json_object_set_new(o, "local", socket_address_json(&s->local, s->local_len));
	if (s->has_peer)
		json_object_set_new(o, "peer", socket_address_json(&s->peer, s->peer_len));
	json_object_set_new(o, "connected", json_boolean(s->has_peer || s->was_connected));
	if (s->connecting)
		json_object_set_new(o, "connecting", json_true());
	/* A unix listener's numbers are in the lists only. */
	int backlog = s->backlog, waiting = s->waiting;
	if (backlog < 0 && s->listening == 1 && f->diag) {
		backlog = (int)f->diag->wqueue;
		waiting = (int)f->diag->rqueue;
	}
	if (s->listening == 1 && backlog >= 0)
		json_object_set_new(o, "backlog", json_integer(backlog));
	if (s->listening == 1 && waiting > 0)
		json_object_set_new(o, "waiting", json_integer(waiting));
	json_object_set_new(o, "options", options_json(s));
	if (s->groups_len)
		json_object_set_new(o, "groups", groups_json(s));
	if (s->domain == AF_UNIX) {
		shutdown_json(f, o);
		file_json(f, o);
	}
	socket_queue_json(s, o);
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
		if (d->family != AF_UNIX && d->state == TCP_STATE_SYN_SENT)
			json_object_set_new(o, "connecting", json_true());
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
		return sock_is_tcp(protocol) ? "TCP" : protocol == IPPROTO_UDP ? "UDP" : "raw IP";
	return family_name(family) ? family_name(family) : "socket";
}

/* A path, or an abstract name behind '@', as in /proc/net/unix; "" when it has neither. */
static void format_unix(const struct sockaddr_storage *ss, socklen_t len, char *buf, size_t room)
{
	const struct sockaddr_un *un = (const void *)ss;
	size_t offset = offsetof(struct sockaddr_un, sun_path);

	buf[0] = '\0';
	if (ss->ss_family != AF_UNIX || len <= offset)
		return;
	len = MIN(len, (socklen_t)sizeof(*un)) - (socklen_t)offset;
	snprintf(buf, room, "%s%.*s", un->sun_path[0] ? "" : "@",
		 (int)(un->sun_path[0] ? len : len - 1), un->sun_path + !un->sun_path[0]);
}

static void describe(int family, int type, int protocol, const char *from, const char *to,
		     char *buf, size_t room)
{
	if (family == AF_UNIX && !from[0] && !to[0])
		snprintf(buf, room, "a Unix socket");
	else
		snprintf(buf, room, "%s%s%s%s%s", protocol_name(family, type, protocol),
			 from[0] ? " " : "", from, to[0] ? " -> " : "", to);
}

void socket_describe(const struct fd_state *f, char *buf, size_t room, bool *ret_connected)
{
	const struct sock_diag *d = f->diag;
	const struct sock_state *s = f->sock;
	char from[128] = "", to[128] = "";

	*ret_connected = false;
	if (s) {
		if (s->domain == AF_UNIX) {
			format_unix(&s->local, s->local_len, from, sizeof(from));
			format_unix(&s->peer, s->peer_len, to, sizeof(to));
		} else {
			format_address(&s->local, from, sizeof(from));
			format_address(&s->peer, to, sizeof(to));
		}
		*ret_connected = (s->has_peer && s->type != SOCK_DGRAM && !f->pair_inside &&
				  s->domain != AF_NETLINK) ||
				 s->was_connected;
		describe(s->domain, s->type, s->protocol, from, to, buf, room);
	} else if (d) {
		*ret_connected = is_connected(d);
		if (d->family != AF_UNIX) {
			format_diag(d, false, from, sizeof(from));
			format_diag(d, true, to, sizeof(to));
		}
		describe(d->family, d->type, d->protocol, from, to, buf, room);
	} else {
		snprintf(buf, room, "%s", f->link);
	}
}
