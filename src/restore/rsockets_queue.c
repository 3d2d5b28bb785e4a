/*
 * What waits in a Unix socket, sent once more: by the other end of a pair, or
 * to a bound datagram socket by the socket that had sent it, where the
 * process has that, else by one without a name.
 */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>

#include "common/util.h"
#include "restore/rsockets_internal.h"

union control {
	char buf[CMSG_SPACE(sizeof(struct ucred))];
	struct cmsghdr align;
};

/* Who sent it, as far as the kernel lets us say so. What the process had sent
 * itself is sent by it again: the builder has its PID. */
static void add_cred(const struct rsockets *s, const struct rsock_message *m, struct msghdr *h,
		     union control *control)
{
	struct ucred cred = m->cred;

	if (!m->has_cred)
		return;
	if (cred.pid == s->image_pid)
		cred.pid = getpid();
	*control = (union control){0};
	h->msg_control = control->buf;
	h->msg_controllen = sizeof(control->buf);
	struct cmsghdr *c = CMSG_FIRSTHDR(h);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_CREDENTIALS;
	c->cmsg_len = CMSG_LEN(sizeof(cred));
	memcpy(CMSG_DATA(c), &cred, sizeof(cred));
}

static int send_one(const struct rsockets *s, const struct rsock_message *m,
		    const struct rsock_address *to, int fd)
{
	struct iovec iov = {m->data, m->len};
	union control control;
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};

	if (to) {
		h.msg_name = (void *)&to->ss;
		h.msg_namelen = to->len;
	}
	add_cred(s, m, &h, &control);
	ssize_t n = sendmsg(fd, &h, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0 && (errno == EPERM || errno == ESRCH) && h.msg_control) {
		/* Others may not be spoken for: then it is from ourselves. */
		h.msg_control = NULL;
		h.msg_controllen = 0;
		n = sendmsg(fd, &h, MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	return n < 0 ? -errno : (size_t)n == m->len ? 0 : -ENOBUFS;
}

static int send_stream(const unsigned char *p, size_t len, int fd)
{
	while (len) {
		ssize_t n = send(fd, p, len, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

/* Room for all at once: the other's size is what it has to be for the process
 * only after this. */
static void widen(int fd)
{
	int size = 2 * RSOCK_QUEUE_MAX;

	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

static int restore_size(int fd, int size)
{
	int half = size / 2;

	/* The kernel keeps in mind that a size was chosen; with SO_BUF_LOCK it forgets. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &half, sizeof(half)) < 0)
		return -errno;
#ifdef SO_BUF_LOCK
	int lock = 0;
	setsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &lock, sizeof(lock));
#endif
	return 0;
}

static int fill_failed(const struct rsocket *x, int code, struct usnap_err *err)
{
	usnap_fail_errno(err, code, "cannot fill the queue of '%s'", x->text);
	return code == -EAGAIN || code == -ENOBUFS
		       ? usnap_hint(err, "raise net.core.wmem_max and net.unix.max_dgram_qlen")
		       : code;
}

int rsock_queue_fill(const struct rsockets *s, const struct rsocket *x, int fd,
		     struct usnap_err *err)
{
	int size = 0, r = 0;
	socklen_t len = sizeof(size);

	if (!x->data_len && !x->nr_messages)
		return 0;
	if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &len) < 0)
		return fill_failed(x, -errno, err);
	widen(fd);
	if (x->type == SOCK_STREAM)
		r = send_stream(x->data, x->data_len, fd);
	for (size_t i = 0; i < x->nr_messages && r == 0; i++)
		r = send_one(s, &x->messages[i], NULL, fd);
	if (r == 0)
		r = restore_size(fd, size);
	return r < 0 ? fill_failed(x, r, err) : 0;
}

static bool same_address(const struct rsock_address *a, const struct rsock_address *b)
{
	return a->len == b->len && !memcmp(&a->ss, &b->ss, a->len);
}

/* -1: none of ours. */
static int sender_of(const struct rsockets *s, const struct rsock_address *from)
{
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].family == AF_UNIX && s->v[i].held >= 0 && s->v[i].local.len &&
		    same_address(&s->v[i].local, from))
			return s->v[i].held;
	return -1;
}

int rsock_queue_deliver(const struct rsockets *s, const struct rsocket *x, struct usnap_err *err)
{
	struct rsock_place place;
	int r = 0;

	if (!x->nr_messages || x->nameless)
		return 0;
	cleanup_fd int nobody = socket(AF_UNIX, x->type | SOCK_CLOEXEC, 0);
	if (nobody < 0)
		return fill_failed(x, -errno, err);
	widen(nobody);
	if ((r = rsock_enter(s, &x->local, &place)) < 0)
		return fill_failed(x, r, err);
	for (size_t i = 0; i < x->nr_messages && r == 0; i++) {
		const struct rsock_message *m = &x->messages[i];
		int from = m->from.len > offsetof(struct sockaddr_un, sun_path)
				   ? sender_of(s, &m->from)
				   : nobody;

		/* From somebody outside who has a name: could not be answered (noted). */
		if (from >= 0)
			r = send_one(s, m, &x->local, from);
	}
	rsock_leave(&place);
	return r < 0 ? fill_failed(x, r, err) : 0;
}
