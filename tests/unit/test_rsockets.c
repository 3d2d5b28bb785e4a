#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/util.h"
#include "restore/rsockets.h"

/* ---- plans from hand-made files[] ---------------------------------------------- */

struct bench {
	struct restore_options o;
	struct restore r;
	struct rsockets *s;
	struct usnap_err err;
	json_t *files;
};

static void begin(struct bench *b)
{
	*b = (struct bench){.files = json_array()};
	b->r.o = &b->o;
	b->r.process = json_pack("{s:s,s:s}", "root", "/", "cwd", "/tmp");
}

/* Descriptor fd, of description fd, with inode 1000 + fd. */
static void add(struct bench *b, int fd, json_t *socket)
{
	cr_assert(socket);
	json_array_append_new(b->files,
			      json_pack("{s:i,s:s,s:i,s:i,s:o}", "fd", fd, "type", "socket",
					"description", fd, "inode", 1000 + fd, "socket", socket));
}

static int plan(struct bench *b)
{
	return rsockets_plan(&b->s, &b->r, b->files, &b->err);
}

static int make(struct bench *b, int description)
{
	int fd = -1;

	cr_assert_eq(rsockets_make(b->s, &b->r, description, &fd, &b->err), 0, "%s", b->err.text);
	return fd;
}

static void made(struct bench *b)
{
	cr_assert_eq(rsockets_made(b->s, &b->r, &b->err), 0, "%s", b->err.text);
}

static void end(struct bench *b)
{
	rsockets_free(b->s);
	for (size_t i = 0; i < b->r.nr_problems; i++) {
		free(b->r.problems[i].kind);
		free(b->r.problems[i].detail);
	}
	free(b->r.problems);
	json_decref(b->r.process);
	json_decref(b->files);
}

static json_t *address(const void *p, size_t len)
{
	char hex[2 * sizeof(struct sockaddr_storage) + 1];

	for (size_t i = 0; i < len; i++)
		snprintf(hex + 2 * i, 3, "%02x", ((const unsigned char *)p)[i]);
	return json_pack("{s:s}", "raw", hex);
}

static json_t *local_name(const char *name)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};

	strcpy(un.sun_path, name);
	return address(&un, offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1);
}

static int option(int fd, int level, int name)
{
	int v = -1;
	socklen_t len = sizeof(v);

	cr_assert_eq(getsockopt(fd, level, name, &v, &len), 0);
	return v;
}

/* A port that is free right now. */
static struct sockaddr_in free_address(int *ret_fd)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(in);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	cr_assert(fd >= 0 && bind(fd, (struct sockaddr *)&in, len) == 0);
	cr_assert_eq(getsockname(fd, (struct sockaddr *)&in, &len), 0);
	*ret_fd = fd;
	return in;
}

static json_t *listener_json(const struct sockaddr_in *in)
{
	return json_pack("{s:s,s:s,s:i,s:b,s:i,s:o,s:{s:i,s:i}}", "family", "inet", "type",
			 "stream", "protocol", IPPROTO_TCP, "listening", 1, "backlog", 7, "local",
			 address(in, sizeof(*in)), "options", "reuseaddr", 1, "tcp_nodelay", 1);
}

Test(rsockets, listener_has_its_address_options_and_backlog)
{
	struct bench b;
	int fd;
	struct sockaddr_in in = free_address(&fd), now;
	socklen_t len = sizeof(now);
	struct tcp_info info = {0};

	close(fd);
	begin(&b);
	add(&b, 5, listener_json(&in));
	cr_assert_eq(plan(&b), 0, "%s", b.err.text);
	cr_assert_eq(b.r.nr_problems, 0, "%s", b.r.problems ? b.r.problems[0].detail : "");
	fd = make(&b, 5);
	made(&b);
	cr_assert_eq(getsockname(fd, (struct sockaddr *)&now, &len), 0);
	cr_expect_eq(memcmp(&in, &now, sizeof(in)), 0);
	cr_expect_eq(option(fd, SOL_SOCKET, SO_ACCEPTCONN), 1);
	cr_expect_eq(option(fd, IPPROTO_TCP, TCP_NODELAY), 1);
	len = sizeof(info);
	cr_assert_eq(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len), 0);
	cr_expect_eq(info.tcpi_sacked, 7);
	close(fd);
	end(&b);
}

Test(rsockets, address_in_use_is_found_by_the_plan)
{
	struct bench b;
	int fd;
	struct sockaddr_in in = free_address(&fd);

	cr_assert_eq(listen(fd, 1), 0);
	begin(&b);
	add(&b, 5, listener_json(&in));
	cr_assert_eq(plan(&b), 0, "%s", b.err.text);
	cr_assert_eq(b.r.nr_problems, 1);
	cr_expect_eq(b.r.problems[0].severity, RESTORE_FATAL);
	cr_expect_str_eq(b.r.problems[0].kind, "address-in-use");
	close(fd);
	end(&b);
}

static void expect_closed(const char *family, int domain, const char *peer)
{
	struct bench b;
	struct sockaddr_storage ss;
	socklen_t len = sizeof(ss);
	char byte;

	begin(&b);
	add(&b, 9,
	    json_pack("{s:s,s:s,s:i,s:b,s:{s:s},s:{s:s}}", "family", family, "type", "stream",
		      "protocol", domain == AF_UNIX ? 0 : IPPROTO_TCP, "connected", 1, "local",
		      "text", "10.0.0.1:6379", "peer", "text", peer));
	cr_assert_eq(plan(&b), 0, "%s", b.err.text);
	int fd = make(&b, 9);
	made(&b);
	struct pollfd p = {.fd = fd, .events = POLLIN | POLLRDHUP};
	cr_expect_eq(poll(&p, 1, 0), 1);
	cr_expect(p.revents & POLLRDHUP);
	cr_expect_eq(read(fd, &byte, 1), 0);
	cr_expect_eq(option(fd, SOL_SOCKET, SO_DOMAIN), domain);
	cr_expect_eq(option(fd, SOL_SOCKET, SO_ERROR), 0);
	cr_expect_eq(getpeername(fd, (struct sockaddr *)&ss, &len), 0);
	cr_expect_eq(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
	close(fd);
	end(&b);
}

Test(rsockets, connection_to_outside_is_closed_by_its_peer)
{
	expect_closed("inet", AF_INET, "10.0.0.2:4711");
	expect_closed("inet6", AF_INET6, "[::ffff:10.0.0.2]:4711");
	expect_closed("unix", AF_UNIX, "");
}

Test(rsockets, connecting_socket_is_refused)
{
	struct bench b;

	begin(&b);
	add(&b, 9,
	    json_pack("{s:s,s:s,s:i,s:b,s:b}", "family", "inet", "type", "stream", "protocol",
		      IPPROTO_TCP, "connected", 1, "connecting", 1));
	cr_assert_eq(plan(&b), 0, "%s", b.err.text);
	int fd = make(&b, 9);
	made(&b);
	cr_expect_eq(option(fd, SOL_SOCKET, SO_ERROR), ECONNREFUSED);
	close(fd);
	end(&b);
}

static json_t *end_json(const char *type, int peer, json_t *messages, const char *shutdown)
{
	json_t *o = json_pack("{s:s,s:s,s:b,s:i}", "family", "unix", "type", type, "connected", 1,
			      "peer_inode", 1000 + peer);

	if (messages)
		json_object_set_new(o, "messages", messages);
	if (shutdown)
		json_object_set_new(o, "shutdown", json_string(shutdown));
	return o;
}

Test(rsockets, pair_has_its_messages_and_half_of_it_is_shut)
{
	struct bench b;
	char buf[16];

	begin(&b);
	add(&b, 3,
	    end_json("seqpacket", 4, json_pack("[{s:s},{s:s}]", "data", "6162", "data", "63"),
		     "read"));
	add(&b, 4, end_json("seqpacket", 3, json_pack("[{s:s}]", "data", "7a7a7a"), NULL));
	cr_assert_eq(plan(&b), 0, "%s", b.err.text);
	int x = make(&b, 3), y = make(&b, 4);
	made(&b);
	cr_expect_eq(recv(x, buf, sizeof(buf), 0), 2);
	cr_expect_eq(recv(x, buf, sizeof(buf), 0), 1);
	cr_expect_eq(recv(x, buf, sizeof(buf), 0), 0);
	cr_expect_eq(recv(y, buf, sizeof(buf), MSG_DONTWAIT), 3);
	cr_expect_eq(recv(y, buf, sizeof(buf), MSG_DONTWAIT), -1);
	cr_expect(send(y, "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	cr_expect_eq(send(x, "x", 1, 0), 1);
	close(x);
	close(y);
	end(&b);
}

static json_t *path_json(const char *path)
{
	return json_pack("{s:s,s:s,s:b,s:i,s:o,s:{s:s,s:i,s:i}}", "family", "unix", "type",
			 "stream", "listening", 1, "backlog", 3, "local", local_name(path), "file",
			 "mode", "0o640", "uid", (int)geteuid(), "gid", (int)getegid());
}

Test(rsockets, stale_socket_file_is_replaced_and_put_back)
{
	char dir[] = "/tmp/usnap-rsockets-XXXXXX", path[64];
	struct bench b;
	struct stat st;

	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	cr_assert_eq(mknod(path, S_IFSOCK | 0604, 0), 0);
	cr_assert_eq(chmod(path, 0604), 0);
	begin(&b);
	add(&b, 3, path_json(path));
	cr_assert_eq(plan(&b), 0, "%s", b.err.text);
	cr_assert_eq(b.r.nr_problems, 0);
	int fd = make(&b, 3);
	made(&b);
	cr_assert_eq(stat(path, &st), 0);
	cr_expect_eq(st.st_mode, S_IFSOCK | 0604, "0%o", st.st_mode);

	/* Somebody listens now: another one may not have it. */
	struct bench c;
	begin(&c);
	add(&c, 3, path_json(path));
	cr_assert_eq(plan(&c), 0, "%s", c.err.text);
	cr_assert_eq(c.r.nr_problems, 1);
	cr_expect_str_eq(c.r.problems[0].kind, "address-in-use");
	end(&c);

	close(fd);
	rsockets_undo(b.s, &b.r);
	cr_assert_eq(stat(path, &st), 0);
	cr_expect_eq(st.st_mode, S_IFSOCK | 0604, "0%o", st.st_mode);
	end(&b);
	unlink(path);
	rmdir(dir);
}

Test(rsockets, socket_file_that_was_not_there_is_gone_after_a_failure)
{
	char dir[] = "/tmp/usnap-rsockets-XXXXXX", path[64];
	struct bench b;
	struct stat st;

	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	begin(&b);
	add(&b, 3, path_json(path));
	cr_assert_eq(plan(&b), 0, "%s", b.err.text);
	close(make(&b, 3));
	cr_assert_eq(stat(path, &st), 0);
	cr_expect_eq(st.st_mode, S_IFSOCK | 0640, "0%o", st.st_mode);
	rsockets_undo(b.s, &b.r);
	cr_expect(stat(path, &st) < 0 && errno == ENOENT);
	end(&b);
	rmdir(dir);
}

/* ---- hostile input --------------------------------------------------------------- */

Test(rsockets, damaged_addresses_are_refused)
{
	static const char *const raw[] = {"02", "0a00", "0200", "0100zz",
					  "02000000000000000000000000000000ff"};

	for (size_t i = 0; i < ARRAY_SIZE(raw); i++) {
		struct bench b;

		begin(&b);
		add(&b, 3,
		    json_pack("{s:s,s:s,s:i,s:{s:s}}", "family", "inet", "type", "dgram",
			      "protocol", IPPROTO_UDP, "local", "raw", raw[i]));
		cr_expect_eq(plan(&b), -EBADMSG, "%s: %s", raw[i], b.err.text);
		b.s = NULL;
		end(&b);
	}
}

Test(rsockets, unknown_family_is_refused_by_name)
{
	struct bench b;

	begin(&b);
	add(&b, 3, json_pack("{s:i,s:s}", "family", 40, "type", "stream"));
	cr_assert_eq(plan(&b), 0, "%s", b.err.text);
	cr_assert_eq(b.r.nr_problems, 1);
	cr_expect_eq(b.r.problems[0].severity, RESTORE_REFUSE);
	cr_expect_str_eq(b.r.problems[0].kind, "socket-family");
	end(&b);
}
