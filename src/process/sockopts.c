/* The options of sockets that an image holds; sockopts.h has the rules. */
#include "process/sockopts.h"

#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "common/util.h"

/* Values from include/uapi of Linux 6.18, where the headers are older. */
#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72 /* Linux 5.14 */
#endif
#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76 /* Linux 6.5 */
#endif
#ifndef SOL_NETLINK
#define SOL_NETLINK 270
#endif

const struct sockopt sockopts[] = {
	{"reuseaddr", SOL_SOCKET, SO_REUSEADDR, -1, SOCKOPT_EARLY},
	{"reuseport", SOL_SOCKET, SO_REUSEPORT, -1, SOCKOPT_EARLY},
	{"keepalive", SOL_SOCKET, SO_KEEPALIVE, -1, 0},
	{"broadcast", SOL_SOCKET, SO_BROADCAST, -1, SOCKOPT_EARLY},
	{"oobinline", SOL_SOCKET, SO_OOBINLINE, -1, 0},
	{"dontroute", SOL_SOCKET, SO_DONTROUTE, -1, 0},
	{"rcvbuf", SOL_SOCKET, SO_RCVBUF, 0, SOCKOPT_APART},
	{"sndbuf", SOL_SOCKET, SO_SNDBUF, 0, SOCKOPT_APART},
	{"buf_lock", SOL_SOCKET, SO_BUF_LOCK, 0, SOCKOPT_APART},
	{"rcvlowat", SOL_SOCKET, SO_RCVLOWAT, 0, 0},
	{"passcred", SOL_SOCKET, SO_PASSCRED, AF_UNIX, SOCKOPT_EARLY},
	{"passsec", SOL_SOCKET, SO_PASSSEC, AF_UNIX, SOCKOPT_EARLY},
	{"passpidfd", SOL_SOCKET, SO_PASSPIDFD, AF_UNIX, SOCKOPT_EARLY},
	{"peek_off", SOL_SOCKET, SO_PEEK_OFF, AF_UNIX, SOCKOPT_APART},
	{"mark", SOL_SOCKET, SO_MARK, -1, SOCKOPT_EARLY},
	{"timestamp", SOL_SOCKET, SO_TIMESTAMP, -1, 0},
	{"timestampns", SOL_SOCKET, SO_TIMESTAMPNS, -1, 0},
	{"busy_poll", SOL_SOCKET, SO_BUSY_POLL, -1, SOCKOPT_SOFT},
	{"ip_tos", IPPROTO_IP, IP_TOS, AF_INET, 0},
	/* Set by IP_TOS too. */
	{"priority", SOL_SOCKET, SO_PRIORITY, -1, SOCKOPT_SOFT},
	{"ip_ttl", IPPROTO_IP, IP_TTL, AF_INET, 0},
	{"ip_freebind", IPPROTO_IP, IP_FREEBIND, AF_INET, SOCKOPT_EARLY},
	{"ip_transparent", IPPROTO_IP, IP_TRANSPARENT, AF_INET, SOCKOPT_EARLY},
	{"ip_pktinfo", IPPROTO_IP, IP_PKTINFO, AF_INET, 0},
	{"ip_mtu_discover", IPPROTO_IP, IP_MTU_DISCOVER, AF_INET, 0},
	{"ip_recverr", IPPROTO_IP, IP_RECVERR, AF_INET, 0},
	{"ip_multicast_ttl", IPPROTO_IP, IP_MULTICAST_TTL, AF_INET, 0},
	{"ip_multicast_loop", IPPROTO_IP, IP_MULTICAST_LOOP, AF_INET, 0},
	{"ipv6_v6only", IPPROTO_IPV6, IPV6_V6ONLY, AF_INET6, SOCKOPT_EARLY},
	{"ipv6_tclass", IPPROTO_IPV6, IPV6_TCLASS, AF_INET6, 0},
	{"ipv6_recvpktinfo", IPPROTO_IPV6, IPV6_RECVPKTINFO, AF_INET6, 0},
	{"ipv6_unicast_hops", IPPROTO_IPV6, IPV6_UNICAST_HOPS, AF_INET6, 0},
	{"ipv6_multicast_hops", IPPROTO_IPV6, IPV6_MULTICAST_HOPS, AF_INET6, 0},
	{"ipv6_multicast_loop", IPPROTO_IPV6, IPV6_MULTICAST_LOOP, AF_INET6, 0},
	{"ipv6_recverr", IPPROTO_IPV6, IPV6_RECVERR, AF_INET6, 0},
	{"tcp_nodelay", IPPROTO_TCP, TCP_NODELAY, 0, 0},
	{"tcp_keepidle", IPPROTO_TCP, TCP_KEEPIDLE, 0, 0},
	{"tcp_keepintvl", IPPROTO_TCP, TCP_KEEPINTVL, 0, 0},
	{"tcp_keepcnt", IPPROTO_TCP, TCP_KEEPCNT, 0, 0},
	{"tcp_syncnt", IPPROTO_TCP, TCP_SYNCNT, 0, 0},
	{"tcp_linger2", IPPROTO_TCP, TCP_LINGER2, 0, 0},
	{"tcp_defer_accept", IPPROTO_TCP, TCP_DEFER_ACCEPT, 0, 0},
	{"tcp_user_timeout", IPPROTO_TCP, TCP_USER_TIMEOUT, 0, 0},
	{"tcp_fastopen", IPPROTO_TCP, TCP_FASTOPEN, 0, SOCKOPT_SOFT},
	{"tcp_cork", IPPROTO_TCP, TCP_CORK, 0, 0},
	{"netlink_pktinfo", SOL_NETLINK, NETLINK_PKTINFO, AF_NETLINK, 0},
	{"netlink_broadcast_error", SOL_NETLINK, NETLINK_BROADCAST_ERROR, AF_NETLINK, 0},
	{"netlink_no_enobufs", SOL_NETLINK, NETLINK_NO_ENOBUFS, AF_NETLINK, 0},
	{"netlink_listen_all_nsid", SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, AF_NETLINK, 0},
	{"netlink_cap_ack", SOL_NETLINK, NETLINK_CAP_ACK, AF_NETLINK, 0},
	{"netlink_ext_ack", SOL_NETLINK, NETLINK_EXT_ACK, AF_NETLINK, 0},
	{"netlink_get_strict_chk", SOL_NETLINK, NETLINK_GET_STRICT_CHK, AF_NETLINK, 0},
};
const size_t nr_sockopts = ARRAY_SIZE(sockopts);
_Static_assert(ARRAY_SIZE(sockopts) <= SOCKOPTS_MAX, "SOCKOPTS_MAX");

bool sock_is_tcp(int protocol)
{
	return protocol == IPPROTO_TCP || protocol == 262; /* IPPROTO_MPTCP */
}

bool sockopt_applies(const struct sockopt *o, int family, int protocol)
{
	if (o->family == -1 ? family == AF_UNIX || family == AF_NETLINK
			    : o->family && o->family != family)
		return false;
	return o->level != IPPROTO_TCP ||
	       (sock_is_tcp(protocol) && (family == AF_INET || family == AF_INET6));
}
