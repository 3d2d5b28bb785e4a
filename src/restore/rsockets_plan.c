/*
 * The sockets among files[] of process.json: told apart, and tried where
 * trying does no harm.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common/util.h"
#include "restore/rjson.h"
#include "restore/rsockets_internal.h"

static int no_memory(struct usnap_err *err)
{
	return usnap_fail_errno(err, -ENOMEM, "cannot restore sockets");
}

/* ---- relations --------------------------------------------------------------- */

static int by_inode(const void *a, const void *b)
{
	uint64_t x = (*(struct rsocket *const *)a)->inode, y = (*(struct rsocket *const *)b)->inode;

	return (x > y) - (x < y);
}

static struct rsocket *find_inode(struct rsocket *const *index, size_t n, uint64_t inode)
{
	struct rsocket key = {.inode = inode}, *p = &key;
	struct rsocket **found = n ? bsearch(&p, index, n, sizeof(*index), by_inode) : NULL;

	return found ? *found : NULL;
}

static enum rsock_kind unix_kind(struct rsocket *const *index, size_t n, struct rsocket *x)
{
	struct rsocket *y = x->peer_inode ? find_inode(index, n, x->peer_inode) : NULL;
	bool named = x->peer.len > offsetof(struct sockaddr_un, sun_path);

	if (y && y != x && y->family == AF_UNIX && y->type == x->type && !x->listening &&
	    !y->listening && y->peer_inode == x->inode) {
		x->other = y;
		return RSOCK_PAIR;
	}
	if (!x->connected || x->listening)
		return RSOCK_BOUND;
	return x->type == SOCK_DGRAM && named ? RSOCK_BOUND : RSOCK_GONE;
}

static bool known_protocol(const struct rsocket *x)
{
	if (x->type == SOCK_STREAM)
		return sock_is_tcp(x->protocol);
	return x->type == SOCK_RAW ||
	       (x->type == SOCK_DGRAM &&
		(x->protocol == IPPROTO_UDP || x->protocol == IPPROTO_UDPLITE ||
		 x->protocol == IPPROTO_ICMP || x->protocol == IPPROTO_ICMPV6));
}

static bool known_type(const struct rsocket *x)
{
	switch (x->family) {
	case AF_UNIX:
		return x->type == SOCK_STREAM || x->type == SOCK_DGRAM || x->type == SOCK_SEQPACKET;
	case AF_INET:
	case AF_INET6:
		return known_protocol(x);
	case AF_NETLINK:
		return x->type == SOCK_RAW || x->type == SOCK_DGRAM;
	}
	return false;
}

static int set_kinds(struct rsockets *s, struct usnap_err *err)
{
	cleanup_free struct rsocket **index = calloc(MAX(s->n, (size_t)1), sizeof(*index));

	if (!index)
		return no_memory(err);
	for (size_t i = 0; i < s->n; i++)
		index[i] = &s->v[i];
	qsort(index, s->n, sizeof(*index), by_inode);
	for (size_t i = 0; i < s->n; i++) {
		struct rsocket *x = &s->v[i];
		bool inet = x->family == AF_INET || x->family == AF_INET6;

		if (!known_type(x))
			x->kind = RSOCK_UNKNOWN;
		else if (x->family == AF_UNIX)
			x->kind = unix_kind(index, s->n, x);
		else if (inet && x->type == SOCK_STREAM && x->connected && x->kind != RSOCK_REFUSED)
			x->kind = RSOCK_GONE;
		else if (!inet || x->type != SOCK_STREAM)
			x->kind = RSOCK_BOUND;
	}
	return 0;
}

/* An accepted connection has the name of its listener. */
static void find_listener(struct rsockets *s, struct rsocket *x)
{
	for (size_t i = 0; i < s->n && x->local.len > offsetof(struct sockaddr_un, sun_path); i++) {
		struct rsocket *l = &s->v[i];

		if (l->family != AF_UNIX || !l->listening || l->type != x->type ||
		    l->local.len != x->local.len ||
		    memcmp(&l->local.ss, &x->local.ss, x->local.len) != 0)
			continue;
		x->listener = l;
		l->accepts = true;
		return;
	}
}

static void find_listeners(struct rsockets *s)
{
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].kind == RSOCK_PAIR && s->v[i].type != SOCK_DGRAM)
			find_listener(s, &s->v[i]);
}

/* What one end of a stream cannot read any more, the other cannot write. */
static void agree_on_shutdown(struct rsockets *s)
{
	for (size_t i = 0; i < s->n; i++) {
		struct rsocket *x = &s->v[i];

		if (x->kind == RSOCK_PAIR && x->type != SOCK_DGRAM) {
			x->shut_write |= x->other->shut_read;
			x->other->shut_read |= x->shut_write;
		}
	}
}

/* ---- problems ----------------------------------------------------------------- */

static bool image_says(const struct restore *r, const char *kind)
{
	const json_t *list = json_object_get(r->process, "limits_of_restore"), *o;
	size_t i;

	json_array_foreach (list, i, o) {
		const char *what = json_string_value(json_object_get(o, "what"));

		if (what && !strcmp(what, kind))
			return true;
	}
	return false;
}

static int check_kind(struct restore *r, const struct rsocket *x)
{
	const char *kind = x->family == AF_INET || x->family == AF_INET6 ? "socket-protocol"
			   : x->family < 0				 ? "socket-unknown"
									 : "socket-family";

	if (x->kind != RSOCK_UNKNOWN || image_says(r, kind))
		return 0;
	return restore_problem(r, RESTORE_REFUSE, kind,
			       "fd %d: socket of family %d, type %d, protocol %d", x->fd, x->family,
			       x->type, x->protocol);
}

/* Binds, and closes: nobody notices, for it never listens. */
static int check_address(struct rsockets *s, struct restore *r, const struct rsocket *x)
{
	struct usnap_err why = {0};
	int fd = -1, ret = 0;

	if (x->kind != RSOCK_BOUND)
		return 0;
	if (x->family == AF_INET || x->family == AF_INET6)
		ret = rsock_inet_make(s, x, true, &fd, &why);
	else if (x->path)
		ret = rsock_path_check(x, &why);
	if (fd >= 0)
		close(fd);
	if (ret == 0)
		return 0;
	ret = restore_problem(r, RESTORE_FATAL, ret == -EADDRINUSE ? "address-in-use" : "address",
			      "fd %d: %s", x->fd, why.text);
	return ret < 0 ? ret : restore_problem_hint(r, "%s", why.hint);
}

static bool sent_from_inside(const struct rsockets *s, const struct rsock_message *m)
{
	if (m->from.len <= offsetof(struct sockaddr_un, sun_path))
		return true;
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].family == AF_UNIX && s->v[i].local.len == m->from.len &&
		    !memcmp(&s->v[i].local.ss, &m->from.ss, m->from.len))
			return true;
	return false;
}

static int check_queue(const struct rsockets *s, struct restore *r, const struct rsocket *x)
{
	size_t lost = 0;

	if (x->kind != RSOCK_BOUND)
		return 0;
	for (size_t i = 0; i < x->nr_messages; i++)
		lost += x->nameless || !sent_from_inside(s, &x->messages[i]);
	if (!lost)
		return 0;
	return restore_problem(r, RESTORE_NOTE, "socket-queue",
			       "fd %d: %s; %zu datagrams that wait in it are lost: their senders "
			       "are not there any more",
			       x->fd, x->text, lost);
}

static int check_waiting(struct restore *r, const struct rsocket *x, const json_t *o,
			 struct usnap_err *err)
{
	int64_t waiting;
	int ret = rjson_int_or(o, "waiting", 0, INT32_MAX, 0, &waiting, err);

	if (ret < 0 || !waiting)
		return ret;
	ret = restore_problem(r, RESTORE_NOTE, "accept-queue",
			      "fd %d: %s; %lld connections that wait to be accepted are lost",
			      x->fd, x->text, (long long)waiting);
	return ret < 0 ? no_memory(err) : 0;
}

static int check(struct rsockets *s, struct restore *r, struct usnap_err *err)
{
	int ret = 0;

	for (size_t i = 0; i < s->n && ret == 0; i++) {
		const struct rsocket *x = &s->v[i];

		if (!x->wanted)
			continue;
		ret = check_kind(r, x);
		if (ret == 0)
			ret = check_address(s, r, x);
		if (ret == 0)
			ret = check_queue(s, r, x);
	}
	return ret < 0 ? no_memory(err) : 0;
}

/* ---- the list ----------------------------------------------------------------- */

static bool is_socket(const json_t *file)
{
	const char *type = json_string_value(json_object_get(file, "type"));

	return type && !strcmp(type, "socket");
}

static bool is_redirected(const struct restore *r, int fd)
{
	for (size_t i = 0; i < r->o->nr_fds; i++)
		if (r->o->fds[i].fd == fd)
			return true;
	return false;
}

static int by_description(const void *a, const void *b)
{
	const struct rsocket *x = a, *y = b;

	if (x->description != y->description)
		return x->description < y->description ? -1 : 1;
	return (x->fd > y->fd) - (x->fd < y->fd);
}

static int list_sockets(struct rsockets *s, struct restore *r, const json_t *files,
			struct usnap_err *err)
{
	const json_t *file;
	size_t i;

	json_array_foreach (files, i, file) {
		struct rsocket *x = &s->v[s->n];
		int64_t fd, inode;
		int ret = rjson_int(file, "fd", 0, INT32_MAX - 1, &fd, err);

		if (ret < 0)
			return ret;
		s->hold_from = MAX(s->hold_from, (int)fd + 1);
		if (!is_socket(file))
			continue;
		*x = (struct rsocket){.fd = (int)fd, .held = -1};
		if ((ret = rjson_int(file, "description", 0, INT64_MAX, &x->description, err)) <
			    0 ||
		    (ret = rjson_int_or(file, "inode", 0, INT64_MAX, 0, &inode, err)) < 0)
			return ret;
		x->inode = (uint64_t)inode;
		x->wanted = !is_redirected(r, x->fd);
		s->n++;
	}
	qsort(s->v, s->n, sizeof(*s->v), by_description);
	return 0;
}

/* One for each description: the one with the lowest number. */
static void unite(struct rsockets *s)
{
	size_t n = 0;

	for (size_t i = 0; i < s->n; i++) {
		if (n && s->v[n - 1].description == s->v[i].description)
			s->v[n - 1].wanted |= s->v[i].wanted;
		else
			s->v[n++] = s->v[i];
	}
	s->n = n;
}

static int parse_all(struct rsockets *s, struct restore *r, const json_t *files,
		     struct usnap_err *err)
{
	const json_t *file;
	size_t i;

	json_array_foreach (files, i, file) {
		struct rsocket key = {0}, *x;
		int64_t fd, description;
		json_t *o;
		int ret;

		if (!is_socket(file))
			continue;
		if ((ret = rjson_int(file, "fd", 0, INT32_MAX, &fd, err)) < 0 ||
		    (ret = rjson_int(file, "description", 0, INT64_MAX, &description, err)) < 0 ||
		    (ret = rjson_object(file, "socket", &o, err)) < 0)
			return ret;
		key.description = description;
		key.fd = (int)fd;
		x = bsearch(&key, s->v, s->n, sizeof(*s->v), by_description);
		if (!x)
			continue; /* another number of the same */
		x->family = x->type = -1;
		if (o && (ret = rsock_parse(s, x, o, err)) < 0)
			return ret;
		rsock_describe(x);
		if (o && x->wanted && (ret = check_waiting(r, x, o, err)) < 0)
			return ret;
	}
	return 0;
}

static int parse_process(struct rsockets *s, const struct restore *r, struct usnap_err *err)
{
	json_t *creds;
	uint64_t mask;
	int ret;

	if ((ret = rjson_path(r->process, "root", &s->root, err)) < 0 ||
	    (ret = rjson_path(r->process, "cwd", &s->cwd, err)) < 0 ||
	    (ret = rjson_word_or(r->process, "umask", 022, &mask, err)) < 0 ||
	    (ret = rjson_int_or(r->process, "pid", 0, 1 << 22, 0, &s->image_pid, err)) < 0 ||
	    (ret = rjson_object(r->process, "creds", &creds, err)) < 0)
		return ret;
	s->umask = (mode_t)mask & 0777;
	if (s->root && !strcmp(s->root, "/")) {
		free(s->root);
		s->root = NULL;
	}
	if (!s->cwd && !(s->cwd = strdup("/")))
		return no_memory(err);
	const json_t *uid = json_object_get(creds, "uid"), *gid = json_object_get(creds, "gid");
	if (!json_is_integer(json_array_get(uid, 1)) || !json_is_integer(json_array_get(gid, 1)))
		return 0;
	s->euid = (uid_t)json_integer_value(json_array_get(uid, 1));
	s->egid = (gid_t)json_integer_value(json_array_get(gid, 1));
	s->has_creds = true;
	return 0;
}

/* What the restorer must know of the builder's doings. */
static int share_undo(struct rsockets *s, struct usnap_err *err)
{
	s->undo = mmap(NULL, MAX(s->n, (size_t)1) * sizeof(*s->undo), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (s->undo == MAP_FAILED) {
		s->undo = NULL;
		return no_memory(err);
	}
	for (size_t i = 0; i < s->n; i++)
		s->v[i].undo = &s->undo[i];
	return 0;
}

int rsockets_plan(struct rsockets **ret, struct restore *r, const json_t *files,
		  struct usnap_err *err)
{
	struct rsockets *s = calloc(1, sizeof(*s));
	int code;

	if (!s)
		return no_memory(err);
	for (size_t i = 0; i < ARRAY_SIZE(s->listener); i++)
		s->listener[i] = -1;
	s->v = calloc(json_array_size(files) + 1, sizeof(*s->v));
	code = s->v ? list_sockets(s, r, files, err) : no_memory(err);
	if (code == 0) {
		unite(s);
		code = parse_process(s, r, err);
	}
	if (code == 0)
		code = parse_all(s, r, files, err);
	if (code == 0)
		code = set_kinds(s, err);
	if (code == 0)
		code = share_undo(s, err);
	if (code == 0) {
		find_listeners(s);
		agree_on_shutdown(s);
		code = check(s, r, err);
	}
	if (code < 0) {
		rsockets_free(s);
		return code;
	}
	*ret = s;
	return 0;
}
