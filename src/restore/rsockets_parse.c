/* Sockets of process.json, parsed, and named for messages. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netlink.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "common/util.h"
#include "restore/rjson.h"
#include "restore/rsockets_internal.h"

static int wrong(struct usnap_err *err, const char *what)
{
	return usnap_fail(err, -EBADMSG, "cannot restore: %s of process.json is damaged", what);
}

static int no_memory(struct usnap_err *err)
{
	return usnap_fail_errno(err, -ENOMEM, "cannot restore sockets");
}

/* ---- parsing ---------------------------------------------------------------- */

struct name {
	const char *name;
	int value;
};

/* A name, or the number of what has none. */
static int parse_named(const json_t *o, const char *key, const struct name *names, size_t n,
		       int *ret, struct usnap_err *err)
{
	const char *text;
	int64_t v;
	int r;

	*ret = -1;
	if (!json_is_string(json_object_get(o, key))) {
		r = rjson_int_or(o, key, -1, 1000, -1, &v, err);
		*ret = r == 0 ? (int)v : -1;
		return r;
	}
	if ((r = rjson_text(o, key, &text, err)) < 0)
		return r;
	for (size_t i = 0; i < n; i++)
		if (!strcmp(names[i].name, text))
			*ret = names[i].value;
	return 0;
}

static bool fits_family(int family, socklen_t len)
{
	switch (family) {
	case AF_UNIX:
		return len <= sizeof(struct sockaddr_un);
	case AF_INET:
		return len == sizeof(struct sockaddr_in);
	case AF_INET6:
		return len == sizeof(struct sockaddr_in6);
	case AF_NETLINK:
		return len == sizeof(struct sockaddr_nl);
	}
	return true;
}

static int parse_address(const json_t *o, const char *key, int family, struct rsock_address *ret,
			 struct usnap_err *err)
{
	cleanup_free unsigned char *raw = NULL;
	json_t *a;
	size_t len;
	int r;

	if ((r = rjson_object(o, key, &a, err)) < 0 || !a)
		return r;
	if ((r = rjson_hex(a, "raw", sizeof(ret->ss), &raw, &len, err)) < 0)
		return r;
	if (!raw || !len)
		return 0;
	*ret = (struct rsock_address){.len = (socklen_t)len};
	memcpy(&ret->ss, raw, len);
	if (len < sizeof(sa_family_t) || ret->ss.ss_family != family ||
	    !fits_family(family, ret->len))
		return wrong(err, "the address of a socket");
	return 0;
}

static int parse_message(struct rsocket *x, const json_t *o, struct usnap_err *err)
{
	struct rsock_message *m = &x->messages[x->nr_messages++];
	json_t *cred;
	int64_t pid, uid, gid;
	int r;

	if ((r = rjson_hex(o, "data", RSOCK_QUEUE_MAX, &m->data, &m->len, err)) < 0 ||
	    (r = parse_address(o, "from", x->family, &m->from, err)) < 0 ||
	    (r = rjson_object(o, "cred", &cred, err)) < 0 || !cred)
		return r;
	if ((r = rjson_int(cred, "pid", 0, 1 << 22, &pid, err)) < 0 ||
	    (r = rjson_int(cred, "uid", 0, UINT32_MAX, &uid, err)) < 0 ||
	    (r = rjson_int(cred, "gid", 0, UINT32_MAX, &gid, err)) < 0)
		return r;
	m->has_cred = true;
	m->cred = (struct ucred){(pid_t)pid, (uid_t)uid, (gid_t)gid};
	return 0;
}

static int parse_queue(struct rsocket *x, const json_t *o, struct usnap_err *err)
{
	json_t *list, *m;
	size_t i;
	int r;

	if ((r = rjson_hex(o, "data", RSOCK_QUEUE_MAX, &x->data, &x->data_len, err)) < 0 ||
	    (r = rjson_array(o, "messages", RSOCK_MESSAGES_MAX, &list, err)) < 0 || !list)
		return r;
	x->messages = calloc(MAX(json_array_size(list), (size_t)1), sizeof(*x->messages));
	if (!x->messages)
		return no_memory(err);
	json_array_foreach (list, i, m)
		if ((r = parse_message(x, m, err)) < 0)
			return r;
	return 0;
}

static int parse_shutdown(struct rsocket *x, const json_t *o, struct usnap_err *err)
{
	const char *how;
	int r = rjson_text_or(o, "shutdown", "", &how, err);

	if (r < 0)
		return r;
	x->shut_read = !strcmp(how, "read") || !strcmp(how, "both");
	x->shut_write = !strcmp(how, "write") || !strcmp(how, "both");
	return 0;
}

/* The socket's file, and where it is from here. */
static int parse_path(const struct rsockets *s, struct rsocket *x, const json_t *o,
		      struct usnap_err *err)
{
	const struct sockaddr_un *un = (const void *)&x->local.ss;
	size_t len = x->local.len > offsetof(struct sockaddr_un, sun_path)
			     ? x->local.len - offsetof(struct sockaddr_un, sun_path)
			     : 0;
	uint64_t mode;
	int64_t uid, gid;
	json_t *file;
	int r;

	if (x->family != AF_UNIX || !len || !un->sun_path[0])
		return 0;
	len = strnlen(un->sun_path, len);
	int n = un->sun_path[0] == '/'
			? asprintf(&x->path, "%s%.*s", s->root ? s->root : "", (int)len,
				   un->sun_path)
			: asprintf(&x->path, "%s/%.*s", s->cwd, (int)len, un->sun_path);
	if (n < 0) {
		x->path = NULL;
		return no_memory(err);
	}
	x->nameless = json_is_null(json_object_get(o, "file"));
	if ((r = rjson_object(o, "file", &file, err)) < 0 || !file)
		return r;
	if ((r = rjson_word(file, "mode", &mode, err)) < 0 ||
	    (r = rjson_int(file, "uid", 0, UINT32_MAX, &uid, err)) < 0 ||
	    (r = rjson_int(file, "gid", 0, UINT32_MAX, &gid, err)) < 0)
		return r;
	x->has_file = true;
	x->mode = (mode_t)mode & 07777;
	x->uid = (uid_t)uid;
	x->gid = (gid_t)gid;
	return 0;
}

/* Of a connection the addresses are known as text only. */
static int parse_mapped(struct rsocket *x, const json_t *o, struct usnap_err *err)
{
	json_t *peer;
	const char *text = "";
	int r = rjson_object(o, "peer", &peer, err);

	if (r == 0 && peer)
		r = rjson_text_or(peer, "text", "", &text, err);
	x->mapped = r == 0 && !strncmp(text, "[::ffff:", 8);
	return r;
}

int rsock_parse(const struct rsockets *s, struct rsocket *x, const json_t *o, struct usnap_err *err)
{
	static const struct name families[] = {{"unix", AF_UNIX},
					       {"inet", AF_INET},
					       {"inet6", AF_INET6},
					       {"netlink", AF_NETLINK},
					       {"packet", AF_PACKET}};
	static const struct name types[] = {{"stream", SOCK_STREAM},
					    {"dgram", SOCK_DGRAM},
					    {"raw", SOCK_RAW},
					    {"rdm", SOCK_RDM},
					    {"seqpacket", SOCK_SEQPACKET}};
	bool connecting;
	int64_t v, peer_inode;
	json_t *options;
	int r;

	if ((r = parse_named(o, "family", families, ARRAY_SIZE(families), &x->family, err)) < 0 ||
	    (r = parse_named(o, "type", types, ARRAY_SIZE(types), &x->type, err)) < 0 ||
	    (r = rjson_int_or(o, "protocol", -1, 65535, 0, &v, err)) < 0 ||
	    (r = rjson_bool_or(o, "listening", false, &x->listening, err)) < 0 ||
	    (r = rjson_bool_or(o, "connected", false, &x->connected, err)) < 0 ||
	    (r = rjson_bool_or(o, "connecting", false, &connecting, err)) < 0 ||
	    (r = rjson_int_or(o, "peer_inode", 0, INT64_MAX, 0, &peer_inode, err)) < 0 ||
	    (r = parse_address(o, "local", x->family, &x->local, err)) < 0 ||
	    (r = parse_address(o, "peer", x->family, &x->peer, err)) < 0)
		return r;
	x->protocol = (int)v;
	x->peer_inode = (uint64_t)peer_inode;
	x->kind = connecting ? RSOCK_REFUSED : RSOCK_BOUND;
	if ((r = rjson_int_or(o, "backlog", 0, INT32_MAX, SOMAXCONN, &v, err)) < 0 ||
	    (r = rjson_object(o, "options", &options, err)) < 0 ||
	    (options && (r = rsock_options_parse(x, options, err)) < 0) ||
	    (r = rjson_hex(o, "groups", KIB(64), &x->groups, &x->groups_len, err)) < 0 ||
	    (r = parse_queue(x, o, err)) < 0 || (r = parse_shutdown(x, o, err)) < 0 ||
	    (r = parse_mapped(x, o, err)) < 0)
		return r;
	x->backlog = (int)v;
	return parse_path(s, x, o, err);
}

/* ---- words ------------------------------------------------------------------- */

static void format_unix(const struct rsock_address *a, char *buf, size_t room)
{
	const struct sockaddr_un *un = (const void *)&a->ss;
	size_t len = a->len > offsetof(struct sockaddr_un, sun_path)
			     ? a->len - offsetof(struct sockaddr_un, sun_path)
			     : 0;

	if (len && !un->sun_path[0])
		snprintf(buf, room, "@%.*s", (int)len - 1, un->sun_path + 1);
	else
		snprintf(buf, room, "%.*s", (int)len, un->sun_path);
}

static void format_address(const struct rsock_address *a, char *buf, size_t room)
{
	const struct sockaddr_in *in = (const void *)&a->ss;
	const struct sockaddr_in6 *in6 = (const void *)&a->ss;
	char ip[INET6_ADDRSTRLEN] = "?";

	buf[0] = '\0';
	if (!a->len)
		return;
	if (a->ss.ss_family == AF_UNIX) {
		format_unix(a, buf, room);
	} else if (a->ss.ss_family == AF_INET) {
		inet_ntop(AF_INET, &in->sin_addr, ip, sizeof(ip));
		snprintf(buf, room, "%s:%u", ip, ntohs(in->sin_port));
	} else if (a->ss.ss_family == AF_INET6) {
		inet_ntop(AF_INET6, &in6->sin6_addr, ip, sizeof(ip));
		snprintf(buf, room, "[%s]:%u", ip, ntohs(in6->sin6_port));
	}
}

void rsock_describe(struct rsocket *x)
{
	char address[128];
	const char *what = x->family == AF_UNIX		? "unix socket"
			   : x->family == AF_NETLINK	? "netlink socket"
			   : sock_is_tcp(x->protocol)	? "TCP"
			   : x->protocol == IPPROTO_UDP ? "UDP"
			   : x->type == SOCK_RAW	? "raw IP"
							: "socket";

	format_address(&x->local, address, sizeof(address));
	if (address[0])
		snprintf(x->text, sizeof(x->text), "%s %s", what, address);
	else
		snprintf(x->text, sizeof(x->text), "%s of descriptor %d", what, x->fd);
	for (char *p = x->text; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
}
