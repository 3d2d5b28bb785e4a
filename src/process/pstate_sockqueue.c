/*
 * What waits in a Unix socket, looked at and left there (MSG_PEEK), while the
 * target stands still. SO_PEEK_OFF walks from message to message; it is the
 * socket's, so it is put back.
 *
 * An empty message is marked by the kernel when it is looked at in this way,
 * and passed over by the next look: of two images of one process that does
 * not read in between, only the first has it.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "common/util.h"
#include "process/pstate_internal.h"

/* Of one socket. */
#define QUEUE_DATA_MAX MIB(1)
#define QUEUE_MESSAGES_MAX 4096

static void take_control(struct sock_state *s, struct msghdr *h, struct sock_message *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS &&
		    c->cmsg_len >= CMSG_LEN(sizeof(struct ucred))) {
			memcpy(&m->cred, CMSG_DATA(c), sizeof(m->cred));
			m->has_cred = true;
		} else if (c->cmsg_type == SCM_RIGHTS) {
			/* Duplicates, which are ours to close. */
			s->has_rights = true;
			for (size_t at = CMSG_LEN(0); at + sizeof(int) <= c->cmsg_len;
			     at += sizeof(int)) {
				int fd;

				memcpy(&fd, (unsigned char *)c + at, sizeof(fd));
				close(fd);
			}
		}
	}
	/* More than there was room for can only have been descriptors. */
	if (h->msg_flags & MSG_CTRUNC)
		s->has_rights = true;
}

/* 1: one more; 0: there is none, or no room; -errno. */
static int peek_one(struct sock_state *s, int fd, size_t room)
{
	_Alignas(struct cmsghdr) char control[256];
	struct iovec iov = {s->data + s->data_len, room - s->data_len};
	struct sock_message m = {0};
	struct msghdr h = {.msg_name = &m.from,
			   .msg_namelen = sizeof(m.from),
			   .msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};

	ssize_t n = recvmsg(fd, &h, MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return errno == EAGAIN ? 0 : -errno;
	take_control(s, &h, &m);
	if (s->type == SOCK_STREAM) {
		s->data_len += (size_t)n;
		return n > 0;
	}
	if (h.msg_flags & MSG_TRUNC || s->nr_messages == QUEUE_MESSAGES_MAX)
		return -ENOBUFS;
	/* Or the end: a connection that was ended has no end of empty messages. */
	if (n == 0 && s->type == SOCK_SEQPACKET && s->shut_read)
		return 0;
	if (s->nr_messages % 16 == 0) {
		struct sock_message *more =
			reallocarray(s->messages, s->nr_messages + 16, sizeof(*more));
		if (!more)
			return -ENOMEM;
		s->messages = more;
	}
	m.len = (size_t)n;
	m.from_len = MIN(h.msg_namelen, (socklen_t)sizeof(m.from));
	s->messages[s->nr_messages++] = m;
	s->data_len += (size_t)n;
	return 1;
}

static void peek_all(struct sock_state *s, int fd)
{
	int old = -1, from = 0, r;
	socklen_t len = sizeof(old);
	/* Untouched pages of it cost nothing. */
	size_t room = QUEUE_DATA_MAX;

	s->data = malloc(room);
	if (!s->data || getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &old, &len) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &from, sizeof(from)) < 0)
		return;
	do
		r = peek_one(s, fd, room);
	while (r > 0);
	setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &old, sizeof(old));
	/* Of datagrams, the kernel tells the length of the first alone. */
	s->whole = r == 0 && (s->type == SOCK_DGRAM || s->data_len == (size_t)s->queued);
}

void socket_query_queue(struct sock_state *s, int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	if (ioctl(fd, FIONREAD, &s->queued) < 0)
		s->queued = -1;
	if (s->domain != AF_UNIX || poll(&p, 1, 0) <= 0 || !(p.revents & POLLIN))
		return;
	if (s->type != SOCK_STREAM || s->queued > 0)
		peek_all(s, fd);
}

bool socket_queue_lost(const struct fd_state *f)
{
	const struct sock_state *s = f->sock;

	return s && s->listening != 1 && (s->queued > 0 || s->data) && !s->whole;
}

/* ---- afterwards ---------------------------------------------------------- */

static json_t *message_json(const struct sock_message *m, const unsigned char *data)
{
	json_t *o = json_pack("{s:o}", "data", json_hex(data, m->len));

	if (m->from_len > sizeof(sa_family_t))
		json_object_set_new(o, "from", socket_address_json(&m->from, m->from_len));
	if (m->has_cred)
		json_object_set_new(o, "cred",
				    json_pack("{s:i,s:I,s:I}", "pid", (int)m->cred.pid, "uid",
					      (json_int_t)m->cred.uid, "gid",
					      (json_int_t)m->cred.gid));
	return o;
}

void socket_queue_json(const struct sock_state *s, json_t *o)
{
	size_t at = 0;

	if (s->queued > 0)
		json_object_set_new(o, "queued", json_integer(s->queued));
	if (s->type == SOCK_STREAM && s->data_len)
		json_object_set_new(o, "data", json_hex(s->data, s->data_len));
	if (!s->nr_messages)
		return;
	json_t *a = json_array();
	for (size_t i = 0; i < s->nr_messages; i++) {
		json_array_append_new(a, message_json(&s->messages[i], s->data + at));
		at += s->messages[i].len;
	}
	json_object_set_new(o, "messages", a);
}

void socket_free(struct sock_state *s)
{
	if (!s)
		return;
	free(s->data);
	free(s->messages);
	free(s);
}
