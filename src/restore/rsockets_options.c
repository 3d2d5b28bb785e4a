/*
 * Options of sockets. One that a fresh socket has already is left alone, so
 * that what takes a privilege is asked for only where it makes a difference.
 */
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/time.h>

#include "common/util.h"
#include "restore/rjson.h"
#include "restore/rsockets_internal.h"

#ifndef SO_BUF_LOCK
#define SO_BUF_LOCK 72 /* Linux 5.14 */
#endif

static int parse_name(const json_t *o, const char *key, char *buf, size_t room,
		      struct usnap_err *err)
{
	const char *text;
	int r = rjson_text_or(o, key, "", &text, err);

	if (r < 0)
		return r;
	if (strlen(text) >= room)
		return usnap_fail(err, -EBADMSG, "cannot restore: %s of process.json is too long",
				  key);
	memcpy(buf, text, strlen(text) + 1);
	return 0;
}

int rsock_options_parse(struct rsocket *x, const json_t *o, struct usnap_err *err)
{
	static const int64_t us_max = INT64_MAX / 2;
	int64_t v;
	int r;

	for (size_t i = 0; i < nr_sockopts; i++) {
		if (!json_object_get(o, sockopts[i].name) ||
		    !sockopt_applies(&sockopts[i], x->family, x->protocol))
			continue;
		r = rjson_int(o, sockopts[i].name, INT32_MIN, UINT32_MAX, &v, err);
		if (r < 0)
			return r;
		x->options[i] = (int)v;
		x->has_option |= UINT64_C(1) << i;
	}
	if ((r = rjson_int_or(o, "linger_s", 0, INT32_MAX, -1, &v, err)) < 0)
		return r;
	x->linger = v >= 0;
	x->linger_s = v >= 0 ? (int)v : 0;
	if ((r = rjson_int_or(o, "rcvtimeo_us", 0, us_max, 0, &x->rcvtimeo_us, err)) < 0 ||
	    (r = rjson_int_or(o, "sndtimeo_us", 0, us_max, 0, &x->sndtimeo_us, err)) < 0 ||
	    (r = parse_name(o, "bindtodevice", x->device, sizeof(x->device), err)) < 0)
		return r;
	return parse_name(o, "tcp_congestion", x->congestion, sizeof(x->congestion), err);
}

static bool find_option(const struct rsocket *x, int level, int option, int *ret)
{
	for (size_t i = 0; i < nr_sockopts; i++)
		if (sockopts[i].level == level && sockopts[i].option == option) {
			*ret = x->options[i];
			return x->has_option >> i & 1;
		}
	return false;
}

static int set_int(const struct rsocket *x, int fd, const struct sockopt *o, int v,
		   struct usnap_err *err)
{
	int now = 0;
	socklen_t len = sizeof(now);

	if (getsockopt(fd, o->level, o->option, &now, &len) == 0 && now == v)
		return 0;
	if (setsockopt(fd, o->level, o->option, &v, sizeof(v)) == 0 || o->flags & SOCKOPT_SOFT)
		return 0;
	return usnap_fail_errno(err, -errno, "cannot set option %s of '%s'", o->name, x->text);
}

static int set_table(const struct rsocket *x, int fd, unsigned flags, struct usnap_err *err)
{
	for (size_t i = 0; i < nr_sockopts; i++) {
		if (!(x->has_option >> i & 1) ||
		    (sockopts[i].flags & (SOCKOPT_EARLY | SOCKOPT_APART)) != flags)
			continue;
		int r = set_int(x, fd, &sockopts[i], x->options[i], err);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The kernel doubles what it is given, and a limit is for those without privilege. */
static void set_buffer(int fd, int option, int force, int size)
{
	int half = size / 2;

	if (setsockopt(fd, SOL_SOCKET, force, &half, sizeof(half)) < 0)
		setsockopt(fd, SOL_SOCKET, option, &half, sizeof(half));
}

/* A size that the program has not chosen is the kernel's to choose. */
static void set_buffers(const struct rsocket *x, int fd, bool sending)
{
	int lock, size, bit = sending ? 1 : 2; /* SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK */

	if (!find_option(x, SOL_SOCKET, SO_BUF_LOCK, &lock) || !(lock & bit))
		return;
	if (sending && find_option(x, SOL_SOCKET, SO_SNDBUF, &size))
		set_buffer(fd, SO_SNDBUF, SO_SNDBUFFORCE, size);
	else if (!sending && find_option(x, SOL_SOCKET, SO_RCVBUF, &size))
		set_buffer(fd, SO_RCVBUF, SO_RCVBUFFORCE, size);
}

int rsock_options_early(const struct rsocket *x, int fd, struct usnap_err *err)
{
	int r = set_table(x, fd, SOCKOPT_EARLY, err);

	if (r < 0)
		return r;
	if (x->device[0] && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, x->device,
				       (socklen_t)strlen(x->device)) < 0)
		return usnap_fail_errno(err, -errno, "cannot bind '%s' to device '%s'", x->text,
					x->device);
	/* What connections inherit from a listener is settled when it listens. */
	set_buffers(x, fd, false);
	if (x->family != AF_UNIX)
		set_buffers(x, fd, true);
	return 0;
}

static int set_timeout(const struct rsocket *x, int fd, int option, int64_t us,
		       struct usnap_err *err)
{
	struct timeval tv = {us / 1000000, us % 1000000};

	if (!us || setsockopt(fd, SOL_SOCKET, option, &tv, sizeof(tv)) == 0)
		return 0;
	return usnap_fail_errno(err, -errno, "cannot set the timeout of '%s'", x->text);
}

int rsock_options_rest(const struct rsocket *x, int fd, struct usnap_err *err)
{
	struct linger l = {1, x->linger_s};
	int r = set_table(x, fd, 0, err);

	if (r < 0)
		return r;
	if (x->linger && setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l)) < 0)
		return usnap_fail_errno(err, -errno, "cannot set option linger of '%s'", x->text);
	if ((r = set_timeout(x, fd, SO_RCVTIMEO, x->rcvtimeo_us, err)) < 0 ||
	    (r = set_timeout(x, fd, SO_SNDTIMEO, x->sndtimeo_us, err)) < 0)
		return r;
	/* One that this kernel does not have is replaced by its default: slower at worst. */
	if (x->congestion[0])
		setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, x->congestion,
			   (socklen_t)strlen(x->congestion));
	return 0;
}

int rsock_options_last(const struct rsocket *x, int fd, struct usnap_err *err)
{
	int off;

	if (x->family == AF_UNIX)
		set_buffers(x, fd, true);
	if (x->family == AF_UNIX && find_option(x, SOL_SOCKET, SO_PEEK_OFF, &off) && off >= 0 &&
	    setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &off, sizeof(off)) < 0)
		return usnap_fail_errno(err, -errno, "cannot set option peek_off of '%s'", x->text);
	return 0;
}
