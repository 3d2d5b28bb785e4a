/*
 * The kernel's lists of sockets, by sock_diag(7): addresses and states of
 * connected sockets without touching any. Asked before the freeze, in the
 * network namespace of the target.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/util.h"
#include "process/pstate_internal.h"

/* More sockets than this on one machine are not looked through; those of the
 * target are then asked one by one. */
#define DIAG_MAX 1000000

struct diag_list {
	struct sock_diag *v;
	size_t n, room;
};

static struct sock_diag *diag_add(struct diag_list *l)
{
	if (l->n == DIAG_MAX)
		return NULL;
	if (l->n == l->room) {
		size_t room = l->room ? l->room * 2 : 256;
		struct sock_diag *bigger = realloc(l->v, room * sizeof(*bigger));
		if (!bigger)
			return NULL;
		l->v = bigger;
		l->room = room;
	}
	l->v[l->n] = (struct sock_diag){0};
	return &l->v[l->n++];
}

static int take_inet(struct diag_list *l, const struct nlmsghdr *h, int type, int protocol)
{
	const struct inet_diag_msg *m = NLMSG_DATA(h);

	if (h->nlmsg_len < NLMSG_LENGTH(sizeof(*m)) || !m->idiag_inode)
		return 0;
	struct sock_diag *d = diag_add(l);
	if (!d)
		return -ENOMEM;
	d->inode = m->idiag_inode;
	d->family = m->idiag_family;
	d->type = type;
	d->protocol = protocol;
	d->state = m->idiag_state;
	d->rqueue = m->idiag_rqueue;
	d->wqueue = m->idiag_wqueue;
	d->sport = ntohs(m->id.idiag_sport);
	d->dport = ntohs(m->id.idiag_dport);
	memcpy(d->src, m->id.idiag_src, sizeof(d->src));
	memcpy(d->dst, m->id.idiag_dst, sizeof(d->dst));
	return 0;
}

static int take_unix(struct diag_list *l, const struct nlmsghdr *h)
{
	const struct unix_diag_msg *m = NLMSG_DATA(h);

	if (h->nlmsg_len < NLMSG_LENGTH(sizeof(*m)))
		return 0;
	struct sock_diag *d = diag_add(l);
	if (!d)
		return -ENOMEM;
	d->inode = m->udiag_ino;
	d->family = AF_UNIX;
	d->type = m->udiag_type;
	d->state = m->udiag_state;

	size_t left = h->nlmsg_len - NLMSG_LENGTH(sizeof(*m));
	const struct nlattr *a = (const struct nlattr *)(m + 1);
	while (left >= sizeof(*a) && a->nla_len >= sizeof(*a) && a->nla_len <= left) {
		const void *payload = a + 1;
		size_t len = a->nla_len - sizeof(*a), step = NLA_ALIGN(a->nla_len);

		if (a->nla_type == UNIX_DIAG_PEER && len >= 4) {
			uint32_t peer;

			memcpy(&peer, payload, 4);
			d->peer_inode = peer;
		} else if (a->nla_type == UNIX_DIAG_RQLEN &&
			   len >= sizeof(struct unix_diag_rqlen)) {
			struct unix_diag_rqlen q;

			memcpy(&q, payload, sizeof(q));
			d->rqueue = q.udiag_rqueue;
			d->wqueue = q.udiag_wqueue;
		} else if (a->nla_type == UNIX_DIAG_SHUTDOWN && len >= 1) {
			memcpy(&d->shutdown, payload, 1);
		}
		if (step >= left)
			break;
		left -= step;
		a = (const struct nlattr *)((const char *)a + step);
	}
	return 0;
}

/* Sends one request and takes every answer. */
static int dump(int nl, struct diag_list *l, void *request, size_t len, int type, int protocol)
{
	_Alignas(struct nlmsghdr) char buf[32768];
	struct {
		struct nlmsghdr h;
		char body[128];
	} msg = {.h = {.nlmsg_len = (uint32_t)NLMSG_LENGTH(len),
		       .nlmsg_type = SOCK_DIAG_BY_FAMILY,
		       .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP}};

	memcpy(msg.body, request, len);
	if (send(nl, &msg, msg.h.nlmsg_len, 0) < 0)
		return -errno;
	for (;;) {
		ssize_t n = recv(nl, buf, sizeof(buf), 0);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (n == 0)
			return -EPROTO;
		unsigned left = (unsigned)n;
		for (struct nlmsghdr *h = (struct nlmsghdr *)buf; NLMSG_OK(h, left);
		     h = NLMSG_NEXT(h, left)) {
			int r;

			if (h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR)
				return 0; /* an unknown family is no reason to fail */
			r = protocol < 0 ? take_unix(l, h) : take_inet(l, h, type, protocol);
			if (r < 0)
				return r;
		}
	}
}

static int dump_all(int nl, struct diag_list *l)
{
	static const struct {
		int protocol, type;
	} inet[] = {{IPPROTO_TCP, SOCK_STREAM}, {IPPROTO_UDP, SOCK_DGRAM}};
	static const uint8_t families[] = {AF_INET, AF_INET6};
	struct unix_diag_req ur = {.sdiag_family = AF_UNIX,
				   .udiag_states = ~0u,
				   .udiag_show = UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN};
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(inet); i++)
		for (size_t k = 0; k < ARRAY_SIZE(families) && r == 0; k++) {
			struct inet_diag_req_v2 ir = {.sdiag_family = families[k],
						      .sdiag_protocol = (uint8_t)inet[i].protocol,
						      .idiag_states = ~0u};

			r = dump(nl, l, &ir, sizeof(ir), inet[i].type, inet[i].protocol);
		}
	return r < 0 ? r : dump(nl, l, &ur, sizeof(ur), 0, -1);
}

/* ---- the namespace ------------------------------------------------------- */

static int netlink_open(void)
{
	/* Bounded: a lost answer must not hold up the snapshot. */
	struct timeval timeout = {.tv_sec = 2};
	int nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

	if (nl < 0)
		return -errno;
	setsockopt(nl, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	return nl;
}

struct elsewhere {
	int nsfd, nl;
};

/* A socket keeps the namespace it was made in; a thread of its own may go
 * there without taking the others along. */
static void *open_elsewhere(void *arg)
{
	struct elsewhere *e = arg;

	e->nl = setns(e->nsfd, CLONE_NEWNET) < 0 ? -errno : netlink_open();
	return NULL;
}

static int netlink_open_in(const struct pstate *ps)
{
	struct stat own, theirs;
	struct elsewhere e = {.nl = -EIO};
	pthread_t thread;

	cleanup_fd int nsfd = openat(ps->t->procfd, "ns/net", O_RDONLY | O_CLOEXEC);
	if (nsfd < 0 || fstat(nsfd, &theirs) < 0 || stat("/proc/self/ns/net", &own) < 0)
		return -errno;
	if (own.st_dev == theirs.st_dev && own.st_ino == theirs.st_ino)
		return netlink_open();
	e.nsfd = nsfd;
	int r = pthread_create(&thread, NULL, open_elsewhere, &e);
	if (r)
		return -r;
	pthread_join(thread, NULL);
	return e.nl;
}

static int compare_inode(const void *a, const void *b)
{
	uint64_t x = ((const struct sock_diag *)a)->inode, y = ((const struct sock_diag *)b)->inode;

	return (x > y) - (x < y);
}

const struct sock_diag *sockets_find(const struct pstate *ps, uint64_t inode)
{
	struct sock_diag key = {.inode = inode};

	if (!ps->nr_diag)
		return NULL;
	return bsearch(&key, ps->diag, ps->nr_diag, sizeof(key), compare_inode);
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Gives every socket of the target what the lists say of it. */
static int attach(struct pstate *ps)
{
	struct fd_table *t = &ps->prepared;
	size_t n = 0;
	cleanup_free uint64_t *own = malloc(MAX(t->n, (size_t)1) * sizeof(*own));

	if (!own)
		return -ENOMEM;
	for (size_t i = 0; i < t->n; i++)
		if (t->v[i].kind == FD_SOCKET)
			own[n++] = t->v[i].ino;
	qsort(own, n, sizeof(*own), compare_u64);
	for (size_t i = 0; i < t->n; i++) {
		struct fd_state *f = &t->v[i];

		if (f->kind != FD_SOCKET)
			continue;
		f->diag = sockets_find(ps, f->ino);
		f->pair_inside = f->diag && f->diag->peer_inode &&
				 bsearch(&f->diag->peer_inode, own, n, sizeof(*own), compare_u64);
	}
	return 0;
}

/* ---- names in the file system --------------------------------------------- */

struct unix_name {
	char path[sizeof(((struct sockaddr_un *)0)->sun_path) + 1]; /* "": none there */
	bool has_inode;
	uint32_t inode; /* the low half of the socket file's */
};

/* Asks for the name of one socket. Left empty when the list does not say. */
static void ask_name(int nl, uint64_t inode, struct unix_name *ret)
{
	_Alignas(struct nlmsghdr) char buf[1024];
	struct {
		struct nlmsghdr h;
		struct unix_diag_req r;
	} req = {{.nlmsg_len = sizeof(req),
		  .nlmsg_type = SOCK_DIAG_BY_FAMILY,
		  .nlmsg_flags = NLM_F_REQUEST},
		 {.sdiag_family = AF_UNIX,
		  .udiag_states = ~0u,
		  .udiag_ino = (uint32_t)inode,
		  .udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_VFS,
		  .udiag_cookie = {~0u, ~0u}}};

	*ret = (struct unix_name){0};
	ssize_t n = send(nl, &req, sizeof(req), 0) < 0 ? -1 : recv(nl, buf, sizeof(buf), 0);
	const struct nlmsghdr *h = (const struct nlmsghdr *)buf;
	if (n < (ssize_t)NLMSG_LENGTH(sizeof(struct unix_diag_msg)) || h->nlmsg_len > (size_t)n ||
	    h->nlmsg_len < NLMSG_LENGTH(sizeof(struct unix_diag_msg)) ||
	    h->nlmsg_type != SOCK_DIAG_BY_FAMILY)
		return;
	size_t left = h->nlmsg_len - NLMSG_LENGTH(sizeof(struct unix_diag_msg));
	const struct nlattr *a =
		(const struct nlattr *)((const struct unix_diag_msg *)NLMSG_DATA(h) + 1);
	while (left >= sizeof(*a) && a->nla_len >= sizeof(*a) && a->nla_len <= left) {
		const char *payload = (const char *)(a + 1);
		size_t len = a->nla_len - sizeof(*a), step = NLA_ALIGN(a->nla_len);
		struct unix_diag_vfs vfs;

		if (a->nla_type == UNIX_DIAG_NAME && len && payload[0]) {
			memcpy(ret->path, payload, MIN(len, sizeof(ret->path) - 1));
		} else if (a->nla_type == UNIX_DIAG_VFS && len >= sizeof(vfs)) {
			memcpy(&vfs, payload, sizeof(vfs));
			ret->inode = vfs.udiag_vfs_ino;
			ret->has_inode = true;
		}
		if (step >= left)
			break;
		left -= step;
		a = (const struct nlattr *)((const char *)a + step);
	}
}

/* As the target sees the path: below its root, or from its working directory. */
static int stat_as_target(const struct pstate *ps, const char *path, struct stat *st)
{
	struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
			       .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	bool absolute = path[0] == '/';

	cleanup_fd int dir =
		openat(ps->t->procfd, absolute ? "root" : "cwd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return -errno;
	if (!absolute)
		return fstatat(dir, path, st, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
	cleanup_fd int fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof(how));
	return fd < 0 || fstat(fd, st) < 0 ? -errno : 0;
}

/* A restore makes the file anew, with its mode and owner; unless it is not
 * the socket's own any more: removed, or made by another process since. */
static void look_at_files(struct pstate *ps, int nl)
{
	struct fd_table *t = &ps->prepared;

	for (size_t i = 0; i < t->n; i++) {
		struct sock_diag *d = (struct sock_diag *)t->v[i].diag;
		struct unix_name name;
		struct stat st;

		if (t->v[i].kind != FD_SOCKET || !d || d->family != AF_UNIX || d->file_known ||
		    !socket_needs_query(&t->v[i]))
			continue;
		ask_name(nl, d->inode, &name);
		if (!name.path[0] || !name.has_inode)
			continue;
		int r = stat_as_target(ps, name.path, &st);
		if (r < 0 && r != -ENOENT)
			continue;
		d->file_known = true;
		d->file_there = r == 0 && S_ISSOCK(st.st_mode) && (uint32_t)st.st_ino == name.inode;
		if (!d->file_there)
			continue;
		d->file_mode = st.st_mode & 07777;
		d->file_uid = st.st_uid;
		d->file_gid = st.st_gid;
	}
}

int sockets_prepare(struct pstate *ps)
{
	struct diag_list l = {0};
	cleanup_fd int nl = netlink_open_in(ps);

	/* Without the lists every socket is asked in the freeze. */
	if (nl < 0)
		return 0;
	if (dump_all(nl, &l) < 0) {
		free(l.v);
		return 0;
	}
	qsort(l.v, l.n, sizeof(*l.v), compare_inode);
	ps->diag = l.v;
	ps->nr_diag = l.n;
	int r = attach(ps);
	if (r == 0)
		look_at_files(ps, nl);
	return r;
}
